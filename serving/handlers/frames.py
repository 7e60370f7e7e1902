"""Frames between the server and a handler's process: fields as JSON, and arrays as plain bytes.

    length of fields | length of body | job     | request | fields | body
        4 bytes      |    8 bytes     | 8 bytes | 8 bytes |  JSON  | arrays, at multiples of 64

The fields are an object; its `arrays` say the type and the sizes of each array in the body. Texts
and bytes are lengths of 4 bytes each, and then all of them. Neither side unpickles anything. `job`
is the number of a call, `request` that of a handler's call of another model; 0 stands for none.
Fields of like calls are the same bytes, since the numbers are not in them: each is written and
parsed once, which takes a tenth of a call's time.
"""

import json
import math
import socket
import struct
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from serving.tensors import DTYPES, Array

_LENGTHS = struct.Struct("<IQQQ")
_ALIGNMENT = 64
_READ_BYTES = 64 << 10
"""Read at once of a frame that has not begun; a longer one is read into its place."""
_MAX_FIELDS_BYTES, _MAX_BODY_BYTES = 16 << 20, 8 << 30
FEW_BYTES = 64 << 10
"""Frames up to this length are sent in one piece."""
TEXT, BYTES, PIXELS = "text", "bytes", "pixels"
"""Types of arrays of objects: texts, bytes, and uint8 arrays, each of a shape of its own."""
_COUNT = np.dtype("<u4")
_FEW_TEXTS = 16
"""Up to this number their lengths are read without an array."""
_MAX_KEPT, _MAX_KEPT_BYTES = 512, 512
"""Heads that are kept, and the length of each."""
_known_fields: dict[bytes, tuple[dict[str, Any], Any]] = {}
"""Heads that were parsed, with their arrays' descriptions; without those that have objects inside,
which a handler gets and may change."""
_BROKEN = ValueError, KeyError, TypeError, AttributeError, RecursionError, struct.error
"""Errors of reading bytes that are no frame."""
_NUMBERS = {dtype.str: dtype for dtype in DTYPES.values() if dtype.kind != "O"}
"""Types of numbers by their names in the fields."""
_write = json.JSONEncoder(separators=(",", ":")).encode  # `dumps` would make one for each frame


class BrokenFrame(Exception):
    """The other side does not speak as this one does."""


class Frame(NamedTuple):
    """A message."""

    fields: dict[str, Any]
    arrays: list[Array]


def encode(fields: Mapping[str, Any], arrays: Sequence[Array] = ()) -> list[bytes | memoryview]:
    """Encode a frame as buffers to be sent one after the other.

    Args:
        fields: what JSON can hold; `arrays` is added to it.
        arrays: numbers, or objects: all of them texts, bytes, or arrays of uint8.
    """
    described, buffers, at = [], list[bytes | memoryview](), 0
    for array in arrays:
        kind, sizes, own = _buffers_of(array)
        if gap := -at % _ALIGNMENT:
            buffers.append(bytes(gap))
            at += gap
        size = sum(map(len, own))
        described.append((kind, array.shape, sizes, size))
        buffers += own
        at += size
    alike = dict(fields)
    job, request = alike.pop("job", 0), alike.pop("request", 0)
    facts = tuple(alike.items())
    try:
        text = _text(facts, tuple(described))
    except TypeError:  # a fact is an object or a list
        text = _text.__wrapped__(facts, tuple(described))
    return [_LENGTHS.pack(len(text), at, job, request) + text, *buffers]


@lru_cache(_MAX_KEPT)
def _text(facts: tuple[tuple[str, Any], ...], described: tuple[Any, ...]) -> bytes:
    """Write fields; facts of one name have one type, or 1 would be written as True was."""
    text = _write({**dict(facts), "arrays": described}).encode()
    return text + b" " * (-(_LENGTHS.size + len(text)) % _ALIGNMENT)  # JSON may end with blanks


def _buffers_of(array: Array) -> tuple[str, Any, list[bytes | memoryview]]:
    """Return an array's type, the sizes of its pictures, and its bytes."""
    if array.dtype.kind != "O":
        data = np.ascontiguousarray(array)
        return data.dtype.str, None, [data.reshape(-1).view(np.uint8).data]
    values = array.ravel().tolist()
    if values and isinstance(values[0], np.ndarray):
        pixels = [np.ascontiguousarray(each) for each in values]
        return PIXELS, [each.shape for each in pixels], [each.reshape(-1).data for each in pixels]
    is_text = all(isinstance(each, str) for each in values)
    encoded = [each.encode() if isinstance(each, str) else each for each in values]
    lengths = np.array([len(each) for each in encoded], _COUNT)
    return TEXT if is_text else BYTES, None, [lengths.tobytes(), b"".join(encoded)]


