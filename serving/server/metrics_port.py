"""The metrics port: /metrics for Prometheus, /healthz and /readyz for probes, and nothing else.

It has threads of its own: it answers before a model is loaded and while the loop of calls hangs. A
connection has one exchange, a request and its answer, and closes.
"""

import logging
import re
import socket
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import BytesIO
from socketserver import ThreadingMixIn
from typing import Any, NamedTuple

from serving.system.addresses import is_named, with_port
from serving.system.listening import bind
from serving.telemetry.metrics import Readiness, Report

_log = logging.getLogger(__name__)
_BACKLOG = 256
"""Connections that wait in the kernel to be accepted; past it they come a second late."""
_TICK_S = 0.5
"""How often the port looks for exchanges whose time is over."""
_NO_DESCRIPTOR_S = 0.1
"""The pause after a connection that could not be accepted, for want of descriptors, say."""
_MAX_HEAD_BYTES = 16 << 10
_TEXT = "text/plain; charset=utf-8"
_REQUEST = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+ [\x21-\x7e]+ HTTP/1\.[0-9]\r\n")
_FIELD = re.compile(rb"[!#$%&'*+.^_`|~0-9A-Za-z-]+:[ \t]*[\t\x20-\x7e\x80-\xff]*\r\n")
"""Request lines and headers of RFC 9110; `http.server` takes more, such as bare newlines."""


class PlainAnswer(NamedTuple):
    """An answer to a request."""

    body: bytes
    kind: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK


