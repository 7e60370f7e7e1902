"""ONNX models as messages: graphs, nodes, small constants.

The package onnx takes 0.15 s and 13 MB to import, so a server reads models by a schema of its own,
the part of ONNX's that it needs (protos/onnx/onnx.proto).
"""

from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving.errors import CorruptModel
from serving.model.schemas import ModelProto
from serving.tensors import Array

Message = Any
"""A message of the schema, such as a GraphProto."""

_SMALL = 1024
"""The most elements of a constant that is read: shapes, axes, scales."""
_EXTERNAL = 1
_TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"), 2: ("u1", "int32_data"), 3: ("i1", "int32_data"),
    4: ("<u2", "int32_data"), 5: ("<i2", "int32_data"), 6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"), 9: ("?", "int32_data"), 11: ("<f8", "double_data"),
    12: ("<u4", "uint64_data"), 13: ("<u8", "uint64_data"),
}  # fmt: skip
"""TensorProto.DataType: numpy's type, and the field for values that are not raw."""


def parse_model(data: bytes) -> Message:
    """Return the ModelProto in an ONNX file's bytes.

    Raises:
        CorruptModel: it is no ONNX model.
    """
    try:
        model = ModelProto.FromString(data)
    except DecodeError as err:
        raise CorruptModel("it is not an ONNX file, or not all of one") from err
    if not model.HasField("graph"):
        raise CorruptModel("it is not an ONNX file, or not all of one")
    return model


def small_array(tensor: Message) -> Array | None:
    """Return a constant's elements; None if it is large, of another type, or in another file."""
    dims = tuple(tensor.dims)
    count = int(np.prod(dims, dtype=np.float64)) if all(size >= 0 for size in dims) else -1
    if not 0 <= count <= _SMALL or tensor.data_location == _EXTERNAL:
        return None
    if tensor.data_type not in _TYPES:
        return None
    dtype, field = _TYPES[tensor.data_type]
    try:
        if tensor.HasField("raw_data"):
            return np.frombuffer(tensor.raw_data, dtype).reshape(dims)
        return np.array(getattr(tensor, field)).astype(dtype).reshape(dims)
    except (ValueError, OverflowError):  # fewer bytes than its shape says: ONNX Runtime refuses it
        return None


def external_files(model: Message) -> set[str]:
    """Return the locations of weights that are in other files."""
    return {
        entry.value
        for tensor in model.graph.initializer
        if tensor.data_location == _EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }
