"""HTTP/2 frames (RFC 9113) and gRPC's request, as bytes."""

import struct
from dataclasses import dataclass

DATA, HEADERS, RESET, SETTINGS, PING, GOAWAY, WINDOW_UPDATE = 0, 1, 3, 4, 6, 7, 8
END_STREAM, ACK, END_HEADERS = 0x1, 0x1, 0x4
HEADER_BYTES = 9
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

    @property
    def body(self) -> bytes:
        """The message with gRPC's prefix."""
        return b"\0" + struct.pack(">I", len(self.message)) + self.message

    def headers(self) -> bytes:
        """The header block, without Huffman coding and without entries for the header table."""
        return b"\x83\x86" + b"".join(  # :method POST, :scheme http
            name + bytes([len(value)]) + value
            for name, value in (
                (b"\x04", self.path.encode()),
                (b"\x01", self.address.encode()),
                (b"\x0f\x10", b"application/grpc"),  # content-type
                (b"\x00\x02te", b"trailers"),
            )
        )


def frame(kind: int, flags: int, stream: int, payload: bytes) -> bytes:
    """Put a frame's header before its payload."""
    return struct.pack(">IBI", len(payload) << 8 | kind, flags, stream) + payload
