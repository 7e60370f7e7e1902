"""ONNX models as messages: graphs, nodes, small constants.

The package onnx takes 0.15 s and 13 MB to import, so models are read by a schema of its own, the
part of ONNX's that is needed (protos/onnx/onnx.proto).
"""

import pkgutil
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
from google.protobuf import descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from serving.errors import CorruptModel
from serving.proof.arrays import Array

_SMALL = 1024
"""The most elements of a constant that is read: shapes, axes, scales."""
_EXTERNAL = 1
_STRING = 8
"""TensorProto's number of the type."""
_IDENTITY = 13
"""A version of ONNX's operators in which Identity passes any tensor on."""
_HALF = "<f2"
_TYPES: dict[int, tuple[str, str]] = {
    1: ("<f4", "float_data"), 2: ("u1", "int32_data"), 3: ("i1", "int32_data"),
    4: ("<u2", "int32_data"), 5: ("<i2", "int32_data"), 6: ("<i4", "int32_data"),
    7: ("<i8", "int64_data"), 9: ("?", "int32_data"), 10: (_HALF, "int32_data"),
    11: ("<f8", "double_data"), 12: ("<u4", "uint64_data"), 13: ("<u8", "uint64_data"),
}  # fmt: skip
"""TensorProto.DataType: numpy's type, and the field for values that are not raw."""
Message = Any
"""A message of the schema, such as a GraphProto."""


def message_classes(package: str, schema: str, *names: str) -> list[Any]:
    """Return classes of messages whose schema is a file of a package, in a pool of their own.

    Args:
        package: the package, by its name in an import.
        schema: its file, a FileDescriptorSet of one file, which `make protos` has written.
        names: the messages, with their package in the schema.
    """
    data = pkgutil.get_data(package, schema)
    assert data is not None
    pool = descriptor_pool.DescriptorPool()
    # The file stands behind a tag and its length; `descriptor_pb2`, which reads any set, takes 2 ms
    # and half a megabyte.
    length_bytes = next(at for at, byte in enumerate(data[1:], 1) if byte < 0x80)
    pool.AddSerializedFile(data[length_bytes + 1 :])
    return [message_factory.GetMessageClass(pool.FindMessageTypeByName(each)) for each in names]


ModelProto, ValueInfoProto = message_classes(
    __package__, "onnx.binpb", "digits.onnx.ModelProto", "digits.onnx.ValueInfoProto"
)


def operator_of(node: Message) -> str:
    """Return a node's operator: by name alone in ONNX's first domain, else with the domain before.

    A function of the model may be named Identity, too; all that reads `op_type` asks here.
    """
    domain = "" if node.domain == "ai.onnx" else node.domain
    return f"{domain}.{node.op_type}" if domain else str(node.op_type)


def parse_model(data: bytes) -> Message:
    """Return the ModelProto in an ONNX file's bytes.

    Raises:
        CorruptModel: it is no ONNX model.
    """
    try:
        model = ModelProto.FromString(data)
    except DecodeError as err:
        raise CorruptModel("it is not an ONNX file, or it is incomplete") from err
    if not model.HasField("graph"):
        raise CorruptModel("it is not an ONNX file, or it is incomplete")
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
        values = np.array(getattr(tensor, field))
        if dtype == _HALF:  # its bits
            values = values.astype("<u2").view(dtype)
        return values.astype(dtype).reshape(dims)
    except (ValueError, OverflowError):  # fewer bytes than its shape says: ONNX Runtime refuses it
        return None


def external_files(model: Message) -> set[str]:
    """Return the locations of weights that are in other files."""
    return {
        f"{entry.value}"  # bytes if it is not UTF-8
        for tensor in _tensors(model.graph, model.functions)
        if tensor.data_location == _EXTERNAL
        for entry in tensor.external_data
        if entry.key == "location"
    }


def _tensors(graph: Message, functions: Iterable[Message] = ()) -> Iterator[Message]:
    """Yield the constants of a graph, of its nodes, and of all bodies and functions in it."""
    yield from graph.initializer
    for each in graph.sparse_initializer:
        yield from (each.values, each.indices)
    for node in (*graph.node, *(node for each in functions for node in each.node)):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for body in (attribute.g, *attribute.graphs):
                yield from _tensors(body)


def has_texts(model: Message) -> bool:
    """Return whether any tensor may be of strings: inputs, constants, labels, casts."""
    tensors = _tensors(model.graph, model.functions)
    return (
        any(each.type.tensor_type.elem_type == _STRING for each in model.graph.input)
        or any(each.data_type == _STRING for each in tensors)
        or any(map(_makes_texts, nodes_of(model.graph, model.functions)))
    )


def _makes_texts(node: Message) -> bool:
    return any(
        each.strings or each.name == "value_string" or (each.name == "to" and each.i == _STRING)
        for each in node.attribute
    )


def nodes_of(graph: Message, functions: Iterable[Message] = ()) -> Iterator[Message]:
    """Yield the nodes of a graph, and of all bodies and functions in it."""
    for node in (*graph.node, *(node for each in functions for node in each.node)):
        yield node
        for attribute in node.attribute:
            for body in (attribute.g, *attribute.graphs):
                yield from nodes_of(body)


def cut_zip_maps(model: Message) -> tuple[str, ...] | None:
    """Replace outputs that are maps of probabilities by the tensors that they are made of.

    Converters of scikit-learn, LightGBM and CatBoost end in ZipMap, a dictionary for each row.

    Returns:
        The names of the classes, the columns of the tensor; None if there is no such output.
    """
    labels = None
    outputs = {each.name: each for each in model.graph.output}
    for node in model.graph.node:
        is_map = operator_of(node) == "ai.onnx.ml.ZipMap"
        if is_map and len(node.output) == 1 and node.output[0] in outputs:
            labels = tuple(
                each.decode("utf-8", "replace") if isinstance(each, bytes) else str(each)
                for attribute in node.attribute
                for each in (*attribute.strings, *attribute.ints)
            )
            node.op_type, node.domain = "Identity", ""
            del node.attribute[:]
            output = outputs[node.output[0]]
            output.ClearField("type")
            output.type.tensor_type.elem_type = 1
            output.type.tensor_type.shape.dim.add()
            output.type.tensor_type.shape.dim.add()
            if not any(each.domain in ("", "ai.onnx") for each in model.opset_import):
                model.opset_import.add(domain="", version=_IDENTITY)  # CatBoost needs no operator
    return labels
