"""Peers that vanish without a word, stand still, or come back late: the clients find them again."""

import signal
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager

import numpy as np
import pytest

from digit_classifier import Classifier
from serving.errors import ServerError
from tests.support.servers import free_address, paced_server, running_server

AWAY_S = 20.0
"""Long enough for back-offs to grow."""
BACK_WITHIN_S = 10.0


@pytest.fixture
def image():
    return np.zeros((1, 784), np.uint8)


def until_answered(call, within_s):
    """Call until there is an answer; fail if there is none in time."""
    deadline_s = time.monotonic() + within_s
    while True:
        try:
            call()
            return
        except ServerError:
            assert time.monotonic() < deadline_s, f"no answer within {within_s:g} s"


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize("is_frozen", [True, False])
def test_server_that_was_frozen_or_away_is_found_again(models, image, is_frozen):
    address = free_address()
    options = ("--device", "cpu", "--port", address.split(":")[1])
    with ExitStack() as stack:
        client = stack.enter_context(Classifier.connect(address, timeout_s=1))
        server = stack.enter_context(running_server(models, *options))
        client.classify(image)
        if is_frozen:
            server.process.send_signal(signal.SIGSTOP)
        else:
            server.stop()
        back_s = time.monotonic() + AWAY_S
        while time.monotonic() < back_s:
            with pytest.raises(ServerError):
                client.classify(image)
        if is_frozen:
            server.process.send_signal(signal.SIGCONT)
        else:
            stack.enter_context(running_server(models, *options))
        until_answered(lambda: client.classify(image), BACK_WITHIN_S)


@contextmanager
def held_call(transport, image):
    """A call that waits until the block ends; then it must be answered, at its first attempt."""
    with (
        paced_server(transport) as server,
        Classifier.connect(server.address, timeout_s=120) as client,
        ThreadPoolExecutor(1) as pool,
    ):
        server.tell("hold")
        call = pool.submit(client.classify, image)
        yield server
        assert not call.done()
        server.tell("release")
        assert len(call.result()) == 1
        assert server.num_begun() == 1


@pytest.mark.usefixtures("client_transport")
def test_pings_of_a_client_that_waits_are_welcome(image):
    with held_call("h2", image), held_call("grpcio", image):
        time.sleep(12)  # seven pings: gRPC's servers forgive two that come too soon
