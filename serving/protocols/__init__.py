"""Protocols, from bytes to rows and from answers to bytes; here, how protobuf messages are read."""

from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import InvalidRequest


def parse(message_class: Any, data: bytes) -> Any:
    """Parse a message.

    Raises:
        InvalidRequest: malformed; the text names the expected message.
    """
    try:
        return message_class.FromString(data)
    except DecodeError as err:
        name = message_class.DESCRIPTOR.full_name
        article = "an" if name[0] in "aeiou" else "a"
        raise InvalidRequest(
            f"expected {article} {name}, got {len(data)} bytes that are none"
        ) from err


def varint(number: int) -> bytes:
    """Encode a number as protobuf does: seven bits a byte, the lowest first."""
    encoded = bytearray()
    while number > 0x7F:
        encoded.append(number & 0x7F | 0x80)
        number >>= 7
    encoded.append(number)
    return bytes(encoded)