class MetricsPort:
    """Listens at once, and answers 503 until `serve` is called."""

    def __init__(
        self,
        host: str,
        port: int,
        names: Iterable[str] = (),
        *,
        exchange_s: float = 5.0,
        max_exchanges: int = 64,
    ) -> None:
        """Listen, on its own threads.

        Args:
            host: a name or an address.
            port: the TCP port; 0 lets the kernel choose.
            names: of this server, beside localhost and addresses.
            exchange_s: how long an exchange may take in all: request, answer, the peer's close.
            max_exchanges: one more takes the place of the oldest whose request has not come whole
                or whose answer has been sent; it waits while there is none.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self._report: Callable[[], Report] | None = None
        self._state: Callable[[], Readiness] = Readiness
        self._names = {"localhost", *map(str.lower, (host, *names))}
        self._page_lock = threading.Lock()
        """Held while a page is made: one at a time."""
        self._listener = bind(host, port, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.address = with_port(host, self._listener.getsockname()[1])
        self._server = _Server(self._listener, self._answer, exchange_s, max_exchanges)
        self._thread = threading.Thread(
            target=self._server.serve_forever, args=(_TICK_S,), name="metrics-port", daemon=True
        )
        self._thread.start()

    def serve(self, report: Callable[[], Report], state: Callable[[], Readiness]) -> None:
        """Start to answer.

        Args:
            report: returns the content of /metrics; called for each scrape, one at a time.
            state: returns the state of /readyz; called on any thread, so it must not block.
        """
        self._report, self._state = report, state

    def close(self) -> None:
        """Close the port and its connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)  # wakes the thread
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    def _answer(self, request: BaseHTTPRequestHandler) -> PlainAnswer:
        host = request.headers.get("host", "")
        if host and not is_named(host, self._names):
            text = f"no server {host[:80]!r} here; see --http-host-name\n"
            return PlainAnswer(text.encode(), status=HTTPStatus.MISDIRECTED_REQUEST)
        path = request.path.partition("?")[0]
        if path not in ("/healthz", "/readyz", "/metrics"):
            return PlainAnswer(b"no such path\n", status=HTTPStatus.NOT_FOUND)
        if request.command not in ("GET", "HEAD"):
            return PlainAnswer(b"only by GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        if path == "/healthz":
            return PlainAnswer(b"alive\n")
        if path == "/readyz":
            return self._ready()
        if self._report is None:
            return PlainAnswer(b"starting\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return self._page(self._report, request.headers.get("accept", ""))

    def _ready(self) -> PlainAnswer:
        state = self._state()
        lines = ["SERVING" if state.is_serving else "NOT_SERVING"]
        for name in sorted(state.stuck_models | state.reasons.keys()):
            model, _, version = name.partition("/")
            subject = f"model {model} version {version}" if version else f"model {model}"
            reason = " ".join(
                state.reasons.get(name, "").split()
            )  # one line, even if a file's names have line breaks
            lines.append(f"NOT_SERVING {subject}" + (f": {reason}" if reason else ""))
        status = HTTPStatus.OK if state.is_serving else HTTPStatus.SERVICE_UNAVAILABLE
        return PlainAnswer("".join(f"{line}\n" for line in lines).encode(), status=status)

    def _page(self, report: Callable[[], Report], accept: str) -> PlainAnswer:
        # Late: a server that is never scraped does without the library.
        from serving.telemetry.exposition import encode

        try:
            with self._page_lock:
                kind, body = encode(report(), accept)
        except Exception:
            _log.exception("the metrics page failed")
            return PlainAnswer(b"internal error\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        return PlainAnswer(body, kind)


class _Exchange:
    """A connection's request and answer."""

    def __init__(self, sock: socket.socket, end_s: float) -> None:
        self.socket = sock
        self.end_s = end_s
        """When its time is over."""
        self.is_answering = False
        """Whether its request has come whole, and its answer is not sent yet."""

    def shut(self) -> None:
        """End it: its thread sees the end of the connection, wherever it waits."""
        with suppress(OSError):  # its thread has closed it
            self.socket.shutdown(socket.SHUT_RDWR)


class _Server(ThreadingMixIn, HTTPServer):
    """A thread for each exchange; the accepting one also ends those whose time is over."""

    daemon_threads = True
    block_on_close = False

    def __init__(
        self,
        listener: socket.socket,
        answer: Callable[[BaseHTTPRequestHandler], PlainAnswer],
        exchange_s: float,
        max_exchanges: int,
    ) -> None:
        super().__init__(listener.getsockname()[:2], _ExchangeHandler, bind_and_activate=False)
        self.socket.close()  # in place of the one that it has made
        self.socket = listener
        self.answer = answer
        self._exchange_s, self._max_exchanges = exchange_s, max_exchanges
        self._changed = threading.Condition()
        """Its lock guards all that follows."""
        self._exchanges: dict[Any, _Exchange] = {}
        """By their sockets, the oldest first."""

    def get_request(self) -> tuple[socket.socket, Any]:
        """Accept a connection, once there is a place for it."""
        with self._changed:
            while len(self._exchanges) >= self._max_exchanges:
                oldest = (each for each in self._exchanges.values() if not each.is_answering)
                if (given_up := next(oldest, None)) is not None:
                    given_up.shut()
                    del self._exchanges[given_up.socket]
                else:
                    self._changed.wait(_TICK_S)
                    self._end_late()
        try:
            sock, address = self.socket.accept()
        except BlockingIOError:  # it was gone before
            raise
        except OSError:
            time.sleep(_NO_DESCRIPTOR_S)
            raise
        with self._changed:
            self._exchanges[sock] = _Exchange(sock, time.monotonic() + self._exchange_s)
        return sock, address

    def service_actions(self) -> None:
        """End the exchanges whose time is over."""
        with self._changed:
            self._end_late()

    def _end_late(self) -> None:
        now_s = time.monotonic()
        for exchange in [*self._exchanges.values()]:
            if exchange.end_s > now_s:  # so are all later ones
                break
            exchange.shut()
            del self._exchanges[exchange.socket]
        self._changed.notify_all()

    def note_answering(self, sock: Any, *, is_answering: bool) -> None:
        """Note that a request has come whole, or that its answer has been sent."""
        with self._changed:
            if (exchange := self._exchanges.get(sock)) is not None:
                exchange.is_answering = is_answering

    def shutdown_request(self, request: Any) -> None:
        """Close a connection."""
        with self._changed:
            self._exchanges.pop(request, None)
            self._changed.notify_all()
        super().shutdown_request(request)

    def server_close(self) -> None:
        """Close the port and its connections."""
        super().server_close()
        with self._changed:
            for exchange in self._exchanges.values():
                exchange.shut()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Log what went wrong with a connection, and go on."""
        _log.error("a connection of the metrics port failed", exc_info=True)


class _ExchangeHandler(BaseHTTPRequestHandler):
    """One exchange."""

    server: _Server
    protocol_version = default_request_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1

    def handle(self) -> None:
        """Read a request, answer it, and wait until the peer has closed, since a reset loses it."""
        with suppress(OSError):  # the peer has left, or was late
            self.raw_requestline = self.rfile.readline(_MAX_HEAD_BYTES + 1)
            if not self.raw_requestline:
                return
            if self.parse_request():
                self.server.note_answering(self.request, is_answering=True)
                self._reply(self.server.answer(self))
                self.server.note_answering(self.request, is_answering=False)
            self.request.shutdown(socket.SHUT_WR)
            while self.request.recv(_MAX_HEAD_BYTES):
                pass

    def parse_request(self) -> bool:
        """Read the head; False if it was refused."""
        self.command, self.request_version = "", self.default_request_version
        lines, left = [self.raw_requestline], _MAX_HEAD_BYTES - len(self.raw_requestline)
        while lines[-1] not in (b"\r\n", b"\n", b"") and left >= 0:
            lines.append(self.rfile.readline(left + 1))
            left -= len(lines[-1])
        if left < 0:
            text = f"expected a head of at most {_MAX_HEAD_BYTES} bytes"
            return self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        first, *fields, end = lines if lines[1:] else (*lines, b"")
        if (
            end != b"\r\n"
            or not _REQUEST.fullmatch(first)
            or not all(map(_FIELD.fullmatch, fields))
        ):
            text = "malformed HTTP: expected a request of HTTP/1.1"
            return self._refuse(HTTPStatus.BAD_REQUEST, text)
        self.rfile = BytesIO(b"".join([*fields, end]))
        if not super().parse_request():
            return False
        hosts = self.headers.get_all("host", [])
        if len(hosts) > 1 or (not hosts and self.request_version != "HTTP/1.0"):
            return self._refuse(HTTPStatus.BAD_REQUEST, "expected one header Host")
        return True

    def handle_expect_100(self) -> bool:
        """Send nothing ahead of the answer: bodies are not read."""
        return True

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """Refuse a request, as text in place of a page."""
        status = HTTPStatus(code)
        self._reply(PlainAnswer(f"{message or status.phrase}\n".encode(), status=status))

    def _refuse(self, status: HTTPStatus, text: str) -> bool:
        self.send_error(status, text)
        return False

    def _reply(self, answer: PlainAnswer) -> None:
        self.send_response_only(answer.status)
        self.send_header("date", self.date_time_string())
        self.send_header("content-type", answer.kind)
        self.send_header("x-content-type-options", "nosniff")
        self.send_header("content-length", str(len(answer.body)))
        if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
            self.send_header("allow", "GET, HEAD")
        self.send_header("connection", "close")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(answer.body)
        self.wfile.flush()
