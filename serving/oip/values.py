"""The values of tensors in each form that they travel in, to arrays and back.

raw             little-endian, row after row; each of BYTES behind its length of 4 bytes
typed contents  protobuf's numbers and texts; FP16 has none
JSON            lists; bytes as base64
"""

import struct
from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from serving.errors import InvalidRequest
from serving.tensors import DTYPES, Array, Tensor

MAX_SHOWN_CHARACTERS = 80
"""Texts from callers are cut to this length in errors, which travel as headers."""
CONTENTS = {
    "BOOL": "bool_contents",
    "INT8": "int_contents", "INT16": "int_contents",
    "INT32": "int_contents", "INT64": "int64_contents",
    "UINT8": "uint_contents", "UINT16": "uint_contents",
    "UINT32": "uint_contents", "UINT64": "uint64_contents",
    "FP32": "fp32_contents", "FP64": "fp64_contents",
    "BYTES": "bytes_contents",
}  # fmt: skip
"""The field of typed contents for each data type; FP16 has none and is always raw."""
_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
           for name, dtype in DTYPES.items() if dtype.kind in "iu"} | {"BOOL": (0, 1)}  # fmt: skip
MAX_STRINGS = 65_536
"""The most BYTES elements of a request: each costs Python some 500 ns."""
LENGTH = struct.Struct("<I")
"""Before each element of raw BYTES."""
_NUMBERS = {
    "bool_contents": DTYPES["BOOL"],
    "int_contents": DTYPES["INT32"], "int64_contents": DTYPES["INT64"],
    "uint_contents": DTYPES["UINT32"], "uint64_contents": DTYPES["UINT64"],
    "fp32_contents": DTYPES["FP32"], "fp64_contents": DTYPES["FP64"],
}  # fmt: skip
"""The type of the numbers in each field of typed contents."""
_BOOLEANS = b"\0\1"


def quoted(text: str) -> str:
    """Quote a text from a caller for an error, shortened."""
    if len(text) <= MAX_SHOWN_CHARACTERS:
        return repr(text)
    return f"{text[:MAX_SHOWN_CHARACTERS]!r}..."


