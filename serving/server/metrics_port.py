"""The metrics port: /metrics for Prometheus, /healthz and /readyz for probes, and nothing else.

One thread serves all connections, and one makes the metrics page, for any number of callers. It
answers before a model is loaded and while the loop of calls hangs, so it shares nothing with that
loop; three GETs need no HTTP library.
"""

import logging
import math
import re
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from enum import Enum, auto
from functools import partial
from http import HTTPStatus
from typing import NamedTuple

from serving.system.addresses import is_named, with_port
from serving.system.listening import bind
from serving.telemetry.metrics import Readiness, Report

_log = logging.getLogger(__name__)
_BACKLOG = 256
"""Connections that wait in the kernel to be accepted; past it they come a second late."""
_MAX_CONNECTIONS = 64
"""One more connection takes the place of the longest idle one, or waits while all are busy."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""
_HEAD_S = 5.0
"""How long a request may take to come, an answer to be taken, and a peer to close after its last
answer."""
_IDLE_S = 60.0
"""How long a connection without a request stays open."""
_TICK_S = 0.5
"""How often the port looks for connections whose time is over."""
_MAX_HEAD_BYTES = 16 << 10
_READ_BYTES = 16 << 10
_END = b"\r\n\r\n"
_TEXT = "text/plain; charset=utf-8"
_REQUEST = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+) ([\x21-\x7e]+) HTTP/1\.([0-9])")
_FIELD = re.compile(r"([!#$%&'*+.^_`|~0-9A-Za-z-]+):[ \t]*([\t\x20-\x7e\x80-\xff]*)")
"""Methods, names and values as RFC 9110 has them."""


class Answer(NamedTuple):
    """An answer to a request."""

    body: bytes
    kind: str = _TEXT
    status: HTTPStatus = HTTPStatus.OK


class Request(NamedTuple):
    """The head of a request."""

    method: str
    path: str
    """Without its query."""
    is_old: bool
    """Whether it is of HTTP/1.0."""
    fields: dict[str, str]
    """Headers by their names in lower case; the last of equal names."""

    @property
    def is_last(self) -> bool:
        """Whether the connection closes behind the answer: a body, if there is one, is not read."""
        options = [each.strip() for each in self.fields.get("connection", "").lower().split(",")]
        has_body = self.fields.get("content-length", "0") != "0"
        return self.is_old or "close" in options or has_body or "transfer-encoding" in self.fields


class Refused(Exception):
    """Bytes that are not answered further; the connection closes after this status."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status


def read_request(received: bytearray) -> Request | None:
    """Take the head of a request off the bytes of a peer; None if it has not come whole.

    Raises:
        Refused: it is malformed or too long.
    """
    end = received.find(_END)
    if max(end, len(received) if end < 0 else 0) > _MAX_HEAD_BYTES:
        text = f"expected a head of at most {_MAX_HEAD_BYTES} bytes"
        raise Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
    if end < 0:
        return None
    first, *lines = received[:end].decode("latin-1").split("\r\n")
    del received[: end + len(_END)]
    begun = _REQUEST.fullmatch(first)
    fields = [_FIELD.fullmatch(line) for line in lines]
    if begun is None or not all(fields):
        raise Refused(HTTPStatus.BAD_REQUEST, "malformed HTTP: expected a request of HTTP/1.1")
    named = {field[1].lower(): field[2].strip() for field in fields if field}
    num_hosts = sum(line[:5].lower() == "host:" for line in lines)
    if num_hosts > 1 or (not num_hosts and begun[3] != "0"):
        raise Refused(HTTPStatus.BAD_REQUEST, "expected one header Host")
    return Request(begun[1], begun[2].partition("?")[0], begun[3] == "0", named)


class Phase(Enum):
    """How far a connection is; see `_Connection`."""

    HEAD = auto()
    IDLE = auto()
    PAGE = auto()
    ANSWER = auto()
    SHUT = auto()
    CLOSED = auto()


class _Connection:
    """One peer; used by the port's thread only.

    IDLE takes a minute at most, HEAD, ANSWER and SHUT some seconds each, PAGE as long as it takes:

        phase    its bytes are   it ends with
        HEAD     read            a request that has come whole: PAGE or ANSWER
        IDLE     read            the first byte of the next request: HEAD
        PAGE     left unread     the page, which another thread makes: ANSWER
        ANSWER   left unread     the last byte written: IDLE or HEAD, SHUT after the last answer
        SHUT     dropped         the peer's end: CLOSED
    """

    def __init__(self, sock: socket.socket) -> None:
        self.socket = sock
        self.enter(Phase.HEAD)
        self.received = bytearray()
        self.output = b""
        self.is_last = False
        """Whether the connection closes behind the answer in progress."""
        self.with_body = True

    def enter(self, phase: Phase) -> None:
        """Begin a phase."""
        self.phase, self.since_s = phase, time.monotonic()

    @property
    def may_be_replaced(self) -> bool:
        """Whether it may be closed for another one: it has no request that has come whole."""
        return self.phase in (Phase.HEAD, Phase.IDLE, Phase.SHUT)

    @property
    def end_s(self) -> float:
        """When the time of its phase is over."""
        if self.phase is Phase.PAGE:
            return math.inf
        return self.since_s + (_IDLE_S if self.phase is Phase.IDLE else _HEAD_S)


