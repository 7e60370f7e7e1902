"""Requests compressed with gzip: unpacked up to the length that they claim, and no further.

A gzip member ends with the length of its content (RFC 1952, section 2.3.1), so a request that is
too large is refused before a byte of it is unpacked, and the bytes that it will take are counted
first. One that claims too little is malformed.
"""

import zlib

from serving.errors import InvalidRequest, TooLarge

FEW_BYTES = 32 << 10
"""Bytes that the loop itself unpacks: some 100 µs."""
_GZIP = 31
"""zlib's number for the format with a header of gzip."""
_MAGIC = b"\x1f\x8b\x08"
"""How a member begins: two numbers, and the method."""
_LEAST_BYTES, _LENGTH_BYTES = 18, 4
"""Bytes of a member's header and its end, and of the length in that end."""
_MAX_RATIO = 1032
"""How much deflate compresses at most (zlib's technical notes)."""
_MALFORMED = "expected a request of gzip, in one piece: {}"


def num_bytes_in(packed: bytes, limit: int) -> int:
    """Return how many bytes a request says that it has, unpacked.

    Raises:
        InvalidRequest: it can't have as many.
        TooLarge: they are more than `limit`.
    """
    if len(packed) < _LEAST_BYTES or not packed.startswith(_MAGIC):
        raise InvalidRequest(_MALFORMED.format("it does not begin as such"))
    size = int.from_bytes(packed[-_LENGTH_BYTES:], "little")
    if size > limit:
        raise TooLarge(f"expected a message of at most {limit} bytes, got {size}, unpacked")
    if size > _MAX_RATIO * len(packed):
        raise InvalidRequest(_MALFORMED.format(f"{len(packed)} bytes can't hold {size}"))
    return size


def unpack(packed: bytes, num_bytes: int) -> bytes:
    """Unpack a request of as many bytes; it never makes more than one byte beyond them.

    Raises:
        InvalidRequest: it is no gzip, has another length, or more follows behind it.
    """
    unpacker = zlib.decompressobj(_GZIP)
    try:
        content = unpacker.decompress(packed, num_bytes + 1)
    except zlib.error as err:
        raise InvalidRequest(_MALFORMED.format(err)) from err
    if len(content) != num_bytes or not unpacker.eof or unpacker.unused_data:
        raise InvalidRequest(_MALFORMED.format("its length is another one"))
    return content
