"""ModelInferRequests with typed contents: protobuf reads them, large ones in a process.

A message of many small fields costs protobuf a hundred times its size in memory, and its time is
the loop's, which all callers share. So messages with more than 32 KiB beside raw contents are read
where memory and time are limited, and come back with raw contents.
"""

from collections.abc import Iterator
from typing import Any

from serving.errors import InvalidRequest, TooLarge
from serving.oip.inference_pb import ModelInferRequest
from serving.oip.request import MAX_AXES, check_others
from serving.oip.values import check_strings, quoted, to_raw, typed_array
from serving.protocols import parse
from serving.tensors import DTYPES, Tensor

_INLINE_BYTES = 32 << 10
"""The most bytes beside raw contents that are read on the loop: some 0.1 ms."""
_MAX_FIELDS = 1024
"""The most fields of the message itself that are looked at; clients send a few for each tensor."""
_LEAST_BYTES = 2
"""Bytes of an input without anything."""
_ID, _RAW_CONTENTS = 3, 7
_DELIMITED = 2
"""The kind of all fields of a ModelInferRequest: texts and messages."""
_MAX_NAME = 80
"""Characters of a caller's name for an input that errors have as it is."""
_MAX_VARINT_BYTES = 10


def is_slow(message: bytes) -> bool:
    """Return whether a ModelInferRequest takes long to read: it has much beside raw contents."""
    return len(message) > _INLINE_BYTES and _num_other_bytes(message) > _INLINE_BYTES


def id_of(message: bytes) -> str:
    """Return the id of a request that may be malformed; empty if it has none."""
    found = [message[start:end] for number, start, end in _fields(message) if number == _ID]
    return bytes(found[-1]).decode("utf-8", "ignore") if found else ""


def as_raw(message: bytes) -> tuple[bytes, bool]:
    """Put the typed contents of a ModelInferRequest into raw contents.

    Returns:
        The message, and whether it had typed contents.

    Raises:
        InvalidRequest: it is malformed, contents do not fit their type or shape, or too many bytes
            are beside them.
        TooLarge: it needs more memory than this process has.
    """
    try:
        return _as_raw(message)
    except MemoryError as err:
        raise _too_large(message) from err


def _as_raw(message: bytes) -> tuple[bytes, bool]:
    try:
        request = parse(ModelInferRequest, message)
    except InvalidRequest as err:
        if "alloc failed" in str(err.__cause__):
            raise _too_large(message) from err
        raise
    check_others(_LEAST_BYTES * len(request.inputs))  # else each would be looked at
    is_typed = not request.raw_input_contents
    if is_typed:
        check_strings(sum(len(each.contents.bytes_contents) for each in request.inputs))
        for found in request.inputs:
            request.raw_input_contents.append(_raw(found))
            found.ClearField("contents")
    data: bytes = request.SerializeToString()
    check_others(_num_other_bytes(data))
    return data, is_typed


def _too_large(message: bytes) -> TooLarge:
    return TooLarge(
        f"a request with {len(message)} bytes of typed contents needs too much memory: "
        "send raw_input_contents"
    )


def _raw(found: Any) -> bytes:
    """Return the typed contents of an input as raw ones.

    There are none of a type that is unknown here, or of a shape that no tensor has: the request is
    refused when it is compared with the model's inputs.
    """
    shape = found.shape
    if found.datatype not in DTYPES or len(shape) > MAX_AXES or min(shape, default=0) < 0:
        return b""
    # Errors have the name, which nobody has compared with the model's yet.
    is_shown = found.name.isprintable() and len(found.name) <= _MAX_NAME
    name = found.name if is_shown else quoted(found.name)
    tensor = Tensor(name, found.datatype, tuple(shape))
    return to_raw(typed_array(found, tensor, shape))


def _num_other_bytes(message: bytes) -> int:
    raw = (end - start for number, start, end in _fields(message) if number == _RAW_CONTENTS)
    return len(message) - sum(raw)


def _fields(message: bytes) -> Iterator[tuple[int, int, int]]:
    """Yield number, start and end of a message's own fields, up to one that it does not have."""
    at = 0
    for _ in range(_MAX_FIELDS):
        tag, at = _varint(message, at)
        size, start = _varint(message, at)
        at = start + size
        if tag & 7 != _DELIMITED or at > len(message):
            return
        yield tag >> 3, start, at


def _varint(message: bytes, at: int) -> tuple[int, int]:
    """Return a number and where it ends; the end of the message if it is malformed."""
    value = 0
    for place, byte in enumerate(message[at : at + _MAX_VARINT_BYTES]):
        value |= (byte & 0x7F) << 7 * place
        if byte < 0x80:
            return value, at + place + 1
    return 0, len(message)
