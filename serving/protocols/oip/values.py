"""A tensor's values: arrays, raw bytes, and typed contents in their encoding."""

import struct
from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from serving.errors import InvalidRequest
from serving.protocols.oip.inference_pb import InferTensorContents
from serving.tensors import DTYPES, Array, Tensor

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
FIELDS = {field.number: field.name for field in InferTensorContents.DESCRIPTOR.fields}
"""The names of these fields by their numbers."""

_RANGES = {name: (int(np.iinfo(dtype).min), int(np.iinfo(dtype).max))
           for name, dtype in DTYPES.items() if dtype.kind in "iu"} | {"BOOL": (0, 1)}  # fmt: skip

MAX_STRINGS = 65_536
"""The most BYTES elements of a request: each costs Python some 500 ns."""
_LENGTH = struct.Struct("<I")
"""Before each element of raw BYTES."""
_WIDE = {
    "bool_contents": DTYPES["UINT64"],
    "int_contents": DTYPES["INT64"], "int64_contents": DTYPES["INT64"],
    "uint_contents": DTYPES["UINT64"], "uint64_contents": DTYPES["UINT64"],
}  # fmt: skip
"""The fields that are encoded as varints, and their ranges."""
_MAX_VARINT_BYTES = 10
_WINDOW_BYTES = 1 << 18
_SHIFT = np.uint64(7)
_BOOLEANS = b"\0\1"


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
    return b"".join(part for value in values for part in (_LENGTH.pack(len(value)), value))


def from_typed(values: Any, tensor: Tensor, shape: Sequence[int]) -> Array:
    """Decode typed contents.

    Args:
        values: strings; or numbers, as a list of packed fields or as protobuf has read them.
        tensor: its name and datatype, a key of CONTENTS.
        shape: its shape.

    Raises:
        InvalidRequest: they do not fit the type or the shape.
    """
    field, dtype = CONTENTS[tensor.datatype], tensor.dtype
    if tensor.datatype == "BYTES":
        return _texts(values, tensor, shape)
    if not isinstance(values, list):
        arrays = [_fitting(np.array(values, _WIDE.get(field, dtype)), field, tensor)]
    elif field in _WIDE:
        windows = (window for part in values for window in _windows(part))
        arrays = [_fitting(_varints(window, field), field, tensor) for window in windows]
    else:
        arrays = [_floats(part, field, dtype) for part in values]
    array = arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
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
        start = at + _LENGTH.size
        size = _LENGTH.unpack_from(data, at)[0] if start <= end else 0
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
    """Return an array of texts: ONNX Runtime would take the repr of bytes."""
    _check_count(len(values), prod(shape), "BYTES", tensor, shape)
    array = np.empty(len(values), object)
    try:
        array[:] = [value.decode() for value in values]
    except UnicodeDecodeError as err:
        raise InvalidRequest(f"expected BYTES of {tensor.name} as UTF-8: {err.reason}") from err
    return array.reshape(shape)


def _check_count(found: int, expected: int, unit: str, tensor: Any, shape: Sequence[int]) -> None:
    if found != expected:
        sizes = list(shape)
        raise InvalidRequest(f"expected {expected} {unit} for {tensor.name} {sizes}, got {found}")


def _fitting(numbers: Array, field: str, tensor: Tensor) -> Array:
    """Return numbers in a tensor's type, if that can hold them."""
    if field not in _WIDE or numbers.dtype == tensor.dtype:
        return numbers
    if numbers.dtype == np.uint64:
        numbers = numbers.view(_WIDE[field])
    least, most = _RANGES[tensor.datatype]
    is_signed = numbers.dtype.kind == "i"
    if numbers.max(initial=0) > most or (is_signed and numbers.min(initial=0) < least):
        wrong = numbers[(numbers > most) | (numbers < least)][0]
        raise InvalidRequest(f"expected {field} from {least} to {most}, got {wrong}")
    return numbers.astype(tensor.dtype)


def _floats(encoded: bytes, field: str, dtype: np.dtype[Any]) -> Array:
    if len(encoded) % dtype.itemsize:
        raise InvalidRequest(
            f"expected {field} of {dtype.itemsize} bytes each, got {len(encoded)} bytes"
        )
    return np.frombuffer(encoded, dtype)


def _windows(encoded: bytes) -> Iterator[bytes]:
    """Divide varints into parts that fit a core's cache."""
    at = 0
    while at < len(encoded) or not at:
        end = at + _WINDOW_BYTES
        last = min(end + _MAX_VARINT_BYTES, len(encoded))
        while end < last and encoded[end - 1] >= 0x80:
            end += 1
        yield encoded[at:end]
        at = end


def _varints(encoded: bytes, field: str) -> Array:
    """Decode varints of any length as unsigned numbers."""
    data = np.frombuffer(encoded, np.uint8)
    ends = (data < 0x80).nonzero()[0]
    if len(ends) == len(data):
        return data
    if not len(ends) or ends[-1] != len(data) - 1:
        raise InvalidRequest(f"expected {field}, got bytes that are no varints")
    numbers = data[ends].astype(np.uint64)
    places: Any = slice(None)
    left = len(data) - len(ends)
    for _ in range(_MAX_VARINT_BYTES - 1):  # from the last byte of each to its first
        ends = ends - 1  # -1 is the last byte of all, which ends a number
        before = data[ends]
        longer = (before >= 0x80).nonzero()[0]
        places = places[longer] if isinstance(places, np.ndarray) else longer
        numbers[places] = numbers[places] << _SHIFT | before[longer] & 0x7F
        ends = ends[longer]
        left -= len(longer)
        if not left:
            return numbers
    raise InvalidRequest(f"expected {field}, got bytes that are no varints")
