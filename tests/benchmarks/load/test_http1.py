"""The generator of HTTP load against a server that answers as the test likes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from benchmarks.load.http1 import HttpRequest, ask, closed, open_loop
from benchmarks.load.trace import Deadline, arrivals
from tests.benchmarks.patience import SHORT_S, until_answered

NOW = 0.0
BODY = b"x" * 100
MESSAGE = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n" + BODY
GOOD = b"HTTP/1.1 200 OK\r\nInference-Header-Content-Length: 1\r\nContent-Length: 2\r\n\r\nok"
BAD = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 2\r\n\r\nno"


@contextmanager
def answering(*answers: bytes) -> Iterator[str]:
    """A server that gives each connection these answers, byte by byte, and the last for ever."""

    def converse(connection: socket.socket) -> None:
        with connection, connection.makefile("rb") as file:
            number = 0
            while file.read(len(MESSAGE)) == MESSAGE:
                answer = answers[min(number, len(answers) - 1)]
                connection.sendall(answer[:5])
                connection.sendall(answer[5:])
                number += 1

    def accept() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=converse, args=(connection,), daemon=True).start()

    with socket.create_server(("127.0.0.1", 0), backlog=100) as listener:
        threading.Thread(target=accept, daemon=True).start()
        yield f"127.0.0.1:{listener.getsockname()[1]}"
        listener.shutdown(socket.SHUT_RDWR)


def test_closed_loop_is_answered() -> None:
    with answering(GOOD) as address:
        request = HttpRequest(address, MESSAGE)
        trace = until_answered(lambda seconds: closed(request, [2, 1], NOW, seconds))
        assert ask(request) == b"ok"
    assert trace.num_errors == 0
    assert (trace.latencies_s > 0).all()


def test_open_loop_is_answered_call_by_call() -> None:
    offsets = arrivals("poisson", rate=300, seconds=SHORT_S, seed=1)
    with answering(GOOD) as address:
        request = HttpRequest(address, MESSAGE)
        trace = open_loop(request, offsets, NOW, 1, Deadline.NONE)
    assert trace.num_errors == 0
    assert len(trace.latencies_s) == len(trace.lag_s) == len(offsets)


def test_answers_that_turn_bad_are_errors() -> None:
    with answering(GOOD, BAD) as address:
        request = HttpRequest(address, MESSAGE)
        trace = until_answered(lambda seconds: closed(request, [1], NOW, seconds))
    assert trace.num_errors == len(trace.latencies_s)


def test_calls_that_are_never_answered_count_as_errors() -> None:
    with answering(GOOD, b"HTTP/1.1 200 OK\r\n") as address:
        request = HttpRequest(address, MESSAGE)
        trace = open_loop(request, np.array([0.0, 0.01]), NOW, 1, Deadline.NONE)
    assert (len(trace.latencies_s), trace.num_errors) == (2, 2)
    assert (trace.latencies_s > 1.5).all()


def test_refused_request_is_no_load() -> None:
    with answering(BAD) as address, pytest.raises(OSError, match="answers HTTP 500"):
        closed(HttpRequest(address, MESSAGE), [1], NOW, SHORT_S)


def test_deadlines_are_not_measured() -> None:
    with pytest.raises(OSError, match="over gRPC only"):
        open_loop(HttpRequest("x:1", MESSAGE), np.array([0.0]), NOW, 1, Deadline.SENT)
