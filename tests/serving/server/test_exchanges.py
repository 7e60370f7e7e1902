"""The answers of the metrics port, whole, byte by byte."""

import socket
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import BatchingConfig
from serving.server import metrics_port
from serving.server.metrics_port import MetricsPort, _ExchangeHandler
from serving.system.usage import Usage
from serving.telemetry.metrics import Counts, QueueUsage, Readiness, Report, Served

TIMEOUT_S = 20.0
MODELS = (Served("digits", "1", "cpu", "fp32", "h2", "default", 10),)
QUEUES = {("digits", "1"): QueueUsage(0, 100)}


def report():
    return Report(MODELS, BatchingConfig(), QUEUES, 0, True, Usage.now(), Counts())


def exchanged(exporter, request):
    """All bytes that answer a request."""
    host, port = exporter.address.rsplit(":", 1)
    with socket.create_connection((host, int(port)), TIMEOUT_S) as sock:
        sock.sendall(request)
        sock.shutdown(socket.SHUT_WR)
        return b"".join(iter(lambda: sock.recv(65_536), b""))


def answer_of(status, body, *more, length=None):
    length = len(body) if length is None else length
    lines = [
        f"HTTP/1.1 {status}", "date: DATE", "content-type: text/plain; charset=utf-8",
        "x-content-type-options: nosniff", f"content-length: {length}", *more, "connection: close",
    ]  # fmt: skip
    return ("\r\n".join(lines) + "\r\n\r\n" + body).encode()


MOST = 16 << 10
HEAD = " HTTP/1.1\r\nHost: localhost\r\n"


@pytest.mark.parametrize(
    ("request_", "expected"),
    [
        (f"GET /healthz{HEAD}\r\n", answer_of("200 OK", "alive\n")),
        (f"HEAD /healthz{HEAD}\r\n", answer_of("200 OK", "", length=6)),
        (f"GET /readyz{HEAD}\r\n", answer_of(
            "200 OK", "SERVING\nNOT_SERVING model a version 2: it is broken\n"
            "NOT_SERVING model b\n")),
        (f"GET /nowhere{HEAD}\r\n", answer_of("404 Not Found", "no such path\n")),
        (f"POST /healthz{HEAD}\r\n", answer_of(
            "405 Method Not Allowed", "only by GET\n", "allow: GET, HEAD")),
        ("GET /healthz HTTP/1.1\r\nHost: other.org\r\n\r\n", answer_of(
            "421 Misdirected Request", "no server 'other.org' here; see --http-host-name\n")),
        ("GET /healthz HTTP/1.1\r\nHost: named.org\r\n\r\n", answer_of("200 OK", "alive\n")),
        ("GET /healthz HTTP/1.1\r\n\r\n", answer_of(
            "400 Bad Request", "expected one header Host\n")),
        (f"GET /healthz{HEAD}Host: localhost\r\n\r\n", answer_of(
            "400 Bad Request", "expected one header Host\n")),
        ("GET /healthz HTTP/1.0\r\n\r\n", answer_of("200 OK", "alive\n")),
        ("GET /healthz\r\n\r\n", answer_of(
            "400 Bad Request", "malformed HTTP: expected a request of HTTP/1.1\n")),
        (f"GET /healthz{HEAD}x : y\r\n\r\n", answer_of(
            "400 Bad Request", "malformed HTTP: expected a request of HTTP/1.1\n")),
        (f"GET /healthz{HEAD}x: {'y' * (MOST - len(f'GET /healthz{HEAD}x: ') - 4)}\r\n\r\n",
         answer_of("200 OK", "alive\n")),
        (f"GET /healthz{HEAD}x: {'y' * (MOST - len(f'GET /healthz{HEAD}x: ') - 3)}\r\n\r\n",
         answer_of("431 Request Header Fields Too Large",
                   "expected a head of at most 16384 bytes\n")),
    ],
    ids=range(14),
)  # fmt: skip
def test_answer_is_whole(request_, expected, monkeypatch):
    monkeypatch.setattr(_ExchangeHandler, "date_time_string", lambda self: "DATE")
    port = MetricsPort("127.0.0.1", 0, ["Named.org"])
    state = Readiness(True, frozenset({"b"}), {"a/2": "it is\n broken"})
    port.serve(report, lambda: state)
    try:
        assert exchanged(port, request_.encode()) == expected
    finally:
        port.close()