class MetricsPort:
    """Listens at once, and answers 503 until `serve` is called."""

    def __init__(self, host: str, port: int, names: Iterable[str] = ()) -> None:
        """Listen, on its own threads.

        Args:
            host: a name or an address.
            port: the TCP port; 0 lets the kernel choose.
            names: of this server, beside localhost and addresses.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self._report: Callable[[], Report] | None = None
        self._state: Callable[[], Readiness] = Readiness
        self._names = {"localhost", *map(str.lower, (host, *names))}
        self._listener = bind(host, port, backlog=_BACKLOG)
        self._listener.setblocking(False)
        self.address = with_port(host, self._listener.getsockname()[1])
        self._connections: dict[_Connection, None] = {}
        self._pages = ThreadPoolExecutor(1, "metrics-page")
        self._made: deque[tuple[_Connection, Answer]] = deque()
        """Pages whose callers wait for them; its thread appends, the port's takes."""
        self._waker, self._woken = socket.socketpair()
        self._woken.setblocking(False)
        self._is_listening = self._is_stopped = False
        self._paused_until_s = 0.0
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._listen()
        self._thread = threading.Thread(target=self._run, name="metrics-port", daemon=True)
        self._thread.start()

    def serve(self, report: Callable[[], Report], state: Callable[[], Readiness]) -> None:
        """Start to answer.

        Args:
            report: returns the content of /metrics; called for each scrape, on the page's thread.
            state: returns the state of /readyz; called on the other thread, so it must not block.
        """
        self._report, self._state = report, state

    def close(self) -> None:
        """Close the port and its connections."""
        self._is_stopped = True
        self._waker.send(b"\0")
        self._thread.join()
        self._pages.shutdown(wait=False, cancel_futures=True)

    # The port's thread

    def _run(self) -> None:
        while not self._is_stopped:
            is_quiet = self._is_listening and not self._connections
            for key, _ in self._selector.select(None if is_quiet else _TICK_S):
                if key.fileobj is self._listener:
                    self._accept()
                elif key.fileobj is self._woken:
                    self._woken.recv(64)
                else:
                    self._guarded(self._go_on, key.data)
            while self._made:
                connection, answer = self._made.popleft()
                if connection.phase is Phase.PAGE:
                    self._guarded(partial(self._end_page, answer=answer), connection)
            self._sweep()
        for connection in [*self._connections]:
            self._close(connection)
        for each in (self._listener, self._selector, self._waker, self._woken):
            each.close()

    def _guarded(self, step: Callable[[_Connection], None], connection: _Connection) -> None:
        """Go on with a connection; one that fails is closed, and the port goes on."""
        try:
            step(connection)
        except BlockingIOError:
            self._watch(connection)
            return
        except OSError:
            self._close(connection)
        except Exception:
            _log.exception("a connection of the metrics port failed")
            self._close(connection)
        else:
            self._watch(connection)

    def _listen(self) -> None:
        if not self._is_listening:
            self._selector.register(self._listener, selectors.EVENT_READ)
            self._is_listening = True

    def _pause(self) -> None:
        """Leave new connections in the kernel's queue until another one closes, or a moment."""
        if self._is_listening:
            self._selector.unregister(self._listener)
            self._is_listening = False
            self._paused_until_s = time.monotonic() + _TICK_S

    def _accept(self) -> None:
        for _ in range(_MAX_ACCEPTED):
            is_full = len(self._connections) >= _MAX_CONNECTIONS
            replaceable = [each for each in self._connections if each.may_be_replaced]
            if is_full and not replaceable:
                self._pause()
                return
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError:  # no descriptors, or it was gone before it was accepted
                self._pause()
                return
            if is_full:
                self._close(min(replaceable, key=lambda each: each.since_s))
            sock.setblocking(False)
            connection = _Connection(sock)
            self._connections[connection] = None
            self._selector.register(sock, selectors.EVENT_READ, connection)

    def _sweep(self) -> None:
        now_s = time.monotonic()
        for connection in [each for each in self._connections if now_s >= each.end_s]:
            self._close(connection)
        if now_s >= self._paused_until_s:
            self._listen()

    def _close(self, connection: _Connection) -> None:
        if self._connections.pop(connection, self) is self:
            return
        connection.enter(Phase.CLOSED)
        if connection.socket in self._selector.get_map():
            self._selector.unregister(connection.socket)
        connection.socket.close()
        self._listen()

    def _watch(self, connection: _Connection) -> None:
        """Wait for the event that the phase of a connection goes on with."""
        if connection.phase is Phase.CLOSED:
            return
        mask = selectors.EVENT_WRITE if connection.output else selectors.EVENT_READ
        known = self._selector.get_map().get(connection.socket)
        if connection.phase is Phase.PAGE:
            if known is not None:
                self._selector.unregister(connection.socket)
        elif known is None:
            self._selector.register(connection.socket, mask, connection)
        elif known.events != mask:
            self._selector.modify(connection.socket, mask, connection)

    # Requests and answers

    def _go_on(self, connection: _Connection) -> None:
        if connection.phase is Phase.ANSWER:
            self._write(connection)
            self._answer_waiting(connection)
            return
        data = connection.socket.recv(_READ_BYTES)
        if not data:
            self._close(connection)
        elif connection.phase is not Phase.SHUT:
            if connection.phase is Phase.IDLE:
                connection.enter(Phase.HEAD)
            connection.received += data
            self._answer_waiting(connection)

    def _answer_waiting(self, connection: _Connection) -> None:
        """Answer the requests that have come whole, until one has to wait."""
        while connection.phase is Phase.HEAD:
            try:
                request = read_request(connection.received)
            except Refused as err:
                connection.is_last = connection.with_body = True
                self._reply(connection, Answer(f"{err}\n".encode(), status=err.status))
                return
            if request is None:
                return
            connection.is_last, connection.with_body = request.is_last, request.method != "HEAD"
            answer = self._answer(request)
            if answer is None:
                connection.enter(Phase.PAGE)
                accept = request.fields.get("accept", "")
                self._pages.submit(self._make_page, connection, accept)
            else:
                self._reply(connection, answer)

    def _answer(self, request: Request) -> Answer | None:
        """Answer a request; None for a page, which takes a moment."""
        host = request.fields.get("host", "")
        if host and not is_named(host, self._names):
            text = f"no server {host[:80]!r} here; see --http-host-name\n"
            return Answer(text.encode(), status=HTTPStatus.MISDIRECTED_REQUEST)
        if request.path not in ("/healthz", "/readyz", "/metrics"):
            return Answer(b"no such path\n", status=HTTPStatus.NOT_FOUND)
        if request.method not in ("GET", "HEAD"):
            return Answer(b"only by GET\n", status=HTTPStatus.METHOD_NOT_ALLOWED)
        if request.path == "/healthz":
            return Answer(b"alive\n")
        if request.path == "/readyz":
            return self._ready()
        if self._report is None:
            return Answer(b"starting\n", status=HTTPStatus.SERVICE_UNAVAILABLE)
        return None

    def _ready(self) -> Answer:
        state = self._state()
        lines = ["SERVING" if state.is_serving else "NOT_SERVING"]
        lines += [f"NOT_SERVING model {name}" for name in sorted(state.stuck_models)]
        status = HTTPStatus.OK if state.is_serving else HTTPStatus.SERVICE_UNAVAILABLE
        return Answer("".join(f"{line}\n" for line in lines).encode(), status=status)

    def _end_page(self, connection: _Connection, answer: Answer) -> None:
        self._reply(connection, answer)
        self._answer_waiting(connection)

    def _make_page(self, connection: _Connection, accept: str) -> None:
        """Make the metrics page, on its thread."""
        assert self._report is not None
        try:
            from serving.telemetry.exposition import encode

            kind, body = encode(self._report(), accept)
            answer = Answer(body, kind)
        except Exception:
            _log.exception("the metrics page failed")
            answer = Answer(b"internal error\n", status=HTTPStatus.INTERNAL_SERVER_ERROR)
        self._made.append((connection, answer))
        try:
            self._waker.send(b"\0")
        except OSError:  # the port is closed
            return

    def _reply(self, connection: _Connection, answer: Answer) -> None:
        head = "\r\n".join((*_head(answer, is_last=connection.is_last), "", "")).encode("latin-1")
        connection.output = head + answer.body if connection.with_body else head
        connection.enter(Phase.ANSWER)
        self._write(connection)

    def _write(self, connection: _Connection) -> None:
        sent = connection.socket.send(connection.output)
        connection.output = connection.output[sent:]
        if connection.output:
            return
        if connection.is_last:
            connection.enter(Phase.SHUT)
            connection.socket.shutdown(socket.SHUT_WR)
        else:
            connection.enter(Phase.HEAD if connection.received else Phase.IDLE)


def _head(answer: Answer, *, is_last: bool) -> Iterator[str]:
    yield f"HTTP/1.1 {answer.status.value} {answer.status.phrase}"
    yield time.strftime("date: %a, %d %b %Y %H:%M:%S GMT", time.gmtime())
    yield f"content-type: {answer.kind}"
    yield "x-content-type-options: nosniff"
    yield f"content-length: {len(answer.body)}"
    if answer.status == HTTPStatus.METHOD_NOT_ALLOWED:
        yield "allow: GET, HEAD"
    if is_last:
        yield "connection: close"
