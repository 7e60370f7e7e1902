"""The reason of an error on gRPC: google.rpc.ErrorInfo in the trailer grpc-status-details-bin.

The few fields are written and read here, since their package (googleapis-common-protos) would be a
dependency of every client. A `google.rpc.Status` has the code (1), the text (2) and details (3);
each detail is an `Any` of a type (1) and a value (2); an `ErrorInfo` has a reason (1), which is
stable where texts are not, and the domain (2) that defines it.
"""

import base64
import binascii
from collections.abc import Iterator
from functools import lru_cache

from serving.protocols import varint

TRAILER = "grpc-status-details-bin"
DOMAIN = "digit-serving"
_TYPE = b"type.googleapis.com/google.rpc.ErrorInfo"
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MAX_BYTES = 16 << 10
"""The longest trailer that is read."""


@lru_cache(maxsize=256)  # refusals come by the thousand
def encode(code: int, text: str, reason: str) -> str:
    """Write the trailer's value, in base64.

    Args:
        code: gRPC's status code.
        text: as in `grpc-message`: libraries compare both.
        reason: such as "OVERLOADED".
    """
    info = _field(1, reason.encode()) + _field(2, DOMAIN.encode())
    detail = _field(1, _TYPE) + _field(2, info)
    status = b"\x08" + varint(code) + _field(2, text.encode("utf-8", "replace"))
    return base64.b64encode(status + _field(3, detail)).decode().rstrip("=")


def decode(value: bytes | str) -> str:
    """Return the reason in a trailer's value, in base64; empty if there is none of this domain."""
    text = value.encode() if isinstance(value, str) else value
    try:
        return reason_in(base64.b64decode(text + b"=" * (-len(text) % 4), validate=True))
    except (binascii.Error, ValueError):
        return ""


def reason_in(status: bytes) -> str:
    """Return the reason in a `google.rpc.Status`; empty if there is none of this domain."""
    if len(status) > _MAX_BYTES:
        return ""
    try:
        for number, detail in _fields(status):
            parts = dict(_fields(detail)) if number == 3 else {}
            if parts.get(1) == _TYPE:
                info = dict(_fields(parts.get(2, b"")))
                if info.get(2) == DOMAIN.encode():
                    return info.get(1, b"").decode("ascii", "replace")
    except (IndexError, ValueError):
        pass
    return ""


def _field(number: int, content: bytes) -> bytes:
    return bytes([number << 3 | _BYTES]) + varint(len(content)) + content


def _fields(message: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield the number and the content of each field that is bytes; others are passed over.

    Raises:
        IndexError, ValueError: the message is malformed.
    """
    at = 0
    while at < len(message):
        tag, at = _read_varint(message, at)
        kind = tag & 7
        if kind == _BYTES:
            size, at = _read_varint(message, at)
            if at + size > len(message):
                raise ValueError("a field is longer than its message")
            yield tag >> 3, message[at : at + size]
            at += size
        elif kind == _VARINT:
            _, at = _read_varint(message, at)
        elif kind in (_FIXED64, _FIXED32):
            at += 8 if kind == _FIXED64 else 4
        else:
            raise ValueError(f"a field of the unknown kind {kind}")


def _read_varint(message: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = message[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
