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

_SMALL_BYTES = 16 << 10
"""Messages and contents that are no longer are left as they are, so what `small_array` reads."""
_MODEL, _GRAPH, _NODE, _TENSOR = "ModelProto", "GraphProto", "NodeProto", "TensorProto"
_SPARSE, _ATTRIBUTE, _FUNCTION = "SparseTensorProto", "AttributeProto", "FunctionProto"
_MESSAGES: dict[str, dict[int, str]] = {
    _MODEL: {7: _GRAPH, _FUNCTIONS: _FUNCTION},
    _GRAPH: {1: _NODE, 5: _TENSOR, 15: _SPARSE},
    _NODE: {5: _ATTRIBUTE},
    _ATTRIBUTE: {5: _TENSOR, 6: _GRAPH, 10: _TENSOR, 11: _GRAPH, 22: _SPARSE, 23: _SPARSE},
    _FUNCTION: {7: _NODE, 11: _ATTRIBUTE},
    _SPARSE: {1: _TENSOR, 2: _TENSOR},
    _TENSOR: {},
}
"""By message: the fields in which there may be tensors, and what these are."""
_CONTENT = {4, 5, 6, 7, 9, 10, 11}
"""TensorProto's fields with its values: numbers, texts, bytes."""


class Fields:
    """The fields of one file, as many of them as are looked at in all."""

    def __init__(self, file: BinaryIO, most: int = _MAX_FIELDS) -> None:
        """Take a file that is open."""
        self.file = file
        self.start = 0
        """Where the field begins that was yielded last, with its number."""
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
                self.start = at
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


def outline(onnx: bytes) -> bytes:
    """Return a model without the content of its large tensors: all that a search of it finds.

    It is an ONNX file again, which ONNX Runtime would not load. What is searched and parsed under
    the interpreter's lock is as long as the graph, then, and not as its weights.

    Args:
        onnx: the content of an ONNX file; returned as it is if it is none, or has too many fields.
    """
    if len(onnx) <= _SMALL_BYTES:
        return onnx
    try:
        return _outlined(Fields(io.BytesIO(onnx)), onnx, 0, len(onnx), _MODEL)
    except ValueError:
        return onnx


def _outlined(fields: Fields, onnx: bytes, begin: int, end: int, kind: str) -> bytes:
    """Return a message of a model without the content of large tensors in it."""
    inner, parts, at = _MESSAGES[kind], list[bytes](), begin
    for field, first, last in fields.of(begin, end):
        start, found = fields.start, None
        if last - first <= _SMALL_BYTES:
            continue  # a part of what is copied before the next large one
        if kind == _TENSOR and field in _CONTENT:
            found = b""
        elif field in inner:
            found = _outlined(fields, onnx, first, last, inner[field])
        if found is None:
            continue
        parts.append(onnx[at:start])
        if found:
            parts += [_encoded(field << 3 | _BYTES), _encoded(len(found)), found]
        at = last
    return b"".join([*parts, onnx[at:end]])


def _encoded(number: int) -> bytes:
    """Return a number as protobuf has it, in its shortest form."""
    found = bytearray()
    while number > 127:
        found.append(number & 127 | 128)
        number >>= 7
    return bytes([*found, number])


def has_functions(onnx: bytes) -> bool:
    """Return whether a model has functions of its own, as far as its fields can be looked at."""
    with suppress(ValueError):
        return any(field == _FUNCTIONS for field, _, _ in Fields(io.BytesIO(onnx)).of(0, len(onnx)))
    return True
