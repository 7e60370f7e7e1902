"""A connection of HTTP/2 and its calls of gRPC: one core is to drive a fast server."""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from struct import Struct
from time import perf_counter

from benchmarks.calls import TIMEOUT, TRACE, CallRequest
from benchmarks.connections import DEADLINE_EXCEEDED, OK, READ_BYTES, UNKNOWN, Ended, connect
from serving.http2 import ErrorCode, Http2Error, Limits, events, frames
from serving.http2.client import ClientConnection
from serving.http2.frames import MAX_WINDOW, frame, word
from serving.http2.hpack import encode_literally

_LIMITS = Limits(
    stream_window_bytes=MAX_WINDOW,
    connection_window_bytes=MAX_WINDOW,
    header_table_bytes=0,
    max_frame_bytes=frames.DEFAULT_FRAME,
    burst_small_frames=1 << 60,
)
"""Windows as wide as they go, a server that is measured may send any number of frames, and the
trailers of right answers are the same bytes each time, compared instead of decoded."""
_ACKNOWLEDGED_BYTES = 1 << 28
"""Received before the connection's window is opened again."""
_HEADER = Struct(">IBI")
_OF_CALLS = (frames.DATA, frames.HEADERS, frames.RST_STREAM)
_CHUNK = 32
"""Calls that are sent at once."""
_STREAM_AT = 5
"""Where a frame has the number of its stream."""
_STATUS = re.compile(rb"(?:\x0bgrpc-status|\x88\x9a\xca\xc8\xb2\x124\xda\x8f)[\x01\x02](\d{1,2})")
"""In a header block: the name as it is or in Huffman's code, and the value."""
_TIMEOUT, _TRACE = TIMEOUT.encode(), TRACE[3:-3].encode()
_SPREAD = 0x9E3779B97F4A7C15F39CC0605CEDC835
"""Makes ids that look random of numbers: an odd number near 2^128 by the golden ratio."""


