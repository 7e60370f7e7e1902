"""Unary calls on one connection: one request, sent many times.

The frames are made beforehand and only get the numbers of their streams, so that one core can
offer some 200,000 calls a second.
"""

import re
from collections.abc import Sequence
from time import perf_counter

from benchmarks.load.connection import CallConnection
from benchmarks.load.trace import Call
from serving.http2 import frames
from serving.http2.frames import frame, word
from serving.http2.hpack import encode_literally

OK, DEADLINE_EXCEEDED, UNKNOWN = 0, 4, -1
"""Statuses of gRPC, and of calls that ended without one."""
Ended = dict[int, list[float]]
"""By status: the latencies in seconds of the calls that ended with it."""

_CHUNK = 32
"""Calls that are sent at once."""
_STREAM_AT = 5
"""Where a frame has the number of its stream."""
_STATUS = re.compile(rb"(?:\x0bgrpc-status|\x88\x9a\xca\xc8\xb2\x124\xda\x8f)[\x01\x02](\d{1,2})")
"""In a header block: the name as it is or in Huffman's code, and the value."""


class Calls:
    """The calls on one connection; call N is stream 2 N + 1, and call 0 does not count."""

    def __init__(
        self, connection: CallConnection, request: Call, ended: Ended, callers: int = 1,
        timeout: str = "",
    ) -> None:  # fmt: skip
        """Have one call answered, without a deadline.

        Args:
            connection: a new one, which still blocks.
            request: the call.
            ended: gets the latencies of the calls.
            callers: how many calls `fill` keeps in flight.
            timeout: `grpc-timeout` of the calls, such as "50m"; empty for none.

        Raises:
            OSError: the call fails.
        """
        self.connection = connection
        self.num_open = 0
        """Calls in flight."""
        self._ended, self._callers = ended, callers
        self._start_s = [0.0]  # of every call
        self._is_over = bytearray([True])  # likewise
        self._num_expired = 1  # calls before this one are past their deadline
        self._body = request.body
        self._is_small = len(self._body) <= frames.DEFAULT_FRAME
        self._fields = request.fields(timeout)
        headers = frame(
            frames.HEADERS, frames.END_HEADERS, bytes(4), encode_literally(self._fields)
        )
        body = frame(frames.DATA, frames.END_STREAM, bytes(4), self._body)
        # The frames of a call around the number of its stream.
        self._parts = [headers[:_STREAM_AT], headers[_STREAM_AT + 4 :]]
        if self._is_small:
            self._parts[1] += body[:_STREAM_AT]
            self._parts.append(body[_STREAM_AT + 4 :])
        # Without a header table, right answers have the same trailers each time.
        self._statuses = {self._call_once(request): OK}

    def _call_once(self, request: Call) -> bytes:
        """Have a call answered; return its trailers."""
        self.connection.request(request.fields(), self._body)
        has_message = False
        while True:
            for kind, flags, _, payload in self.connection.read():
                has_message |= kind == frames.DATA
                if kind == frames.RST_STREAM or flags & frames.END_STREAM:
                    if has_message and kind == frames.HEADERS:
                        return payload
                    raise ConnectionError(f"{request.address} fails on {request.path}")

    @property
    def num_calls(self) -> int:
        """How many calls were sent."""
        return len(self._start_s) - 1

    @property
    def free_capacity(self) -> int:
        """How many calls can be sent now."""
        window = self.connection.window
        fits = window // len(self._body) if self._is_small else window > 0
        return max(0, min(_CHUNK, self.connection.max_streams - self.num_open, fits))

    def send(self, start_s: Sequence[float]) -> None:
        """Send a call for each time that a latency counts from; at most `free_capacity`."""
        first, connection = len(self._start_s), self.connection
        self._start_s += start_s
        self._is_over += bytes(len(start_s))
        self.num_open += len(start_s)
        if self._is_small:
            calls = b"".join(
                word(2 * call + 1).join(self._parts) for call in range(first, len(self._start_s))
            )
            connection.send(calls, len(start_s) * len(self._body))
        else:
            connection.request(self._fields, self._body)

    def fill(self, now_s: float) -> None:
        """Send as many calls as may be in flight."""
        while number := min(self._callers - self.num_open, self.free_capacity):
            self.send([now_s] * number)

    def receive(self) -> None:
        """Take in the answers that have come.

        Raises:
            OSError: the connection was closed.
        """
        received, now_s = self.connection.read(), perf_counter()
        for kind, flags, stream, payload in received:
            if kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & frames.END_STREAM):
                status = UNKNOWN if kind == frames.RST_STREAM else self._status_of(payload)
                self._end(stream >> 1, status, now_s)

    def _status_of(self, trailers: bytes) -> int:
        """Read a call's status from its last header block, and keep it: few differ."""
        if trailers not in self._statuses:
            found = _STATUS.search(trailers)
            self._statuses[trailers] = int(found[1]) if found else UNKNOWN
        return self._statuses[trailers]

    def _end(self, call: int, status: int, now_s: float) -> None:
        """Note how a call ended, unless it has ended before."""
        if not self._is_over[call]:
            self._is_over[call] = True
            self.num_open -= 1
            self._ended.setdefault(status, []).append(now_s - self._start_s[call])

    def give_up(self, before_s: float) -> None:
        """Reset the calls in flight that started before a time: their deadline is exceeded."""
        late, call, now_s = [], self._num_expired, perf_counter()
        while call < len(self._start_s) and self._start_s[call] < before_s:
            if not self._is_over[call]:
                self._end(call, DEADLINE_EXCEEDED, now_s)
                late.append(2 * call + 1)
            call += 1
        self._num_expired = call
        self.connection.reset_all(late)
