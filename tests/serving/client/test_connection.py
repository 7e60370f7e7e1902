"""The clients and their connection: wait, balance, replace, close, travel."""

import asyncio
import gc
import linecache
import math
import pickle
import signal
import sys
import textwrap
import threading
import warnings
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import grpc
import numpy as np
import pytest

from digit_classifier import AsyncClassifier, Classifier, wire
from digit_classifier.predictions import DIGITS
from digit_classifier.remote import predictions_of, served_model_of
from serving.client import Client, retries
from serving.errors import ServingError, Unavailable
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import (
    FORKS,
    ONE,
    ended,
    fake_server,
    fake_service,
    free_address,
    running_server,
)


def restarted(models, transport, address):
    """Servers one after the other at one address."""
    options = ("--transport", transport, "--port", address.rpartition(":")[2])
    while True:
        with running_server(models, *options, "--device", "cpu") as server:
            yield server


def test_restart_under_64_callers_fails_no_call(models, transport, image):
    """One that is killed: those of one that drains come again elsewhere, too."""
    address = free_address()
    servers = restarted(models, transport, address)
    is_over = threading.Event()
    num_done = Counter[str]()

    def call(client):
        failures = []
        while not is_over.is_set():
            try:
                client.classify(image)
                num_done["calls"] += 1
            except ServingError as err:
                failures.append(err)
        return failures

    def wait_for_calls(num):
        client.classify(image)
        target = num_done["calls"] + num
        while num_done["calls"] < target and not any(caller.done() for caller in callers):
            client.classify(image)

    first = next(servers)
    with ThreadPoolExecutor(64) as pool, Classifier.connect(address) as client:
        callers = [pool.submit(call, client) for _ in range(64)]
        wait_for_calls(64)
        first.stop(signal.SIGKILL)
        next(servers)
        wait_for_calls(64)
        is_over.set()
        failures = [failure for caller in callers for failure in caller.result()]
    servers.close()
    assert not failures


def test_client_made_before_its_server_waits_for_it(models, image):
    address = free_address()
    with Classifier.connect(address) as client, ThreadPoolExecutor(1) as pool:
        with pytest.raises(Unavailable, match=address):
            client.wait_ready(0.1)
        ready = pool.submit(client.wait_ready)
        for _ in restarted(models, "grpcio", address):
            ready.result()
            assert len(client.classify(image)) == 1
            break


@pytest.mark.usefixtures("client_transport")
def test_ready_is_waited_for_behind_a_proxy_that_answers_unavailable(monkeypatch):
    """As Envoy does while its server starts: more often than a call is sent again."""
    monkeypatch.setattr(retries, "_SHORTEST_BACKOFF_S", 0.001)
    monkeypatch.setattr(retries, "_LONGEST_BACKOFF_S", 0.001)
    num_left = 20

    def check(_, context):
        nonlocal num_left
        if num_left:
            num_left -= 1
            context.abort(grpc.StatusCode.UNAVAILABLE, "no healthy upstream")
        return b"\x08\x01"

    service = fake_service("grpc.health.v1.Health", {"Check": check})
    with service as address, Client(address) as client:
        client.wait_ready(TIMEOUT_S)
    assert num_left == 0


def test_wrong_address_is_given_up_before_a_long_timeout(image, monkeypatch):
    """The test's own timeout is shorter than the client's."""
    monkeypatch.setattr(retries, "_FIRST_CONTACT_S", 0.3)
    address = free_address()
    with (
        Classifier.connect(address, timeout_s=3600) as client,
        pytest.raises(Unavailable, match=f"{address}.*[Rr]efused"),
    ):
        client.classify(image)


def test_calls_take_turns_among_the_addresses_of_a_target(image):
    counts = Counter[str]()

    def counting(name):
        def classify(_, context):
            counts[name] += 1
            return ONE

        return classify

    with (
        fake_server(counting("a")) as a,
        fake_server(counting("b")) as b,
        Classifier.connect(f"ipv4:{a},{b}") as client,
    ):
        while len(counts) < 2:  # both are connected
            client.classify(image)
        counts.clear()
        for _ in range(100):
            client.classify(image)
    assert counts == {"a": 50, "b": 50}


async def test_target_of_several_addresses_is_answered(server, image):
    """Its usual :authority, all addresses with a comma, is refused by strict servers."""
    async with AsyncClassifier.connect(f"ipv4:{server.address},{free_address()}") as client:
        assert len(await client.classify(image)) == 1


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize("code", [grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.CANCELLED])
async def test_call_that_was_cut_off_is_sent_again(image, code, monkeypatch):
    monkeypatch.setattr(retries, "_SHORTEST_BACKOFF_S", 0.001)
    calls: list[int] = []

    def refuse_for_a_while(_, context):
        calls.append(1)
        if len(calls) % 4:
            context.abort(code, "not now")
        return ONE

    with fake_server(refuse_for_a_while) as address:
        with Classifier.connect(address) as client:
            assert client.classify(image)[0].digit == 7
        async with AsyncClassifier.connect(address) as awaited:
            assert (await awaited.classify(image))[0].digit == 7
    assert len(calls) == 8


