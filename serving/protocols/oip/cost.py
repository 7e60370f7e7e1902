"""The cost of parsing a ModelInferRequest, estimated before it is parsed.

Protobuf makes an object for each element of a repeated message, so a few megabytes of outputs or
parameters take seconds. Images are bytes or packed numbers, which cost almost nothing.
"""

from collections.abc import Iterator

from serving.errors import InvalidRequest

_MAX_FIELDS = 64
"""The most fields of one message; clients send a handful."""
_MAX_OTHER_BYTES = 65_536
"""The most bytes besides the images: names, shapes, parameters, outputs."""

_INPUTS, _RAW_CONTENTS = 5, 7  # of ModelInferRequest
_CONTENTS = 5  # of InferInputTensor
_UINT_CONTENTS = 4  # of InferTensorContents
_FIXED_BYTES = {1: 8, 5: 4}
_VARINT, _DELIMITED = 0, 2


def check_cost(message: bytes) -> None:
    """Refuse a ModelInferRequest that is expensive to parse; leave malformed ones to the parser.

    Raises:
        InvalidRequest: too many fields, or too many bytes besides the images.
    """
    other = 0
    for number, start, end in _fields(message, 0, len(message)):
        if number == _INPUTS:
            other += _cost_of_input(message, start, end)
        elif number != _RAW_CONTENTS:
            other += end - start
        if other > _MAX_OTHER_BYTES:
            raise InvalidRequest(
                f"expected at most {_MAX_OTHER_BYTES} bytes beside the images, got more"
            )


def _cost_of_input(message: bytes, start: int, end: int) -> int:
    other = 0
    for number, first, last in _fields(message, start, end):
        if number != _CONTENTS:
            other += last - first
            continue
        for kind, begin, stop in _fields(message, first, last):
            other += stop - begin if kind != _UINT_CONTENTS else 0
    return other


def _fields(message: bytes, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, start and end of each field, up to the first malformed one.

    The encoding: https://protobuf.dev/programming-guides/encoding

    Raises:
        InvalidRequest: more than `_MAX_FIELDS`.
    """
    for _ in range(_MAX_FIELDS):
        if at >= end:
            return
        tag, at = _varint(message, at, end)
        number, kind = tag >> 3, tag & 7
        start = at
        if kind == _VARINT:
            _, at = _varint(message, at, end)
        elif kind == _DELIMITED:
            size, start = _varint(message, at, end)
            at = start + size
        else:
            at += _FIXED_BYTES.get(kind, end)
        if at > end:
            return
        yield number, start, at
    if at < end:
        raise InvalidRequest(f"expected at most {_MAX_FIELDS} fields in a message, got more")


def _varint(message: bytes, at: int, end: int) -> tuple[int, int]:
    """Return a number and where it ends; far past the end if it is malformed."""
    value = 0
    for shift in range(0, 70, 7):
        if at >= end:
            break
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    return 0, end + 1