class GrpcConnection:
    """A connection and its calls; call N is stream 2 N + 1, and call 0 does not count.

    Settings, pings, windows and long requests are the engine's. The other frames of calls pass it
    by, since they are alike: with it a call takes 15 us, not 4.
    """

    def __init__(
        self, request: CallRequest, ended: Ended, callers: int = 1, timeout: str = ""
    ) -> None:
        """Connect, and have one call answered, without a deadline.

        Args:
            request: the call.
            ended: gets the latencies of the calls.
            callers: how many calls `fill` keeps in flight.
            timeout: `grpc-timeout` of the calls, such as "50m"; empty for none.

        Raises:
            OSError: nobody answers there, or the call fails.
        """
        self.num_open = 0
        """Calls in flight."""
        self._address = request.address
        self._ended, self._callers = ended, callers
        self._start_s = [0.0]  # of every call
        self._is_over = bytearray([True])  # likewise
        self._num_expired = 1  # calls before this one are past their deadline
        self._bodies, self._fields = request.bodies, request.fields(timeout)
        self._longest = max(map(len, self._bodies))
        self._is_small = self._longest <= frames.DEFAULT_FRAME
        self._own = request.has_new_headers
        self._engine = ClientConnection(_LIMITS)
        self._out, self._unread = memoryview(b""), b""
        self._ready: list[bytes] = []
        self._num_received = 0
        self._socket = connect(request.address)
        self.close, self.fileno = self._socket.close, self._socket.fileno
        try:
            self.flush()
            while not self._engine.is_established:
                self._read()
            # Without a header table, right answers have the same trailers each time.
            self._statuses = {self._call_once(request): OK}
        except BaseException:
            self.close()
            raise
        self._frames = self._frames_of(request)
        self._socket.setblocking(False)

    def _frames_of(self, request: CallRequest) -> list[list[bytes]]:
        """Return the frames of a call for each message, around the number of its stream."""
        block = encode_literally(self._fields)
        if self._own:  # as clients send them: what repeats as indexes, the rest as it is
            constant = replace(request, has_new_headers=False).fields()
            own = encode_literally(self._fields[len(constant) :])
            block = self._engine.encoder.encode(constant) + own  # sent before: no table changes
        headers = frame(frames.HEADERS, frames.END_HEADERS, bytes(4), block)
        first, rest = headers[:_STREAM_AT], headers[_STREAM_AT + 4 :]
        bodies = self._bodies if self._is_small else ()
        data = [frame(frames.DATA, frames.END_STREAM, bytes(4), body) for body in bodies]
        return [[first, rest + each[:_STREAM_AT], each[_STREAM_AT + 4 :]] for each in data]

    def _call_once(self, request: CallRequest) -> bytes:
        """Have a call answered; return its trailers."""
        self._engine.request(request.fields(), self._bodies[0])
        self.flush()
        has_message = False
        while True:
            for kind, flags, _, payload in self._read():
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
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def free_capacity(self) -> int:
        """How many calls can be sent now."""
        window = 0 if self._out or self._engine.blocked else self._engine.send_window
        fits = window // self._longest if self._is_small else window > 0
        return max(0, min(_CHUNK, self._engine.max_streams - self.num_open, fits))

    def send(self, start_s: Sequence[float]) -> None:
        """Send a call for each time that a latency counts from; at most `free_capacity`."""
        first = len(self._start_s)
        self._start_s += start_s
        self._is_over += bytes(len(start_s))
        self.num_open += len(start_s)
        number, bodies = len(self._bodies), self._bodies
        for call in range(first, len(self._start_s)):
            if self._is_small:
                frames_ = self._frames[call % number]
                self._ready.append(
                    word(2 * call + 1).join(_own_frames(frames_, call) if self._own else frames_)
                )
                self._engine.send_window -= len(bodies[call % number])
            else:
                self._engine.request(self._fields, bodies[call % number])
        self.flush()

    def fill(self, now_s: float) -> None:
        """Send as many calls as may be in flight."""
        while number := min(self._callers - self.num_open, self.free_capacity):
            self.send([now_s] * number)

    def flush(self) -> None:
        """Send buffered bytes, as far as the socket allows."""
        self._ready.append(self._engine.data_to_send())
        with suppress(BlockingIOError):
            while self._out or any(self._ready):
                if not self._out:
                    self._out = memoryview(b"".join(self._ready))
                    self._ready.clear()
                self._out = self._out[self._socket.send(self._out) :]

    def receive(self) -> None:
        """Take in the answers that have come.

        Raises:
            OSError: the connection was closed.
        """
        received, now_s = self._read(), perf_counter()
        for kind, flags, stream, payload in received:
            if kind == frames.RST_STREAM or (kind == frames.HEADERS and flags & frames.END_STREAM):
                status = UNKNOWN if kind == frames.RST_STREAM else self._status_of(payload)
                self._end(stream >> 1, status, now_s)

    def give_up(self, before_s: float) -> None:
        """Reset the calls in flight that started before a time: their deadline is exceeded."""
        call, now_s, cancel = self._num_expired, perf_counter(), word(ErrorCode.CANCEL)
        while call < len(self._start_s) and self._start_s[call] < before_s:
            if not self._is_over[call]:
                self._end(call, DEADLINE_EXCEEDED, now_s)
                stream = word(2 * call + 1)
                self._forget(stream)
                self._ready.append(frame(frames.RST_STREAM, 0, stream, cancel))
            call += 1
        self._num_expired = call
        self.flush()

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

    def _read(self) -> list[tuple[int, int, int, bytes]]:
        """Read once, then send bytes that windows had kept back.

        Returns:
            Kind, flags, stream and payload of the frames that are about calls, not the
            connection's own business.

        Raises:
            OSError: the server has closed the connection, is about to, or breaks the protocol.
        """
        with suppress(BlockingIOError):
            data = self._socket.recv(READ_BYTES)
            if not data:
                raise ConnectionError(f"{self._address} closed the connection")
            self._unread += data
        data, at, streams = self._unread, 0, self._engine.streams
        of_calls, last = [], len(data) - frames.FRAME_BYTES
        while at <= last:
            first, flags, stream = _HEADER.unpack_from(data, at)
            begin, kind = at + frames.FRAME_BYTES, first & 0xFF
            end = begin + (first >> 8)
            if end > len(data):
                break
            if kind in _OF_CALLS:
                of_calls.append((kind, flags, stream, data[begin:end]))
                if kind == frames.DATA:
                    self._num_received += end - begin
                if streams and (kind == frames.RST_STREAM or flags & frames.END_STREAM):
                    self._forget(word(stream))
            elif not stream or word(stream) in streams:  # the engine does not know of all calls
                self._take(data[at:end])
            at = end
        self._unread = data[at:]
        if self._num_received > _ACKNOWLEDGED_BYTES:
            more = word(self._num_received)
            self._ready.append(frame(frames.WINDOW_UPDATE, 0, frames.CONNECTION, more))
            self._num_received = 0
        self.flush()
        return of_calls

    def _take(self, data: bytes) -> None:
        try:
            found = self._engine.receive(data, perf_counter())
        except Http2Error as err:
            raise ConnectionError(f"{self._address}: {err}") from err
        if any(isinstance(event, events.GoAway) for event in found):
            raise ConnectionError(f"{self._address} ends the connection")

    def _forget(self, stream: bytes) -> None:
        """Send nothing more on a stream that is over."""
        self._engine.streams.pop(stream, None)
        self._engine.blocked.pop(stream, None)


def _own_frames(parts: Sequence[bytes], call: int) -> list[bytes]:
    """Return a call's frames with a deadline and a trace of its own: from 50 to 99 s."""
    trace = b"%032x-%016x" % (call * _SPREAD % (1 << 128), call * _SPREAD % (1 << 64))
    block = parts[1].replace(_TIMEOUT, b"%08du" % (99_999_999 - call % 50_000_000), 1)
    return [parts[0], block.replace(_TRACE, trace, 1), *parts[2:]]
