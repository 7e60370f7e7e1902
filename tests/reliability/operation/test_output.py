"""Nobody reads a server's output: it serves, and ends when it should."""

import fcntl
import os
import random
import signal
import socket
import subprocess
from contextlib import contextmanager, suppress

import pytest

from digit_classifier import Classifier
from serving.errors import ServingError
from tests.support.servers import STOP_TIMEOUT_S, prepared, serve_command, wait_until

WORKERS = pytest.mark.parametrize("workers", ["1", "2"])


@contextmanager
def full_pipe():
    """The end to write to of a pipe that is full, and that nobody reads."""
    reader, writer = os.pipe()
    fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, 4096)
    os.write(writer, bytes(4096))
    try:
        yield writer
    finally:
        os.close(writer)
        os.close(reader)


@contextmanager
def abandoned_pipe():
    """The end to write to of a pipe whose reader is gone."""
    reader, writer = os.pipe()
    os.close(reader)
    try:
        yield writer
    finally:
        os.close(writer)


@contextmanager
def full_device():
    descriptor = os.open("/dev/full", os.O_WRONLY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


SINKS = {"full pipe": full_pipe, "reader gone": abandoned_pipe, "full device": full_device}


def free_port():
    """Return a free port below those that the kernel gives to others meanwhile."""
    for _ in range(100):
        port = random.randrange(10_000, 30_000)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            return port
    pytest.fail("no free port")


def serves_and_stops(
    models, images, *options, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, prepare="pass"
):
    """Start a server, call it while it logs, and stop it."""
    port = free_port()
    command = serve_command(models, "--port", str(port), "--drain", "5", *options)
    process = subprocess.Popen(prepared(prepare, command), stdout=stdout, stderr=stderr)
    try:
        with Classifier.connect(f"127.0.0.1:{port}") as client:

            def answers():
                assert process.poll() is None, "it has ended"
                try:
                    return client.classify(images[:1]).model_version == "1"
                except ServingError:
                    return False

            wait_until(answers)
            for _ in range(100):  # each a log line, once all workers are there
                process.send_signal(signal.SIGHUP)
                assert answers()
        process.terminate()
        assert process.wait(STOP_TIMEOUT_S) == 0
    finally:
        process.kill()
        process.wait()


@WORKERS
@pytest.mark.parametrize("sink", SINKS)
@pytest.mark.parametrize("stream", ["stdout", "stderr"])
def test_output_that_nobody_reads_harms_nothing(models, images, stream, sink, workers):
    options = ("--workers", workers)
    with SINKS[sink]() as descriptor:
        if stream == "stdout":
            serves_and_stops(models, images, *options, stdout=descriptor)
        else:
            serves_and_stops(models, images, *options, stderr=descriptor)


@WORKERS
def test_closed_outputs_harm_nothing(models, images, workers):
    options = ("--workers", workers)
    serves_and_stops(models, images, *options, prepare="os.closerange(0, 3)")


def test_error_that_nobody_reads_ends_the_server_all_the_same(tmp_path):
    with full_pipe() as descriptor:
        process = subprocess.run(
            serve_command(tmp_path), stderr=descriptor, timeout=STOP_TIMEOUT_S, check=False
        )
    assert process.returncode == 2
