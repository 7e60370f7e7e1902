"""Signals at any moment of a server's life: none is lost, and none ends it with a traceback."""

import os
import shutil
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from serving import Client
from tests.support import published
from tests.support.processes import wait_until
from tests.support.servers import STOP_TIMEOUT_S, serve_command

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
        with Client(address) as client:
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
