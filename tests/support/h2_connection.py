"""A connection that sends any frames for a script, and records the replies."""

import socket
import struct
import time
from contextlib import suppress
from dataclasses import dataclass, field

import hpack
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import (
    ContinuationFrame,
    DataFrame,
    Frame,
    GoAwayFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH = "/digits.v1.DigitClassifier/Classify"

Headers = list[tuple[str, str]]


def request_headers(**changed):
    """The headers of a gRPC call; `changed` replaces by name (_ for -), None leaves one out."""
    headers: dict[str, str | None] = {
        ":method": "POST",
        ":scheme": "http",
        ":path": PATH,
        ":authority": "localhost",
        "content-type": "application/grpc",
        "te": "trailers",
    }
    headers |= {name.replace("__", ":").replace("_", "-"): v for name, v in changed.items()}
    return [(name, value) for name, value in headers.items() if value is not None]


def message(data, flag=0, length=None):
    """Frame a gRPC message, perhaps with a length that isn't its own."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


@dataclass
class Reply:
    """The data received on a stream."""

    headers: dict[str, str] = field(default_factory=dict)
    """Of all its header blocks, trailers included."""
    body: bytes = b""
    ended: bool = False
    """Whether the server has ended its side."""
    reset: int | None = None
    """The error code of its RST_STREAM."""

    @property
    def status(self):
        """The grpc-status, once it has come."""
        text = self.headers.get("grpc-status")
        return None if text is None else int(text)

    @property
    def is_over(self):
        """Whether no more will come."""
        return self.ended or self.reset is not None


class Connection:
    """A TCP connection to a server; nothing is checked on the way out."""

    def __init__(self, address, timeout_s, tls=None):
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.timeout_s = timeout_s
        if tls is not None:
            self.socket = tls.wrap_socket(self.socket, server_hostname=host)
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self.statuses: dict[int, int] = {}
        """The grpc-status by stream."""
        self.replies: dict[int, Reply] = {}
        """The replies, by stream."""
        self.goaways: list[int] = []
        """The last stream of each GOAWAY."""
        self.pongs: list[bytes] = []
        """The PINGs that were answered."""
        self.is_over = False
        """Whether the server has hung up."""
        self.num_credited = 0
        """Bytes that the server has added to the connection's window."""
        self.windows: dict[int, int] = {}
        """Bytes that `send_body` may send, by stream."""

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.socket.close()

    def send(self, *parts):
        """Send frames or bytes; some scripts expect the server to hang up meanwhile."""
        data = b"".join(p if isinstance(p, bytes) else p.serialize() for p in parts)
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def open(self, **settings):
        """Send the preface and SETTINGS, such as INITIAL_WINDOW_SIZE=0."""
        codes = {getattr(SettingsFrame, name): value for name, value in settings.items()}
        self.send(PREFACE, SettingsFrame(0, settings=codes))

    def open_wide(self):
        """Open windows that the caller need not update; the server's limits count, too."""
        self.open(INITIAL_WINDOW_SIZE=2**31 - 1)
        self.send(WindowUpdateFrame(0, window_increment=2**31 - 1 - 65_535))
        self.acknowledge()

    def encode(self, headers):
        """Encode a header block; each is encoded once, in the order of sending."""
        return self._encoder.encode(headers)

    def headers(self, stream, headers, *flags):
        """Build a HEADERS frame."""
        return HeadersFrame(stream, self.encode(headers), flags=["END_HEADERS", *flags])

    def call(self, stream, body, **changed):
        """Send a whole call."""
        head = self.headers(stream, request_headers(**changed))
        self.send(head, DataFrame(stream, body, flags=["END_STREAM"]))

    def wait(self, holds):
        """Read until something holds; fail if it never does."""
        deadline_s = time.monotonic() + self.timeout_s
        while not holds():
            assert not self.is_over, "the server hung up first"
            assert time.monotonic() < deadline_s, "it never happened"
            self._read_once(0.02)

    def acknowledge(self):
        """Wait for the server's SETTINGS and acknowledge them: its limits count from then on."""
        self.wait(lambda: self.num_credited > 0)
        self.send(SettingsFrame(0, flags=["ACK"]))

    def ping(self):
        """Wait until the server has answered a PING, and so everything before it."""
        num_pongs = len(self.pongs)
        self.send(PingFrame(0, bytes(8)))
        self.wait(lambda: len(self.pongs) > num_pongs)

    def receive(self):
        """Wait for something to come, and note it."""
        self.socket.settimeout(self.timeout_s)
        data = self.socket.recv(1 << 16)
        assert data, "the server hung up"
        self._received += data
        self._parse()

    def wait_closed(self):
        """Read until the server hangs up; fail if it never does."""
        deadline_s = time.monotonic() + self.timeout_s
        while not self.read(quiet_s=0.02):
            assert time.monotonic() < deadline_s, "it never hung up"

    def open_window(self, stream, num_bytes):
        """Record the stream windows that the server announces before reading."""
        self.windows[stream] = num_bytes

    def send_body(self, stream, body):
        """Send a message's bytes as the server's window lets them, and end the stream."""
        at = 0
        while at < len(body):
            self.wait(lambda: self.windows[stream] > 0)
            size = min(16_384, self.windows[stream])
            part = body[at : at + size]
            at += size
            self.windows[stream] -= size
            self.send(DataFrame(stream, part, flags=["END_STREAM"] if at >= len(body) else []))

    def reply(self, stream):
        """Wait for all that the server has to say on a stream."""
        reply = self.replies.setdefault(stream, Reply())
        self.wait(lambda: reply.is_over)
        return reply

    def read(self, quiet_s=0.15):
        """Read until the server is quiet or hangs up; note each status.

        Returns:
            True if it hung up.
        """
        while self._read_once(quiet_s):
            pass
        return self.is_over

    def _read_once(self, timeout_s):
        """Process one read; return False if it is empty."""
        self.socket.settimeout(timeout_s)
        try:
            data = self.socket.recv(1 << 16)
        except TimeoutError:
            return False
        except OSError:
            data = b""
        self.is_over = not data
        self._received += data
        self._parse()
        return not self.is_over

    def _parse(self):
        while len(self._received) >= 9:
            try:
                frame, length = Frame.parse_frame_header(memoryview(self._received[:9]))
            except HyperframeError:
                return
            if len(self._received) < 9 + length:
                return
            frame.parse_body(memoryview(self._received[9 : 9 + length]))
            self._received = self._received[9 + length :]
            if isinstance(frame, HeadersFrame | ContinuationFrame):
                headers = dict(self._decoder.decode(frame.data))
                if (status := headers.get("grpc-status")) is not None:  # type: ignore[call-overload]
                    self.statuses[frame.stream_id] = int(status)
                self.replies.setdefault(frame.stream_id, Reply()).headers.update(headers)
            elif isinstance(frame, DataFrame):
                self.replies.setdefault(frame.stream_id, Reply()).body += frame.data
            elif isinstance(frame, RstStreamFrame):
                self.replies.setdefault(frame.stream_id, Reply()).reset = frame.error_code
            elif isinstance(frame, GoAwayFrame):
                self.goaways.append(frame.last_stream_id)
            elif isinstance(frame, WindowUpdateFrame):
                if frame.stream_id:
                    window = self.windows.get(frame.stream_id, 0)
                    self.windows[frame.stream_id] = window + frame.window_increment
                else:
                    self.num_credited += frame.window_increment
            elif isinstance(frame, PingFrame) and "ACK" in frame.flags:
                self.pongs.append(frame.opaque_data)
            if frame.stream_id and "END_STREAM" in frame.flags:
                self.replies[frame.stream_id].ended = True
