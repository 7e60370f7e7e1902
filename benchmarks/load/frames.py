"""HTTP/2 frames (RFC 9113), and a call of gRPC as bytes."""

import struct
from dataclasses import dataclass

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
MAX_STREAMS, INITIAL_WINDOW = 3, 4
"""Settings."""
MAX_FRAME_BYTES = 16_384
DEFAULT_WINDOW, MAX_WINDOW = 65_535, 2**31 - 1
STREAM_AT = 5
"""Where a frame has the number of its stream, 4 bytes."""
PREFIX_BYTES = 5
"""Before each gRPC message: not compressed, its length."""

Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""

_HEADER = struct.Struct(">IBI")


@dataclass(frozen=True, slots=True)
class Request:
    """One gRPC call."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method."""
    message: bytes
    """The request message."""
    tls: bool = False
    """Whether the connections are TLS; the server's certificate is not checked."""
    token: str = ""
    """What `authorization: Bearer` says; empty for no such header."""

    @property
    def is_streaming(self) -> bool:
        """Whether the method takes and returns streams: then a call is one message of a stream."""
        return "Stream" in self.path

    @property
    def body(self) -> bytes:
        """The message with gRPC's prefix."""
        return b"\0" + len(self.message).to_bytes(4, "big") + self.message

    def headers(self, timeout: str = "") -> bytes:
        """Return the header block, without Huffman coding and without entries for the header table.

        Args:
            timeout: the value of `grpc-timeout`, such as "50m"; empty for no such header.
        """
        fields = [
            (b"\x04", self.path),
            (b"\x01", self.address),
            (b"\x0f\x10", "application/grpc"),  # content-type
            (b"\x00\x02te", "trailers"),
        ]
        if self.token:
            fields.append((b"\x0f\x08", f"Bearer {self.token}"))  # authorization
        if timeout:
            fields.append((b"\x00\x0cgrpc-timeout", timeout))
        scheme = b"\x87" if self.tls else b"\x86"
        return b"\x83" + scheme + b"".join(name + _string(value) for name, value in fields)


def _string(text: str) -> bytes:
    """Write a string of a header block (RFC 7541, section 5.2), of at most 254 bytes."""
    size = len(text)
    return (bytes([size]) if size < 127 else bytes([127, size - 127])) + text.encode()


def pack(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Put a frame's header before its payload."""
    return _HEADER.pack(len(payload) << 8 | kind, flags, stream) + payload


def preface() -> bytes:
    """Return a client's first bytes: no header table, no push, windows as wide as they go.

    Without a header table (RFC 7541, section 4.2) the trailers of right answers are the same bytes
    each time, so that they can be compared instead of decoded.
    """
    settings = ((1, 0), (2, 0), (INITIAL_WINDOW, MAX_WINDOW))
    payload = b"".join(struct.pack(">HI", *setting) for setting in settings)
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + pack(SETTINGS, 0, 0, payload)
    return start + widen(0, MAX_WINDOW - DEFAULT_WINDOW)


def widen(stream: int, by: int) -> bytes:
    """Make a WINDOW_UPDATE."""
    return pack(WINDOW_UPDATE, 0, stream, by.to_bytes(4, "big"))


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """Cut what was received into whole frames.

    Returns:
        The frames, and the bytes of one that has not arrived whole.
    """
    frames, at, end = [], 0, len(data) - _HEADER.size
    while at <= end:
        word, flags, stream = _HEADER.unpack_from(data, at)
        begin = at + _HEADER.size
        stop = begin + (word >> 8)
        if stop > len(data):
            break
        frames.append((word & 0xFF, flags, stream, data[begin:stop]))
        at = stop
    return frames, data[at:]
