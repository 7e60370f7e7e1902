"""gRPC's messages in the bytes of a stream: a flag, a length, and as many bytes."""

from serving.transports.h2 import status
from serving.transports.h2.status import Status

PREFIX_BYTES = 5
"""Before each message: whether it is compressed, and its length."""


def length_of(data: bytes | bytearray, at: int, max_bytes: int) -> int | Status:
    """Read the prefix at `at`: the message's length, or why there can be no such message."""
    length = int.from_bytes(data[at + 1 : at + PREFIX_BYTES], "big")
    if data[at]:
        return status.COMPRESSED if data[at] == 1 else status.MALFORMED
    return length if length <= max_bytes else status.too_long(length, max_bytes)


def flaw(data: bytes | bytearray, max_bytes: int, *, ended: bool) -> Status | None:
    """Say what is wrong with a unary call's bytes so far; None while they may become a message.

    Args:
        data: the bytes.
        max_bytes: the longest message.
        ended: whether no more will come.
    """
    if len(data) < PREFIX_BYTES:
        if not ended:
            return None
        return status.TRUNCATED if data else status.NOT_ONE_MESSAGE
    length = length_of(data, 0, max_bytes)
    if isinstance(length, Status):
        return length
    missing = PREFIX_BYTES + length - len(data)
    if missing < 0:
        return status.NOT_ONE_MESSAGE
    return status.TRUNCATED if ended and missing else None