def array_of(values: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Return the values of an input, in whichever form they came.

    Args:
        values: raw bytes, an array of all values in their order, or an input of a message that has
            typed contents.
        tensor: the model's input.
        shape: that of the values.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    if isinstance(values, np.ndarray):
        return values.reshape(shape)
    if isinstance(values, bytes):
        return from_raw(values, tensor, shape)
    return typed_array(values, tensor, shape)


def bytes_of(values: Any, tensor: Tensor, shape: Sequence[int]) -> bytes:
    """Return the values of an input whose elements have a fixed size as raw bytes.

    See `array_of` for arguments and errors.
    """
    if isinstance(values, bytes):
        return check_raw(values, tensor, shape)
    return array_of(values, tensor, shape).tobytes()


def typed_array(found: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode the typed contents of an input.

    Args:
        found: the input of a request.
        tensor: its name, its datatype and the shape that its model expects.
        shape: the one that it has.

    Raises:
        InvalidRequest: they are of another type, or do not fit the type or the shape.
    """
    field = CONTENTS.get(tensor.datatype)
    if field is None:
        raise InvalidRequest(f"expected raw_input_contents for {tensor.name}: FP16 has no contents")
    fields = {each.name for each, _ in found.contents.ListFields()}
    if fields and fields != {field}:
        names = ", ".join(sorted(fields))
        raise InvalidRequest(f"expected {field} for {tensor.datatype}, got {names}")
    return from_typed(getattr(found.contents, field), tensor, shape)


def check_raw(data: bytes, tensor: Any, shape: Sequence[int]) -> bytes:
    """Check raw bytes of fixed-size elements, and return them.

    Raises:
        InvalidRequest: not as many as the shape needs, or a BOOL that is neither 0 nor 1.
    """
    _check_count(len(data), prod(shape) * DTYPES[tensor.datatype].itemsize, "bytes", tensor, shape)
    if tensor.datatype == "BOOL" and data.translate(None, _BOOLEANS):
        raise InvalidRequest(f"expected bytes of 0 or 1 for BOOL {tensor.name}, got others")
    return data


def from_raw(data: bytes, tensor: Any, shape: Sequence[int]) -> Array:
    """View raw bytes as an array, or read raw BYTES as an array of texts.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    if tensor.datatype == "BYTES":
        return _texts(_split(data, prod(shape)), tensor, shape)
    data = check_raw(data, tensor, shape)
    return np.frombuffer(data, DTYPES[tensor.datatype]).reshape(shape)


def to_raw(array: Array) -> bytes:
    """Encode an array as raw bytes; the inverse of `from_raw`."""
    if array.dtype != object:
        return array.tobytes()
    values = map(as_bytes, array.ravel().tolist())
    return b"".join(part for value in values for part in (LENGTH.pack(len(value)), value))


def from_typed(values: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode typed contents, as protobuf has read them.

    Args:
        values: texts or numbers.
        tensor: its name and datatype, a key of CONTENTS.
        shape: its shape.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    field = CONTENTS[tensor.datatype]
    if tensor.datatype == "BYTES":
        return _texts(values, tensor, shape)
    array = _fitting(np.array(values, _NUMBERS[field]), field, tensor)
    _check_count(len(array), prod(shape), field, tensor, shape)
    return array.reshape(shape)


def to_typed(array: Array) -> list[Any]:
    """Return an array's values as typed contents; BYTES as bytes."""
    values: list[Any] = array.ravel().tolist()
    return list(map(as_bytes, values)) if array.dtype == object else values


def as_bytes(value: str | bytes) -> bytes:
    """Encode an element of BYTES."""
    return value.encode() if isinstance(value, str) else value


def _split(data: bytes, expected: int) -> list[bytes]:
    """Divide raw BYTES into their elements, until there is one too many."""
    found: list[bytes] = []
    at, end = 0, len(data)
    while at < end and len(found) <= expected:
        start = at + LENGTH.size
        size = LENGTH.unpack_from(data, at)[0] if start <= end else 0
        at = start + size
        found.append(data[start:at])
    if at > end:
        raise InvalidRequest("expected BYTES behind their lengths of 4 bytes, got a cut off one")
    return found


def check_strings(count: int) -> None:
    """Check the number of BYTES elements of a request.

    Raises:
        InvalidRequest: too many.
    """
    if count > MAX_STRINGS:
        raise InvalidRequest(f"expected at most {MAX_STRINGS} BYTES in a request, got more")


def _texts(values: Sequence[bytes], tensor: Any, shape: Sequence[int]) -> Array:
    """Return an array of texts: ONNX Runtime would take the repr of bytes.

    Those of a handler may be bytes.
    """
    _check_count(len(values), prod(shape), "BYTES", tensor, shape)
    array = np.empty(len(values), object)
    if getattr(tensor, "is_binary", False):  # a message's tensor has no such fact
        array[:] = list(values)
        return array.reshape(shape)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError as err:
        raise InvalidRequest(f"expected BYTES of {tensor.name} as UTF-8: {err.reason}") from err
    return array.reshape(shape)


def _check_count(found: int, expected: int, unit: str, tensor: Any, shape: Sequence[int]) -> None:
    if found != expected:
        sizes = f"{list(shape)!s:.{MAX_SHOWN_CHARACTERS}}"
        raise InvalidRequest(f"expected {expected} {unit} for {tensor.name} {sizes}, got {found}")


def _fitting(numbers: Array, field: str, tensor: Tensor) -> Array:
    if numbers.dtype == tensor.dtype:
        return numbers
    least, most = _RANGES[tensor.datatype]
    is_signed = numbers.dtype.kind == "i"
    if numbers.max(initial=0) > most or (is_signed and numbers.min(initial=0) < least):
        wrong = numbers[(numbers > most) | (numbers < least)][0]
        raise InvalidRequest(f"expected {field} from {least} to {most}, got {wrong}")
    return numbers.astype(tensor.dtype)
