"""HTTP/2 on a plain socket that does not block, for generators whose frames are made beforehand."""

import socket
import struct
from collections.abc import Iterator

from benchmarks.load.frames import (
    ACK,
    DATA,
    DEFAULT_WINDOW,
    GOAWAY,
    MAX_WINDOW,
    PING,
    SETTINGS,
    WINDOW_UPDATE,
    Frame,
    Request,
    frame,
    greeting,
    split,
    widen,
)

_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0


class Peer:
    """A connection: windows, settings and pings; who uses it sends and takes the other frames."""

    def __init__(self, request: Request) -> None:
        """Connect, and wait for the server's settings; see `begin`.

        Raises:
            OSError: nobody answers there.
        """
        host, _, port = request.address.rpartition(":")
        self.address = request.address
        self.window = self.stream_window = DEFAULT_WINDOW
        """Bytes that may be sent: on the connection, and on stream 1."""
        self.max_streams = MAX_WINDOW
        self._out = memoryview(b"")
        self._rest = b""
        self._num_unacknowledged = 0
        self._is_greeted = False
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        try:
            self.send(greeting())
            while not self._is_greeted:
                list(self.receive())
        except BaseException:
            self.close()
            raise

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_full(self) -> bool:
        """Whether the socket has not taken all that was sent."""
        return bool(self._out)

    def send(self, data: bytes) -> None:
        """Send, or keep what the socket does not take; `flush` goes on with it."""
        if self._out:
            self._out = memoryview(bytes(self._out) + data)
        else:
            self._out = memoryview(data)
            self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the socket takes it."""
        try:
            while self._out:
                self._out = self._out[self._socket.send(self._out) :]
        except BlockingIOError:
            pass

    def receive(self) -> Iterator[Frame]:
        """Read once; yield the frames that are not the connection's own business.

        Raises:
            OSError: the server has closed the connection, or is about to.
        """
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        if not data:
            raise ConnectionError(f"{self.address} closed the connection")
        frames, self._rest = split(self._rest + data)
        for each in frames:
            kind, flags, stream, payload = each
            if kind == DATA:
                self._num_unacknowledged += len(payload)
                yield each
            elif kind == WINDOW_UPDATE:
                (more,) = struct.unpack(">I", payload)
                if stream == 0:
                    self.window += more
                elif stream == 1:
                    self.stream_window += more
            elif kind == SETTINGS:
                if not flags & ACK:
                    self._set(dict(struct.iter_unpack(">HI", payload)))
            elif kind == PING:
                if not flags & ACK:
                    self.send(frame(PING, ACK, 0, payload))
            elif kind == GOAWAY:
                raise ConnectionError(f"{self.address} ends the connection")
            else:
                yield each
        if self._num_unacknowledged > MAX_WINDOW // 2:
            self.send(widen(0, self._num_unacknowledged))
            self._num_unacknowledged = 0

    def _set(self, settings: dict[int, int]) -> None:
        self.max_streams = settings.get(3, self.max_streams)
        self.stream_window += settings.get(4, DEFAULT_WINDOW) - DEFAULT_WINDOW
        self._is_greeted = True
        self.send(frame(SETTINGS, ACK, 0, b""))

    def begin(self) -> None:
        """Block no more: until now, sending and receiving wait for up to 10 s."""
        self._socket.setblocking(False)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()
