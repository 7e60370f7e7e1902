"""Threads share a `Client` whose server keeps ending connections: no call fails, nothing grows."""

import multiprocessing
import os
import pickle
import random
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager, suppress

import numpy as np
import pytest

from digit_classifier import Classifier
from serving.errors import DeadlineExceeded, InvalidRequest, Unavailable
from tests.reliability.conftest import soak_s
from tests.reliability.load.test_soak import assert_no_growth
from tests.support.servers import running_server

NUM_THREADS = 8
KINDS, WEIGHTS = ("good", "large", "hasty", "malformed", "new"), (80, 5, 8, 5, 2)
"""Kinds of calls, and how many of 100 each is: one image, 600 in three messages, 2 ms for all,
three pixels, one by a new client."""
HASTY_S = 0.002
CONNECTION_AGE_S = "2"


class ClientCallers:
    """All kinds of calls, from threads that share two clients: one for all, one for the hasty."""

    def __init__(self, address, transport, images, digits):
        self._client = Classifier.connect(address, transport=transport)
        self._hasty_client = Classifier.connect(address, timeout_s=HASTY_S, transport=transport)
        self._images, self._digits = images, np.array(digits)
        self._threads = ThreadPoolExecutor(NUM_THREADS)

    def run_for(self, duration_s):
        end_s, total = time.monotonic() + duration_s, Counter[str]()
        for caller in [self._threads.submit(self._call, n, end_s) for n in range(NUM_THREADS)]:
            total += caller.result()
        return total

    def _call(self, number, end_s):
        generator, counts = random.Random(number), Counter[str]()
        while time.monotonic() < end_s:
            (kind,) = generator.choices(KINDS, WEIGHTS)
            getattr(self, f"_{kind}")(generator.randrange(len(self._images)))
            counts[kind] += 1
        return counts

    def _good(self, number):
        self._check(self._client, np.array([number]))

    def _large(self, number):
        self._check(self._client, np.arange(number, number + 600) % len(self._images))

    def _hasty(self, number):
        with suppress(DeadlineExceeded, Unavailable):
            self._check(self._hasty_client, np.array([number]))

    def _malformed(self, number):
        with pytest.raises(InvalidRequest):
            self._client.classify(np.zeros((number + 1, 3), np.uint8))

    def _new(self, number):
        with pickle.loads(pickle.dumps(self._client)) as client:
            self._check(client, np.array([number]))

    def _check(self, client, rows):
        found = client.classify(self._images[rows]).digits
        np.testing.assert_array_equal(found, self._digits[rows])


_callers: ClientCallers
"""In the process that has nothing else, so that its memory is the clients'."""


def _begin(*arguments):
    global _callers
    _callers = ClientCallers(*arguments)


def _run_for(duration_s):
    return _callers.run_for(duration_s)


class RemoteCallers:
    """`ClientCallers` in a process of their own."""

    def __init__(self, pool):
        self._pool = pool
        self.pid = pool.submit(os.getpid).result()
        self.counts: Counter[str] = Counter()

    def run_for(self, duration_s):
        self.counts += self._pool.submit(_run_for, duration_s).result()


@contextmanager
def callers_of(models, transport, images, classifier):
    digits = classifier.classify(images).digits.tolist()
    options = ("--transport", "h2", "--max-connection-age", CONNECTION_AGE_S)
    with (
        running_server(models, *options) as server,
        ProcessPoolExecutor(
            1,
            multiprocessing.get_context("spawn"),
            initializer=_begin,
            initargs=(server.address, transport, images, digits),
        ) as pool,
    ):
        yield RemoteCallers(pool)


@pytest.fixture(autouse=True)
def one_arena(monkeypatch):
    """Else each thread's heap grows to its own largest call, whenever that comes: by 9 MiB."""
    monkeypatch.setenv("MALLOC_ARENA_MAX", "1")


@pytest.mark.parametrize("client_transport", ["grpcio", "h2"])
def test_soak_of_a_client_leaves_nothing_behind(models, client_transport, images, classifier):
    with callers_of(models, client_transport, images, classifier) as callers:
        assert_no_growth(callers.pid, callers, soak_s())
    assert callers.counts.keys() == set(KINDS)
