"""Signals at any moment of a server's life: none is lost, and none ends it with a traceback."""

import json
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from digit_classifier import Classifier
from digit_classifier.wire import encode_request
from tests.support import published
from tests.support.fakes import image_with
from tests.support.load import ClosedLoop
from tests.support.servers import (
    STOP_TIMEOUT_S,
    is_serving,
    on_both,
    paced_server,
    serve_command,
    wait_until,
)

NUM_MOMENTS = 10


@contextmanager
def starting_server(models, *options):
    """A server in its own process group that has just begun to handle signals."""
    process = subprocess.Popen(
        serve_command(models, *options),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        wait_until(lambda: heeds(process.pid, signal.SIGHUP))
        yield process
    finally:
        process.kill()
        process.communicate()


def heeds(pid, number):
    """Whether a process has a handler for a signal: the interpreter has none until ours runs."""
    status = Path(f"/proc/{pid}/status").read_text()
    caught = next(line for line in status.splitlines() if line.startswith("SigCgt:"))
    return bool(int(caught.split()[1], 16) >> (number - 1) & 1)


def end_of(process):
    """Wait for the end; return the exit code and stderr."""
    _, err = process.communicate(timeout=STOP_TIMEOUT_S)
    return process.returncode, err


@pytest.mark.parametrize("workers", ["1", "2"])
def test_sighup_while_it_starts_is_harmless(models, workers, images):
    with starting_server(models, "--workers", workers) as process:
        is_ready = threading.Event()

        def hang_up():
            while not is_ready.wait(0.01):  # to all processes, as a terminal that closes does
                os.killpg(process.pid, signal.SIGHUP)

        sender = threading.Thread(target=hang_up)
        sender.start()
        line = process.stdout.readline()
        is_ready.set()
        sender.join()
        assert line.startswith("serving ")
        address = line.split("address=")[1].split()[0]
        with Classifier.connect(address) as client:
            assert client.classify(images[:1]).model_version == "1"
        process.terminate()
        code, err = end_of(process)
    assert code == 0
    assert "Traceback" not in err
    assert " died " not in err


@pytest.fixture(scope="module")
def start_s(models):
    """How long a server takes to start."""
    with starting_server(models) as process:
        begun_s = time.monotonic()
        process.stdout.readline()
        return time.monotonic() - begun_s


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
@pytest.mark.parametrize("workers", ["1", "2"])
def test_stop_while_it_starts_is_clean(models, start_s, workers, number):
    for moment in range(NUM_MOMENTS):
        with starting_server(models, "--workers", workers) as process:
            time.sleep(moment * start_s / NUM_MOMENTS)  # a moment, not a wait for something
            os.killpg(process.pid, number)
            code, err = end_of(process)
        assert code == 0, (moment, err)
        assert "Traceback" not in err


@pytest.mark.parametrize(
    ("workers", "delays_s"), [("1", (0, 0.005, 0.01, 0.02, 0.04)), ("2", (0, 0.02))]
)
def test_sigterm_soon_after_sighup_ends_with_0(models, tmp_path, workers, delays_s):
    for number, delay_s in enumerate(delays_s):
        folder = tmp_path / str(number)
        shutil.copytree(models, folder)
        with starting_server(folder, "--workers", workers) as process:
            process.stdout.readline()
            published.good(folder / "digits", "2")
            process.send_signal(signal.SIGHUP)
            time.sleep(delay_s)
            process.send_signal(signal.SIGTERM)
            process.send_signal(signal.SIGHUP)
            code, err = end_of(process)
        assert code == 0, (delay_s, err)
        assert "Traceback" not in err


# SIGTERM under load, again and again, with a ledger on both sides: nothing accepted is lost


NUM_RESTARTS = 20
NUM_TICKETS = 100_000
"""More than one restart's load uses."""


def load_on(address, first_ticket=0):
    """A load in which call n carries ticket `first_ticket + n`."""
    return ClosedLoop(address, _Tickets(first_ticket), in_flight=64)


class _Tickets(Sequence[bytes]):
    """The requests of a load, made when they are sent."""

    def __init__(self, first):
        self._first = first

    def __len__(self):
        return NUM_TICKETS

    def __getitem__(self, number):
        return encode_request(image_with(self._first + number).tobytes())


@on_both
def test_restarts_under_load_lose_nothing(transport, tmp_path):
    path = tmp_path / "ledger.json"
    num_answered = num_refused = 0
    for _ in range(NUM_RESTARTS):
        options = {"service_s": 0.002, "max_batch_size": 16, "ledger_file": path}
        with paced_server(transport, **options) as server:
            loads = [load_on(server.address, number * NUM_TICKETS) for number in range(4)]
            with loads[0], loads[1], loads[2], loads[3]:
                loads[0].wait_for(100)
                assert server.stop() == 0
        codes: dict[int, grpc.StatusCode] = {}
        for number, load in enumerate(loads):
            assert len(load.calls) < NUM_TICKETS
            codes |= {number * NUM_TICKETS + call.number: call.code for call in load.calls}
        assert set(codes.values()) <= {grpc.StatusCode.OK, grpc.StatusCode.UNAVAILABLE}
        ran = dict(json.loads(path.read_text())["tickets"])
        answered = {ticket for ticket, code in codes.items() if code is grpc.StatusCode.OK}
        assert set(ran) == answered, "run but not answered, or the reverse"
        assert set(ran.values()) == {1}
        num_answered += len(answered)
        num_refused += len(codes) - len(answered)
    print(f"{transport}: {NUM_RESTARTS} drains, {num_answered} answered, {num_refused} refused")


@pytest.mark.parametrize("drain_s", [0.5, 30.0])
def test_end_of_the_drain_or_a_second_signal_ends_a_server_that_hangs(drain_s):
    with paced_server(drain_s=drain_s) as server:
        server.tell("hold")
        with load_on(server.address) as load:
            wait_until(lambda: server.num_begun() > 0)
            if drain_s > 1.0:
                server.process.send_signal(signal.SIGTERM)
                wait_until(lambda: not is_serving(server.address))
            assert server.stop() == 1
    assert {call.code for call in load.calls} == {grpc.StatusCode.UNAVAILABLE}