def answer(digits, probabilities):
    return wire.encode_response(bytes(digits), np.array(probabilities, np.float32).tobytes(), "1")


TENTHS = [0.1] * 10
BROKEN = {
    "no rows": answer([], []),
    "too many rows": answer([1] * 4, [TENTHS] * 4),
    "digit without probabilities": answer([1], []),
    "nine probabilities": answer([1], [TENTHS[:9]]),
    "eleven probabilities": answer([1], [[*TENTHS, 0.0]]),
    "digit 10": answer([10], [TENTHS]),
    "digit 200": answer([200], [TENTHS]),
    "digit 300": b"\x0a\x02\xac\x02" + answer([], [TENTHS])[2:],
    "unpacked digit 300": b"\x08\xac\x02" + answer([], [TENTHS])[2:],
    "NaN": answer([1], [[float("nan")] * 10]),
    "infinite": answer([1], [[float("inf")] + [0.0] * 9]),
    "negative": answer([1], [[-0.1, 0.3] + [0.1] * 8]),
    "a sum of 0.998": answer([1], [[0.098] + [0.1] * 9]),
    "a sum of 1.002": answer([1], [[0.102] + [0.1] * 9]),
    "no message": b"\xff\xff",
    "nothing": b"",
    "no text": answer([1], [TENTHS])[:-1] + b"\xff",
}


@pytest.mark.parametrize("kind", list(BROKEN))
def test_broken_answer_is_refused(kind):
    with pytest.raises(Unavailable, match="a:1: the server is broken: it answered"):
        predictions_of(BROKEN[kind], 1, DIGITS, "a:1")


@pytest.mark.parametrize("info", [b"\xff", b""])  # no message; no limits
def test_broken_model_info_is_refused(info):
    with pytest.raises(Unavailable, match="the server is broken: it answered"):
        served_model_of(info, "a:1")


@pytest.mark.parametrize("wrong", [math.nan, -0.1, 0.102])
def test_each_row_of_a_large_answer_has_to_be_a_distribution(wrong):
    rows = [[*TENTHS] for _ in range(100)]
    assert len(predictions_of(answer([1] * 100, rows), 100, DIGITS, "a:1")) == 100
    rows[50][3] = wrong
    with pytest.raises(Unavailable, match="a sum of 1"):
        predictions_of(answer([1] * 100, rows), 100, DIGITS, "a:1")


def test_closed_client_says_so(server, image):
    for is_used in (True, False):
        client = Classifier.connect(server.address)
        if is_used:
            client.classify(image)
        client.close()
        client.close()
        for call in (partial(client.classify, image), client.describe, client.wait_ready):
            with pytest.raises(Unavailable, match=f"{server.address}: the client is closed"):
                call()


@pytest.mark.usefixtures("client_transport")
async def test_closing_ends_calls_in_flight_and_those_that_wait_to_be_sent_again(image):
    has_come, release = threading.Semaphore(0), threading.Event()

    def hang(_, context):
        has_come.release()
        release.wait(TIMEOUT_S)
        return ONE

    with fake_server(hang) as address, ThreadPoolExecutor() as pool:
        client = Classifier.connect(address, timeout_s=3600)
        call = pool.submit(client.classify, image)
        has_come.acquire()
        client.close()
        with pytest.raises(Unavailable, match="the client is closed"):
            call.result(TIMEOUT_S)
        awaited = AsyncClassifier.connect(address, timeout_s=3600)
        calls = [asyncio.create_task(awaited.classify(image)) for _ in range(3)]
        await asyncio.to_thread(has_come.acquire)
        await awaited.close()
        for error in await asyncio.gather(*calls, return_exceptions=True):
            assert isinstance(error, Unavailable)
            assert "the client is closed" in str(error)
        release.set()
    with Classifier.connect(free_address(), timeout_s=3600) as client, ThreadPoolExecutor() as pool:
        call = pool.submit(client.classify, image)
        with pytest.raises(TimeoutError):
            call.result(0.2)
        client.close()
        with pytest.raises(Unavailable, match="the client is closed"):
            call.result(TIMEOUT_S)


@pytest.mark.usefixtures("client_transport")
async def test_closed_async_client_refuses_every_call_at_once(server, image):
    client = AsyncClassifier.connect(server.address)
    await client.classify(image)
    await client.close()
    await client.close()
    calls = (client.classify(image) for _ in range(2000))
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    assert all(isinstance(outcome, Unavailable) for outcome in outcomes)
    assert str(outcomes[0]) == f"{server.address}: the client is closed"


