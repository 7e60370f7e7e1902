"""Servers of the handlers in `behaviours`."""

import os
import threading
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

import serving
from serving.handlers.local import _Loop
from serving.handlers.process import _Running
from tests.serving.model.graphs import save, two_layers
from tests.support.guards import Guarded, fixtures

FILE = Path(__file__).parent / "behaviours.py"


def named(**classes):
    """The option `handler` for classes of `behaviours`, by the models' names."""
    return {name: f"{FILE}:{each}" for name, each in classes.items()}


@pytest.fixture(scope="session")
def network(tmp_path_factory):
    """An ONNX file: x FP32 [N, 4] -> y FP32 [N, 3]."""
    return save(two_layers(), tmp_path_factory.mktemp("network"))


class Gate:
    """A pipe that a handler reads until the test opens it."""

    def __init__(self, folder):
        self.path = folder / "gate"
        os.mkfifo(self.path)

    @contextmanager
    def closed(self):
        """A handler that reads it waits within this block; entered once it does."""
        with open(self.path, "w"):  # blocks until somebody reads
            yield


@pytest.fixture
def gate(tmp_path):
    return Gate(tmp_path)


@pytest.fixture
def served():
    """Start servers, and end them."""
    with ExitStack() as stack:

        def start(*models, **options):
            server = stack.enter_context(serving.Server(*models, **options))
            client = stack.enter_context(serving.Client(server.address, timeout_s=20))
            return server, client

        yield start


def at_once(*calls):
    """Make calls on threads; return their outcomes, in order."""
    outcomes: list[Any] = [None] * len(calls)

    def make(place, call):
        try:
            outcomes[place] = call()
        except serving.ServingError as err:
            outcomes[place] = err

    threads = [threading.Thread(target=make, args=each) for each in enumerate(calls)]
    for thread in threads:
        thread.start()
    return threads, outcomes


uses_without_locks, locks_are_held = fixtures(
    Guarded(_Loop, "_lock", ("_is_closed",)),
    Guarded(_Running, "_lock", ("_notify", "_has_ended")),
)
