"""As much of an HTTP/2 client as a load generator needs, on a plain socket or TLS."""

import socket
import ssl
import struct
from contextlib import suppress

from benchmarks.load import frames
from benchmarks.load.frames import Frame, Request

_READ_BYTES = 256 << 10
_TIMEOUT_S = 10.0


class Connection:
    """Keeps windows, settings and pings; its owner sends calls and takes the frames of answers.

    It watches the window of one stream, since more than one body is never on its way: small ones
    are sent whole, in any window.
    """

    def __init__(self, request: Request) -> None:
        """Connect, and wait for the server's settings. The socket blocks until `start`.

        Raises:
            OSError: nobody answers there.
        """
        self.address = request.address
        self.window = self.stream_window = self._initial_window = frames.DEFAULT_WINDOW
        """Bytes that may be sent: on the connection, and on the stream that `watch` named."""
        self.max_streams = frames.MAX_WINDOW
        self.widened = [0]
        """Whose windows are widened by all DATA that comes: the connection, and a long stream."""
        self._out, self._body = memoryview(b""), memoryview(b"")
        self._stream = self._flags = 0  # of the body
        self._rest = b""
        self._num_received = 0  # bytes of DATA since the last WINDOW_UPDATE
        self._has_settings = False
        host, _, port = request.address.rpartition(":")
        self._socket = socket.create_connection((host.strip("[]"), int(port)), _TIMEOUT_S)
        try:
            self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if request.tls:
                self._socket = _trusting_context().wrap_socket(self._socket)
            self.send(frames.preface())
            while not self._has_settings:
                self.receive()
        except BaseException:
            self.close()
            raise

    def start(self) -> None:
        """Stop blocking: until now, sending and receiving wait for up to 10 s."""
        self._socket.setblocking(False)

    def close(self) -> None:
        """Close the socket."""
        self._socket.close()

    def fileno(self) -> int:
        """Return the socket's descriptor."""
        return self._socket.fileno()

    @property
    def is_blocked(self) -> bool:
        """Whether the socket has not taken all that it was given."""
        return bool(self._out)

    @property
    def is_full(self) -> bool:
        """Whether something waits for the socket, or for a window."""
        return bool(self._out or self._body)

    def send(self, data: bytes) -> None:
        """Send, or keep what the socket does not take; `flush` sends that later."""
        self._out = memoryview(bytes(self._out) + data if self._out else data)
        self.flush()

    def watch(self, stream: int) -> None:
        """Name the stream whose body is sent next."""
        self._stream, self.stream_window = stream, self._initial_window

    def send_body(self, body: bytes, flags: int) -> None:
        """Send a body on the watched stream, as the windows allow, with flags on its last frame."""
        self._body, self._flags = memoryview(body), flags
        self.flush()

    def flush(self) -> None:
        """Send what was kept, as far as the socket and the windows allow."""
        with suppress(BlockingIOError, ssl.SSLWantWriteError):
            while self._out or self._cut():
                self._out = self._out[self._socket.send(self._out) :]

    def _cut(self) -> bool:
        """Make frames of the next part of the body; return whether there were any."""
        room, parts = min(self.window, self.stream_window, len(self._body)), []
        for begin in range(0, room, frames.MAX_FRAME_BYTES):
            part = bytes(self._body[begin : min(begin + frames.MAX_FRAME_BYTES, room)])
            flags = self._flags if begin + len(part) == len(self._body) else 0
            parts.append(frames.pack(frames.DATA, flags, self._stream, part))
        if parts:
            self._out, self._body = memoryview(b"".join(parts)), self._body[room:]
            self.window -= room
            self.stream_window -= room
        return bool(parts)

    def receive(self) -> list[Frame]:
        """Read once, then send what windows had kept.

        Returns:
            The frames that are about calls, not the connection's own business.

        Raises:
            OSError: the server has closed the connection, or is about to.
        """
        received, self._rest = frames.split(self._rest + self._read())
        of_calls = []
        for each in received:
            kind, flags, stream, payload = each
            if kind >= frames.SETTINGS:
                self._take(*each)
                continue
            of_calls.append(each)
            if kind == frames.DATA:
                self._num_received += len(payload)
            if stream == self._stream and (kind == frames.RESET or flags & frames.END_STREAM):
                self._body = self._body[:0]  # it was answered before it was sent whole
        if self._num_received > frames.MAX_WINDOW // 2:
            for stream in self.widened:
                self.send(frames.widen(stream, self._num_received))
            self._num_received = 0
        self.flush()
        return of_calls

    def _read(self) -> bytes:
        try:
            data = self._socket.recv(_READ_BYTES)
            while isinstance(self._socket, ssl.SSLSocket) and (more := self._socket.pending()):
                data += self._socket.recv(more)
        except (BlockingIOError, ssl.SSLWantReadError):
            return b""
        if not data:
            raise ConnectionError(f"{self.address} closed the connection")
        return data

    def _take(self, kind: int, flags: int, stream: int, payload: bytes) -> None:
        if kind == frames.WINDOW_UPDATE:
            (more,) = struct.unpack(">I", payload)
            if stream == 0:
                self.window += more
            elif stream == self._stream:
                self.stream_window += more
        elif kind == frames.SETTINGS and not flags & frames.ACK:
            settings = dict(struct.iter_unpack(">HI", payload))
            more = settings.get(frames.INITIAL_WINDOW, self._initial_window) - self._initial_window
            self._initial_window += more
            self.stream_window += more
            self.max_streams = settings.get(frames.MAX_STREAMS, self.max_streams)
            self._has_settings = True
            self.send(frames.pack(frames.SETTINGS, frames.ACK, 0, b""))
        elif kind == frames.PING and not flags & frames.ACK:
            self.send(frames.pack(frames.PING, frames.ACK, 0, payload))
        elif kind == frames.GOAWAY:
            raise ConnectionError(f"{self.address} ends the connection")


def _trusting_context() -> ssl.SSLContext:
    """Make a context that takes any certificate: what is measured is a server of ours."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    return context
