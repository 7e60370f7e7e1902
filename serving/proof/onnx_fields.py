"""Parts of an ONNX file, found without reading the whole: its fields."""

import io
import time
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of protobuf's fields."""
_FUNCTIONS = 25
"""ModelProto.functions."""
_MAX_FIELDS = 1 << 18
"""Fields of one file that are looked at: a graph of 20,000 weights has these; half a second."""
_FIELDS_AT_ONCE = 256
"""Looked at before other threads, such as the one that answers calls, have the interpreter."""


class Fields:
    """The fields of one file, as many of them as are looked at in all."""

    def __init__(self, file: BinaryIO, most: int = _MAX_FIELDS) -> None:
        """Take a file that is open."""
        self.file = file
        self._left = self._most = most

    def of(self, at: int, end: int) -> Iterator[tuple[int, int, int]]:
        """Yield number, begin and end of each field of a message that is bytes, without its bytes.

        Raises:
            ValueError: it is not a message, not all of one, or has too many fields.
        """
        file = self.file
        while at < end:
            self._take()
            file.seek(at)
            first = file.read(20)
            tag, length = _varint(first, 0)
            kind = tag & 7
            if tag < 8:  # field 0: no message has it, but zeros, two bytes a step, look like it
                raise ValueError("it is not an ONNX file")
            if kind == _BYTES:
                size, used = _varint(first, length)
                yield tag >> 3, at + used, at + used + size
                at += used + size
            elif kind == _VARINT:
                at += _varint(first, length)[1]
            elif kind in (_FIXED32, _FIXED64):
                at += length + (4 if kind == _FIXED32 else 8)
            else:
                raise ValueError("it is not an ONNX file")
        if at != end:
            raise ValueError("it is not all of an ONNX file")

    def _take(self) -> None:
        """Count a field.

        Raises:
            ValueError: there are too many.
        """
        self._left -= 1
        if self._left < 0:
            raise ValueError(f"it has more than {self._most} fields")
        if not self._left % _FIELDS_AT_ONCE:
            time.sleep(0)


def _varint(data: bytes, at: int) -> tuple[int, int]:
    """Read a number; return it, and where it ends."""
    number = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            break
        byte, at = data[at], at + 1
        number |= (byte & 127) << shift
        if byte < 128:
            return number, at
    raise ValueError("it is not an ONNX file")


def has_functions(onnx: bytes) -> bool:
    """Return whether a model has functions of its own, as far as its fields can be looked at."""
    with suppress(ValueError):
        return any(field == _FUNCTIONS for field, _, _ in Fields(io.BytesIO(onnx)).of(0, len(onnx)))
    return True