@pytest.mark.usefixtures("client_transport")
async def test_cancelled_calls_give_their_slots_back(image):
    is_free = threading.Event()

    def hang_at_first(_, context):
        is_free.wait(TIMEOUT_S)
        return ONE

    with fake_server(hang_at_first) as address:
        async with AsyncClassifier.connect(address) as client:
            calls = [asyncio.create_task(client.classify(image)) for _ in range(600)]
            await asyncio.sleep(0)
            for call in calls:
                call.cancel()
            outcomes = await asyncio.gather(*calls, return_exceptions=True)
            assert all(isinstance(outcome, asyncio.CancelledError) for outcome in outcomes)
            is_free.set()
            await asyncio.gather(*(client.classify(image) for _ in range(600)))


@pytest.mark.usefixtures("each_loop")
def test_async_client_belongs_to_the_loop_that_uses_it(server, image):
    client = AsyncClassifier.connect(server.address)  # outside of any loop

    async def classify():
        return len(await client.classify(image))

    assert asyncio.run(classify()) == 1
    assert asyncio.run(classify()) == 1  # the first loop is closed

    async def from_two_loops():
        await client.classify(image)
        with pytest.raises(RuntimeError, match="belongs to another event loop"):
            await asyncio.to_thread(asyncio.run, classify())
        await client.close()

    asyncio.run(from_two_loops())
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()  # here, the connections of loops that were closed before them


async def test_pickled_clients_keep_their_settings(image):
    seen: list[object] = []

    def look(_, context):
        seen.append(dict(context.invocation_metadata()).get("authorization"))
        return ONE

    with fake_server(look) as address:
        with pickle.loads(pickle.dumps(Classifier.connect(address, token="secret"))) as client:
            client.classify(image)
        async with pickle.loads(
            pickle.dumps(AsyncClassifier.connect(address, token="secret"))
        ) as awaited:
            await awaited.classify(image)
    assert seen == ["Bearer secret"] * 2


def test_client_made_before_a_fork_connects_in_the_child(server, client_transport):
    code = f"""
        import os, signal
        import numpy as np
        from digit_classifier import Classifier
        from serving.errors import Unavailable
        image = np.zeros((1, 784), np.uint8)
        client = Classifier.connect({server.address!r}, transport={client_transport!r})
        for is_used in (False, True):
            child = os.fork()
            if child == 0:
                signal.alarm(20)
                try:
                    client.classify(image)
                    os._exit(is_used)
                except Unavailable as err:
                    os._exit(not ("fork" in str(err) and is_used))
            assert os.waitpid(child, 0)[1] == 0, is_used
            client.classify(image)
    """
    done = ended([sys.executable, *FORKS, "-c", textwrap.dedent(code)])
    assert (done.returncode, done.stderr) == (0, "")


class Interrupter:
    """Raises KeyboardInterrupt at the n-th line of a thread's work in the client's connection."""

    def __init__(self, number):
        self.left, self.is_done = number, False

    def __call__(self, frame, kind, _):
        if not frame.f_code.co_filename.endswith(("h2/threads.py", "h2/session.py")):
            return None
        # Python looks for signals at calls, but not at the begin or end of `with` and `try`, where
        # a trace could raise an error between a lock and its release.
        text = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
        if kind == "line" and not self.is_done and not text.strip().startswith(("with ", "try:")):
            self.left -= 1
            if not self.left:
                self.is_done = True
                raise KeyboardInterrupt
        return self

    def call(self, client, image):
        sys.settrace(self)
        try:
            client.classify(image)
        except (KeyboardInterrupt, Unavailable):
            pass
        finally:
            sys.settrace(None)


def test_interrupt_anywhere_in_one_thread_leaves_the_calls_of_others(image):
    """At each line in turn; the other call would wait for an hour."""
    has_come, release = threading.Semaphore(0), threading.Event()

    def answer_when_released(_, context):
        has_come.release()
        release.wait(TIMEOUT_S)
        return ONE

    number, num_interrupted = 1, 0
    with fake_server(answer_when_released) as address, ThreadPoolExecutor(2) as pool:
        while number < 10_000:
            interrupter = Interrupter(number)
            with Classifier.connect(address, timeout_s=3600) as client:
                release.set()
                client.classify(image)  # connect
                release.clear()
                while has_come.acquire(blocking=False):
                    pass
                first = pool.submit(interrupter.call, client, image)
                while not has_come.acquire(timeout=0.005) and not first.done():
                    pass
                second = pool.submit(client.classify, image)
                while not has_come.acquire(timeout=0.005):
                    assert not second.done()
                release.set()
                assert len(second.result(TIMEOUT_S)) == 1, number
                first.result(TIMEOUT_S)
            num_interrupted += interrupter.is_done
            number += 1 if number < 150 else 7
            if not interrupter.is_done:
                break
    assert num_interrupted > 50
