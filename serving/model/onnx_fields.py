"""Parts of an ONNX file, found without reading the whole: its fields, and the labels of classes."""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import BinaryIO

from serving.tensors import is_label

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
"""Kinds of protobuf's fields."""
_METADATA, _LABELS = 14, b"labels"
"""ModelProto.metadata_props, and the key of a classifier's labels, a list as JSON."""
_MAX_METADATA_BYTES = 1 << 20


def fields_of(file: BinaryIO, at: int, end: int) -> Iterator[tuple[int, int, int]]:
    """Yield the number, begin and end of each field of a message that is bytes, without reading it.

    Raises:
        ValueError: it is not a message, or not all of one.
    """
    while at < end:
        file.seek(at)
        head = file.read(20)
        tag, length = _varint(head, 0)
        kind = tag & 7
        if kind == _BYTES:
            size, used = _varint(head, length)
            yield tag >> 3, at + used, at + used + size
            at += used + size
        elif kind == _VARINT:
            at += _varint(head, length)[1]
        elif kind in (_FIXED32, _FIXED64):
            at += length + (4 if kind == _FIXED32 else 8)
        else:
            raise ValueError("it is not an ONNX file")
    if at != end:
        raise ValueError("it is not all of an ONNX file")


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


def labels_of(onnx: bytes) -> tuple[str, ...]:
    """Return the names of a classifier's classes, which an export has put into the file."""
    if _LABELS not in onnx[-_MAX_METADATA_BYTES:]:
        return ()
    file = io.BytesIO(onnx)
    with suppress(ValueError, TypeError):
        for field, begin, end in fields_of(file, 0, len(onnx)):
            if field == _METADATA and end - begin <= _MAX_METADATA_BYTES:
                parts = fields_of(file, begin, end)
                entry = {number: onnx[first:last] for number, first, last in parts}
                if entry.get(1) == _LABELS:
                    found = json.loads(entry.get(2, b""))
                    return tuple(found) if all(map(is_label, found)) else ()
    return ()
