"""Requests that are JSON values and no more, straight to arrays, and arrays straight to JSON.

Most requests with texts are such ones: `{"inputs": [{"name", "shape", "datatype", "data"}]}`. The
general way, by the protocol's messages, takes three times as long; it reads all others, and those
that are wrong, since it says what is.
"""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import orjson

from serving.batching.run import ResponseEncoder, Result, Target
from serving.oip import rest
from serving.oip.tensors import MAX_STRINGS, OWN_PARAMETERS
from serving.tensors import Array, Tensor, TensorSignature

_KEYS = {"inputs", "id", "parameters"}
_FIELDS = {"name", "shape", "datatype", "data"}
_TYPES: dict[str, set[type]] = {"O": {str}, "b": {bool}, "i": {int}, "u": {int}, "f": {int, float}}
"""Elements of JSON by the kind of numpy's types."""
_MAX_ID = 512


class PlainRequest(NamedTuple):
    """A request's content."""

    arrays: tuple[Array, ...]
    """In the order of the model's inputs."""
    num_rows: int
    id: str
    parameters: Mapping[str, Any]


def read(body: bytes, signature: TensorSignature, max_rows: int) -> PlainRequest | None:
    """Decode a request; None for one that needs the general way.

    Args:
        body: JSON.
        signature: the inputs and outputs of its model.
        max_rows: the most rows allowed.
    """
    try:
        head = orjson.loads(body)
        if type(head) is not dict or not head.keys() <= _KEYS:
            return None
        identifier, parameters = head.get("id", ""), head.get("parameters", {})
        if type(identifier) is not str or len(identifier) > _MAX_ID or not _are_plain(parameters):
            return None
        items = head["inputs"]
        if len(items) != len(signature.inputs):
            return None
        arrays = tuple(map(_array, items, signature.inputs))
        sizes = {len(each) for each in arrays}
    except (ValueError, TypeError, KeyError, OverflowError):
        return None
    if not identifier.isprintable() or len(sizes) != 1 or not (number := sizes.pop()) > 0:
        return None
    if number > max_rows and signature.is_batchable:
        return None
    return PlainRequest(arrays, number if signature.is_batchable else 1, identifier, parameters)


def _are_plain(parameters: Any) -> bool:
    return type(parameters) is dict and all(
        name not in OWN_PARAMETERS
        and name.isprintable()
        and (type(value) in (bool, float) or (type(value) is int and -(2**63) <= value < 2**63)
             or (type(value) is str and value.isprintable()))
        for name, value in parameters.items()
    )  # fmt: skip


def _array(item: Any, tensor: Tensor) -> Array:
    """Return an input's values; raises ValueError or the like for others."""
    shape, data = item["shape"], item["data"]
    if item.keys() != _FIELDS or item["name"] != tensor.name or item["datatype"] != tensor.datatype:
        raise ValueError
    known = tensor.shape
    if not known or len(shape) != len(known) or type(data) is not list:
        raise ValueError
    if not all(type(size) is int and size == (size if own < 0 else own) > 0
               for size, own in zip(shape, known, strict=True)):  # fmt: skip
        raise ValueError
    dtype = tensor.dtype
    if len(data) != prod(shape) or not _TYPES[dtype.kind].issuperset(map(type, data)):
        raise ValueError
    if dtype.kind != "O":
        with np.errstate(over="raise"):
            return np.array(data, dtype).reshape(shape)
    if len(data) > MAX_STRINGS:
        raise ValueError
    array = np.empty(len(data), object)
    if tensor.is_binary:
        array[:] = [b64decode(each, validate=True) for each in data]
    else:
        for each in data:
            each.encode()  # half of a surrogate pair is no text
        array[:] = data
    return array.reshape(shape)


class ArraysEncoder(ResponseEncoder):
    """Answers with the outputs for a call's rows, and the version that made them."""

    parameters: Mapping[str, Any] = {}
    """The request's parameters, for a handler."""

    def __init__(self, target: Target, num_rows: int, parameters: Mapping[str, Any]) -> None:
        super().__init__(target, None, num_rows)
        self.parameters = parameters

    def encode(self, result: Result, at: int, number: int) -> Sequence[Any]:
        step = self.num_rows
        return [(result.cut(at + i * step, step), result.version) for i in range(number)]


def write(
    name: str, version: str, identifier: str, outputs: Sequence[Tensor], arrays: Sequence[Array]
) -> bytes:
    """Encode an answer.

    Args:
        name: the model's.
        version: the version that answered.
        identifier: the request's; "" for none.
        outputs: their names and types.
        arrays: their values.

    Raises:
        InvalidRequest: an output is too large for JSON.
    """
    items = []
    for tensor, array in zip(outputs, arrays, strict=True):
        shape = list(array.shape)
        rest.check_size(tensor.name, shape)
        values: Any = array.ravel()
        if array.dtype.kind != "O":
            values = values.astype(np.float32) if array.dtype == np.float16 else values
        elif tensor.is_binary:
            values = [b64encode(each).decode() for each in values]
        else:
            values = values.tolist()
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape, "data": values}
        items.append(item)
    head = {"model_name": name, "model_version": version}
    if identifier:
        head["id"] = identifier
    return rest.written({**head, "outputs": items})
