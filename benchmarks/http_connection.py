"""A connection of HTTP/1.1 and its calls, one at a time."""

import re
from collections.abc import Iterator, Sequence
from contextlib import suppress
from itertools import cycle
from time import perf_counter

from benchmarks.calls import CallRequest
from benchmarks.connections import DEADLINE_EXCEEDED, OK, READ_BYTES, UNKNOWN, Ended, connect

_LENGTH = re.compile(rb"\r\ncontent-length: *(\d+)", re.IGNORECASE)
_CHUNKED = re.compile(rb"\r\ntransfer-encoding: *chunked", re.IGNORECASE)
_END, _LINE = b"\r\n\r\n", b"\r\n"


class HttpConnection:
    """A connection with one POST in flight; the first call does not count."""

    def __init__(
        self, request: CallRequest, ended: Ended, callers: int = 1, timeout: str = ""
    ) -> None:
        """Connect, and have one call answered.

        Args:
            request: the call.
            ended: gets the latencies of the calls.
            callers: 1, since the next request follows the answer.
            timeout: empty, since HTTP has no deadlines.

        Raises:
            OSError: nobody answers there, or the call fails.
        """
        if callers != 1 or timeout:
            raise OSError("a connection of HTTP/1.1 has one call at a time, and no deadline")
        self.num_open = self.num_calls = 0
        self._address, self._ended, self._start_s = request.address, ended, 0.0
        self._requests: Iterator[bytes] = cycle(_requests_of(request))
        self._out, self._unread = memoryview(b""), b""
        self._socket = connect(request.address)
        self.close, self.fileno = self._socket.close, self._socket.fileno
        try:
            self._socket.sendall(next(self._requests))
            while (status := self._answered()) is None:
                self._read()
            if status != OK:
                raise ConnectionError(f"{request.address} fails on {request.path}")
        except BaseException:
            self.close()
            raise
        self._socket.setblocking(False)

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def free_capacity(self) -> int:
        """1, unless a call is in flight."""
        return 1 - self.num_open

    def send(self, start_s: Sequence[float]) -> None:
        """Send a call whose latency counts from this time; at most `free_capacity`."""
        (self._start_s,) = start_s
        self.num_open, self.num_calls = 1, self.num_calls + 1
        self._out = memoryview(next(self._requests))
        self.flush()

    def fill(self, now_s: float) -> None:
        """Send a call if none is in flight."""
        if not self.num_open:
            self.send([now_s])

    def flush(self) -> None:
        """Send the rest of a request, as far as the socket allows."""
        with suppress(BlockingIOError):
            while self._out:
                self._out = self._out[self._socket.send(self._out) :]

    def receive(self) -> None:
        """Take in what has come.

        Raises:
            OSError: the connection was closed.
        """
        with suppress(BlockingIOError):
            self._read()
        status = self._answered()
        if status is not None and self.num_open:
            self._end(status)

    def give_up(self, before_s: float) -> None:
        """Count the call in flight as late, if it started before a time."""
        if self.num_open and self._start_s < before_s:
            self._end(DEADLINE_EXCEEDED)

    def _end(self, status: int) -> None:
        self.num_open = 0
        self._ended.setdefault(status, []).append(perf_counter() - self._start_s)

    def _read(self) -> None:
        data = self._socket.recv(READ_BYTES)
        if not data:
            raise ConnectionError(f"{self._address} closed the connection")
        self._unread += data

    def _answered(self) -> int | None:
        """Take an answer that is whole, and return its status; None before that.

        Raises:
            ConnectionError: its length is unknown.
        """
        head, separator, body = self._unread.partition(_END)
        if not separator:
            return None
        if found := _LENGTH.search(head):
            end = int(found[1])
            is_whole = len(body) >= end
        elif _CHUNKED.search(head):
            end = _end_of_chunks(body)
            is_whole = end > 0
        else:
            raise ConnectionError(f"{self._address} answers without a length")
        if not is_whole:
            return None
        self._unread = body[end:]
        return OK if head.split(b" ", 2)[1] == b"200" else UNKNOWN


def _requests_of(request: CallRequest) -> Iterator[bytes]:
    host = ("host", request.address)
    lines = "".join(f"{name}: {text}\r\n" for name, text in (host, *request.headers))
    for body in request.bodies:
        head = f"POST {request.path} HTTP/1.1\r\n{lines}content-length: {len(body)}\r\n\r\n"
        yield head.encode() + body


def _end_of_chunks(body: bytes) -> int:
    """Return where the chunks end; 0 if the last one has not come."""
    at = 0
    while (line := body.find(_LINE, at)) >= 0:
        size = int(body[at:line].partition(b";")[0], 16)
        if not size:  # trailers are not used here
            return line + 4 if len(body) >= line + 4 else 0
        at = line + 2 + size + 2
    return 0
