"""The longest messages, and the parsing of protobuf messages from a caller's bytes."""

from typing import Any

from google.protobuf.message import DecodeError

from serving.errors import InvalidRequest

SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the images or the answers of a message."""


def max_request_bytes(max_images: int, image_bytes: int) -> int:
    """Return the longest request message that is read.

    Twice the largest request that is answered: one that is a little too large gets a precise error.
    """
    return 2 * max_images * image_bytes + SPARE_BYTES


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
