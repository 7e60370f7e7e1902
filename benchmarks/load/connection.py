"""As much of an HTTP/2 client as a load generator needs, on a plain socket."""

import socket
from collections.abc import Iterable
from contextlib import suppress
from struct import Struct
from time import perf_counter

from serving.http2 import events, frames
from serving.http2.client_side import ClientConnection
from serving.http2.frames import MAX_WINDOW, word
from serving.http2.limits import Limits
from serving.http2.outgoing import Stream

_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0
_LIMITS = Limits(
    stream_window_bytes=MAX_WINDOW, connection_window_bytes=MAX_WINDOW,
    max_frame_bytes=frames.DEFAULT_FRAME, burst_small_frames=1 << 60,
)  # fmt: skip
"""Windows as wide as they go, and a server that is measured may send any number of frames."""
_HEADER = Struct(">IBI")
_OF_CALLS = (frames.DATA, frames.HEADERS, frames.RST_STREAM)

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


class Connection(ClientConnection):
    """Has settings, pings, windows and long bodies from the engine.

    The frames of calls pass it by, since they are alike: with it a call takes 15 us instead of 4.
    """

    def __init__(self, address: str) -> None:
        """Connect to host:port, and wait for the server's settings.

        The socket blocks until `start`.

        Raises:
            OSError: nobody answers there.
        """
        super().__init__(_LIMITS)
        self.address = address
        self._out, self._unread = memoryview(b""), b""
        host, _, port = address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        self.close, self.fileno = self._socket.close, self._socket.fileno
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            self.flush()
            while not self.is_established:
                self.read()
        except BaseException:
            self.close()
            raise

    def _settings(self) -> bytes:
        # Without a header table (RFC 7541, section 4.2) the trailers of right answers are the same
        # bytes each time, so that they can be compared instead of decoded.
        return super()._settings() + frames.HEADER_TABLE_SIZE.to_bytes(2, "big") + bytes(4)

    def start(self) -> None:
        """Stop blocking: until now, sending and receiving wait for up to 10 s."""
        self._socket.setblocking(False)

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def window(self) -> int:
        """How many bytes may be sent; 0 if something waits for the socket, or for a window."""
        return 0 if self._out or self.blocked else self._send_window

    def send(self, ready: bytes, num_bytes: int = 0) -> None:
        """Send frames, with as many bytes of data as `window` allows."""
        self._ready.append(ready)
        self._send_window -= num_bytes
        self.flush()

    def send_body(self, stream: int, body: bytes) -> None:
        """Send the data that end a stream, as the windows allow, sooner or later."""
        number = word(stream)
        self.streams[number] = Stream(None, MAX_WINDOW)
        self._send(number, body, b"")
        self.flush()

    def reset_all(self, streams: Iterable[int]) -> None:
        """Cancel calls."""
        cancel = word(frames.ErrorCode.CANCEL)
        for stream in map(word, streams):
            self._forget(stream)
            self._ready.append(frames.frame(frames.RST_STREAM, 0, stream, cancel))
        self.flush()

    def flush(self) -> None:
        """Send buffered bytes, as far as the socket allows."""
        with suppress(BlockingIOError):
            while self._out or self._ready:
                self._out = self._out or memoryview(self.data_to_send())
                self._out = self._out[self._socket.send(self._out) :]

    def read(self) -> list[Frame]:
        """Read once, then send bytes that windows had kept back.

        Returns:
            The frames that are about calls, not the connection's own business.

        Raises:
            OSError: the server has closed the connection, is about to, or breaks the protocol.
        """
        data, at, num_bytes = self._unread + self._read_socket(), 0, 0
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
                    num_bytes += end - begin
                if self.streams and (kind == frames.RST_STREAM or flags & frames.END_STREAM):
                    self._forget(word(stream))
            else:
                self._take(data[at:end])
            at = end
        self._unread = data[at:]
        self._use_window(num_bytes)
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
            found = self.receive(data, perf_counter())
        except frames.Http2Error as err:
            raise ConnectionError(f"{self.address}: {err}") from err
        if any(event[0] == events.GOAWAY for event in found):
            raise ConnectionError(f"{self.address} ends the connection")

    def _forget(self, stream: bytes) -> None:
        """Send nothing more on a stream that is over."""
        self.streams.pop(stream, None)
        self.blocked.pop(stream, None)

    def _is_idle(self, stream: bytes) -> bool:
        return False  # the engine does not know of all calls
