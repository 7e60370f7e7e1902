"""A connection that sends whatever frames a script likes, and notes what comes back."""

import socket
import struct
from contextlib import suppress
from typing import Self

import hpack
from hyperframe.exceptions import HyperframeError
from hyperframe.frame import ContinuationFrame, DataFrame, Frame, HeadersFrame, SettingsFrame

PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
PATH = "/digits.v1.DigitClassifier/Classify"

Headers = list[tuple[str, str]]


def request_headers(**changed: str | None) -> Headers:
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


def message(data: bytes, flag: int = 0, length: int | None = None) -> bytes:
    """Frame a gRPC message, perhaps with a length that isn't its own."""
    return struct.pack(">BI", flag, len(data) if length is None else length) + data


class Connection:
    """A TCP connection to a server; nothing is checked on the way out."""

    def __init__(self, address: str, timeout_s: float) -> None:
        host, _, port = address.rpartition(":")
        self.socket = socket.create_connection((host, int(port)), timeout_s)
        self._encoder = hpack.Encoder()
        self._decoder = hpack.Decoder()
        self._received = b""
        self.statuses: dict[int, int] = {}
        """The grpc-status by stream."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.socket.close()

    def send(self, *parts: bytes | Frame) -> None:
        """Send frames or bytes; a server that hung up meanwhile is what some scripts are for."""
        data = b"".join(p if isinstance(p, bytes) else p.serialize() for p in parts)
        with suppress(ConnectionError):
            self.socket.sendall(data)

    def open(self, **settings: int) -> None:
        """Send the preface and SETTINGS, such as INITIAL_WINDOW_SIZE=0."""
        codes = {getattr(SettingsFrame, name): value for name, value in settings.items()}
        self.send(PREFACE, SettingsFrame(0, settings=codes))

    def encode(self, headers: Headers) -> bytes:
        """Encode a header block; each is encoded once, in the order of sending."""
        return self._encoder.encode(headers)

    def headers(self, stream: int, headers: Headers, *flags: str) -> HeadersFrame:
        """Build a HEADERS frame."""
        return HeadersFrame(stream, self.encode(headers), flags=["END_HEADERS", *flags])

    def call(self, stream: int, body: bytes, **changed: str | None) -> None:
        """Send a whole call."""
        head = self.headers(stream, request_headers(**changed))
        self.send(head, DataFrame(stream, body, flags=["END_STREAM"]))

    def read(self, quiet_s: float = 0.15) -> bool:
        """Read until the server is quiet or hangs up; note each status.

        Returns:
            True if it hung up.
        """
        self.socket.settimeout(quiet_s)
        while True:
            try:
                data = self.socket.recv(1 << 16)
            except TimeoutError:
                return False
            except ConnectionError:
                return True
            if not data:
                return True
            self._received += data
            self._parse()

    def _parse(self) -> None:
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
