"""Messages of gRPC in their frames: a flag for compression, the length, the message."""

import struct

_PREFIX = struct.Struct(">BI")
"""Before each message: the flag for no compression, and the length."""
PREFIX_BYTES = _PREFIX.size


def frame(message: bytes) -> bytes:
    """Put gRPC's prefix before a message."""
    return frame_prefix(len(message)) + message


def frame_prefix(num_bytes: int) -> bytes:
    """Return gRPC's prefix of a message of a length."""
    return _PREFIX.pack(0, num_bytes)
