"""HTTP/2 frames (RFC 9113) and gRPC's request, as bytes."""

import struct
from dataclasses import dataclass

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_BYTES = 9
MAX_FRAME_BYTES = 16_384
DEFAULT_WINDOW, MAX_WINDOW = 65_535, 2**31 - 1
PREFIX_BYTES = 5
"""Before each gRPC message: not compressed, its length."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One gRPC call, as bytes."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method."""
    message: bytes
    """The request message."""
    streaming: bool = False
    """Whether the method takes and returns streams: then a call is one message of a stream."""
    tls: bool = False
    """Whether the connections are TLS; the server's certificate is not checked."""
    token: str = ""
    """What `authorization: Bearer` says; empty for no such header."""

    @property
    def body(self) -> bytes:
        """The message with gRPC's prefix."""
        return b"\0" + struct.pack(">I", len(self.message)) + self.message

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


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Put a frame's header before its payload."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload


def greeting() -> bytes:
    """Return a client's first bytes: no header table, no push, windows as wide as they go.

    Without a header table (RFC 7541, section 4.2) the trailers of right answers are the same bytes
    each time, so that they can be compared instead of decoded.
    """
    settings = ((1, 0), (2, 0), (4, MAX_WINDOW))
    payload = b"".join(struct.pack(">HI", *setting) for setting in settings)
    start = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" + frame(SETTINGS, 0, 0, payload)
    return start + widen(0, MAX_WINDOW - DEFAULT_WINDOW)


def widen(stream: int, by: int) -> bytes:
    """Make a WINDOW_UPDATE."""
    return frame(WINDOW_UPDATE, 0, stream, struct.pack(">I", by))


Frame = tuple[int, int, int, bytes]
"""Kind, flags, stream, payload."""


def split(data: bytes) -> tuple[list[Frame], bytes]:
    """Cut what was received into whole frames.

    Returns:
        The frames, and the bytes of one that has not arrived whole.
    """
    frames, at, end = [], 0, len(data) - HEADER_BYTES
    while at <= end:
        word, flags, stream = _HEADER.unpack_from(data, at)
        stop = at + HEADER_BYTES + (word >> 8)
        if stop > len(data):
            break
        frames.append((word & 0xFF, flags, stream, data[at + HEADER_BYTES : stop]))
        at = stop
    return frames, data[at:]


_HEADER = struct.Struct(">IBI")