class FrameReader:
    """Reads frames of a socket, which may block or not."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket = sock
        self._buffer = memoryview(bytearray(_READ_BYTES))  # not for each read: it would be mapped
        self._data = bytearray()
        """Bytes that have come of frames that have not come whole."""
        self._filled = 0
        """How many of `_data` have come, once that has room for a whole frame."""

    def read(self, flags: int = 0) -> Iterator[Frame]:
        """Read once, and yield the frames that have come whole.

        Args:
            flags: of `recv`.

        Raises:
            EOFError: the other side has closed its end.
            BlockingIOError: nothing has come.
            BrokenFrame: what came is no frame.
        """
        if self._filled:
            number = self._socket.recv_into(memoryview(self._data)[self._filled :], 0, flags)
            self._filled += number
        else:
            number = self._socket.recv_into(self._buffer, 0, flags)
            self._data += self._buffer[:number]
        if not number:
            raise EOFError
        while self._data and (frame := self._next()) is not None:
            yield frame

    def _next(self) -> Frame | None:
        data = self._data
        num_bytes = self._filled or len(data)
        if num_bytes < _LENGTHS.size:
            return None
        fields_bytes, body_bytes, job, request = _LENGTHS.unpack_from(data)
        if fields_bytes > _MAX_FIELDS_BYTES or body_bytes > _MAX_BODY_BYTES:
            raise BrokenFrame("a frame is too long")
        body_at = _LENGTHS.size + fields_bytes
        end = body_at + body_bytes
        if num_bytes < end:
            if not self._filled and end > _READ_BYTES:
                self._filled = num_bytes
                self._data = bytearray(end)
                self._data[:num_bytes] = data
            return None
        if end == len(data):
            self._data, self._filled = bytearray(), 0
            body = memoryview(data)[body_at:]
        else:
            body = memoryview(bytes(memoryview(data)[body_at:end]))
        frame = _frame(bytes(memoryview(data)[_LENGTHS.size : body_at]), body, job, request)
        if end < len(data):
            body = memoryview(b"")
            self._data = data[end:]
        return frame


def _frame(text: bytes, body: memoryview, job: int, request: int) -> Frame:
    try:
        known, described = _known_fields.get(text) or _parsed(text)
        fields = known.copy()
        if job:
            fields["job"] = job
        if request:
            fields["request"] = request
        arrays, at = [], 0
        for kind, shape, sizes, size in described:
            at += -at % _ALIGNMENT
            arrays.append(_array(body[at : at + size], kind, shape, sizes))
            at += size
        return Frame(fields, arrays)
    except _BROKEN as err:
        raise BrokenFrame(f"{type(err).__name__}: {err}") from err


def _parsed(text: bytes) -> tuple[dict[str, Any], Any]:
    """Parse fields, and keep them for the next ones."""
    fields = json.loads(text.decode())
    described = fields.pop("arrays")
    if len(text) <= _MAX_KEPT_BYTES and not any(
        isinstance(each, dict | list) for each in fields.values()
    ):
        if len(_known_fields) >= _MAX_KEPT:
            _known_fields.clear()
        _known_fields[text] = fields, described
    return fields, described


def _array(data: memoryview, kind: str, shape: list[int], sizes: Any) -> Array:
    if kind not in (TEXT, BYTES, PIXELS):
        numbers = np.frombuffer(data, _NUMBERS[kind])
        return (numbers if numbers.flags.aligned else numbers.copy()).reshape(shape)
    number = math.prod(shape)
    values: list[Any] = []
    if kind == PIXELS:
        at = 0
        for each in sizes:
            size = math.prod(each)
            values.append(np.frombuffer(data[at : at + size], np.uint8).reshape(each))
            at += size
    else:
        at = number * _COUNT.itemsize
        lengths: Sequence[int]
        if number <= _FEW_TEXTS:
            lengths = struct.unpack_from(f"<{number}I", data)
        else:
            lengths = np.frombuffer(data[:at], _COUNT).tolist()
        for size in lengths:
            part = bytes(data[at : at + size])
            values.append(part.decode() if kind == TEXT else part)
            at += size
    if len(values) != number:
        raise ValueError("other values than the shape has")
    array = np.empty(number, object)
    for place, value in enumerate(values):
        array[place] = value
    return array if len(shape) == 1 else array.reshape(shape)