def test_callers_who_read_to_the_end_need_not_close_first():
    """The port ends its side behind the answer, and then waits for theirs."""
    port = MetricsPort("127.0.0.1", 0, exchange_s=60.0)
    host, number = port.address.rsplit(":", 1)
    try:
        with socket.create_connection((host, int(number)), 5.0) as sock:
            sock.sendall(f"GET /healthz{HEAD}\r\n".encode())
            found = b"".join(iter(lambda: sock.recv(65_536), b""))
        assert found.endswith(b"alive\n")
    finally:
        port.close()


def test_port_that_has_no_report_yet_says_so(monkeypatch):
    monkeypatch.setattr(_ExchangeHandler, "date_time_string", lambda self: "DATE")
    port = MetricsPort("127.0.0.1", 0)
    try:
        starting = "503 Service Unavailable"
        found = exchanged(port, f"GET /metrics{HEAD}\r\n".encode())
        assert found == answer_of(starting, "starting\n")
        found = exchanged(port, f"GET /readyz{HEAD}\r\n".encode())
        assert found == answer_of(starting, "NOT_SERVING\n")
    finally:
        port.close()


def test_page_that_fails_is_an_error_and_the_next_one_is_made(monkeypatch, caplog):
    monkeypatch.setattr(_ExchangeHandler, "date_time_string", lambda self: "DATE")
    port, results = MetricsPort("127.0.0.1", 0), [KeyError("x"), None]

    def reported():
        if (failure := results.pop(0)) is not None:
            raise failure
        return report()

    port.serve(reported, Readiness)
    try:
        found = exchanged(port, f"GET /metrics{HEAD}\r\n".encode())
        assert found == answer_of("500 Internal Server Error", "internal error\n")
        assert caplog.messages == ["the metrics page failed"]
        assert exchanged(port, f"GET /metrics{HEAD}\r\n".encode()).startswith(
            b"HTTP/1.1 200 OK\r\n"
        )
    finally:
        port.close()


def test_port_has_these_limits_by_default(monkeypatch):
    """A probe is answered in five seconds or not at all, and 64 at a time."""
    made: list[Any] = []

    class Server:
        def __init__(self, listener, answer, *limits):
            self.limits, self.served = limits, threading.Event()
            made.append(self)

        def serve_forever(self, interval_s):
            self.thread, self.interval_s = threading.current_thread(), interval_s
            self.served.set()

        def shutdown(self):
            assert self.served.wait(TIMEOUT_S)

        def server_close(self):
            """Close nothing."""

    monkeypatch.setattr(metrics_port, "_Server", Server)
    for options in ({}, {"exchange_s": 1.0, "max_exchanges": 2}):
        port = MetricsPort("127.0.0.1", 0, **options)
        port.close()
        port._listener.close()
    assert [each.limits for each in made] == [(5.0, 64), (1.0, 2)]
    assert [each.interval_s for each in made] == [0.5, 0.5]
    assert all(each.thread.daemon for each in made), "it ends with the program"


def test_one_page_is_made_at_a_time():
    port = MetricsPort("127.0.0.1", 0)
    held = []

    def reported():
        held.append(port._page_lock.locked())
        return report()

    port.serve(reported, Readiness)
    try:
        for _ in range(2):
            assert exchanged(port, f"GET /metrics{HEAD}\r\n".encode()).startswith(b"HTTP/1.1 200")
    finally:
        port.close()
    assert held == [True, True]
    assert not port._page_lock.locked()


def test_port_pauses_where_it_has_no_descriptor(monkeypatch):
    """Else it would try again and again, with all of a core; one that has left is no reason."""
    pauses: list[float] = []
    monkeypatch.setattr(metrics_port, "time", SimpleNamespace(sleep=pauses.append))

    class Listener:
        def __init__(self, error):
            self.error = error

        def getsockname(self):
            return "127.0.0.1", 0

        def accept(self):
            raise self.error

    first: Any = Listener(None)
    server: Any = metrics_port._Server(first, lambda request: None, 1.0, 1)  # type: ignore[return-value]
    for error in (OSError(24, "Too many open files"), BlockingIOError()):
        server.socket = Listener(error)
        with pytest.raises(type(error)):
            server.get_request()
    assert pauses == [0.1]
