"""As much of an HTTP/2 client as a load generator needs, on a plain socket."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from struct import Struct
from time import perf_counter

from serving.http2 import ClientConnection, ErrorCode, Http2Error, Limits, events, frames
from serving.http2.frames import MAX_WINDOW, word
from serving.http2.hpack import Fields

_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0
_LIMITS = Limits(
    stream_window_bytes=MAX_WINDOW, connection_window_bytes=MAX_WINDOW, header_table_bytes=0,
    max_frame_bytes=frames.DEFAULT_FRAME, burst_small_frames=1 << 60,
)  # fmt: skip
"""Windows as wide as they go, a server that is measured may send any number of frames, and the
trailers of right answers are the same bytes each time, compared instead of decoded."""
_ACKNOWLEDGED_BYTES = 1 << 28
"""Received before the connection's window is opened again."""
_HEADER = Struct(">IBI")
_OF_CALLS = (frames.DATA, frames.HEADERS, frames.RST_STREAM)

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


class CallConnection:
    """A socket, whose settings, pings, windows and long requests are the engine's.

    The other frames of calls pass it by, since they are alike: with it a call takes 15 us, not 4.
    """

    def __init__(self, address: str) -> None:
        """Connect to host:port, and wait for the server's settings.

        The socket blocks until `start`.

        Raises:
            OSError: nobody answers there.
        """
        self.address = address
        self._engine = ClientConnection(_LIMITS)
        self._out, self._unread = memoryview(b""), b""
        self._ready: list[bytes] = []
        self._num_received = 0
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        self.close, self.fileno = self._socket.close, self._socket.fileno
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.flush()
            while not self._engine.is_established:
                self.read()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Stop blocking: until now, sending and receiving wait for up to 10 s."""
        self._socket.setblocking(False)

    @property
    def max_streams(self) -> int:
        """The most calls that the server lets us have in flight."""
        return self._engine.max_streams

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def window(self) -> int:
        """How many bytes may be sent; 0 if something waits for the socket, or for a window."""
        return 0 if self._out or self._engine.blocked else self._engine.send_window

    def send(self, ready: bytes, num_bytes: int) -> None:
        """Send frames, with as many bytes of data as `window` allows."""
        self._ready.append(ready)
        self._engine.send_window -= num_bytes
        self.flush()

    def request(self, fields: Fields, body: bytes) -> None:
        """Send a long request, as the windows allow, sooner or later; its stream is the next."""
        self._engine.request(fields, body)
        self.flush()

    def reset_all(self, streams: Iterable[int]) -> None:
        """Cancel calls."""
        cancel = word(ErrorCode.CANCEL)
        for stream in map(word, streams):
            self._forget(stream)
            self._ready.append(frames.frame(frames.RST_STREAM, 0, stream, cancel))
        self.flush()

    def flush(self) -> None:
        """Send buffered bytes, as far as the socket allows."""
        self._ready.append(self._engine.data_to_send())
        with suppress(BlockingIOError):
            while self._out or any(self._ready):
                if not self._out:
                    self._out = memoryview(b"".join(self._ready))
                    self._ready.clear()
                self._out = self._out[self._socket.send(self._out) :]

    def read(self) -> list[Frame]:
        """Read once, then send bytes that windows had kept back.

        Returns:
            The frames that are about calls, not the connection's own business.

        Raises:
            OSError: the server has closed the connection, is about to, or breaks the protocol.
        """
        data, at, streams = self._unread + self._read_socket(), 0, self._engine.streams
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
            self._ready.append(frames.frame(frames.WINDOW_UPDATE, 0, frames.CONNECTION, more))
            self._num_received = 0
        self.flush()
        return of_calls

    def _read_socket(self) -> bytes:
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return b""
        if not data:
            raise ConnectionError(f"{self.address} closed the connection")
        return data

    def _take(self, data: bytes) -> None:
        """Take a frame of the connection."""
        try:
            found = self._engine.receive(data, perf_counter())
        except Http2Error as err:
            raise ConnectionError(f"{self.address}: {err}") from err
        if any(event[0] == events.GOAWAY for event in found):
            raise ConnectionError(f"{self.address} ends the connection")

    def _forget(self, stream: bytes) -> None:
        """Send nothing more on a stream that is over."""
        self._engine.streams.pop(stream, None)
        self._engine.blocked.pop(stream, None)
