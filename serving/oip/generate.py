"""Triton's generate extension: inputs and outputs as members of a JSON object, parts as events."""

from typing import Any

import orjson

from serving.errors import InvalidRequest
from serving.oip import rest
from serving.oip.request import InferAnswer, Sent, SentInput
from serving.oip.rest import NONE

_OWN = ("id", "parameters")
"""Members that are no inputs."""


def read(body: bytes, inputs: list[tuple[str, str, int]], base64: frozenset[str] = NONE) -> Sent:
    """Read a request, in another process perhaps: {"prompt": "once", "id": "1", "parameters": {}}.

    Args:
        body: JSON. A value that is no list, or of fewer axes than its input has, is one row.
        inputs: the name, the datatype and the number of axes of each input.
        base64: those whose values are base64.

    Raises:
        InvalidRequest: see `rest.read`; or a member is neither an input nor one of the protocol's.
    """
    found = rest.object_of(body)
    known = [name for name, _, _ in inputs]
    for name in found:
        if name not in known and name not in _OWN:
            expected = ", ".join([*known, *_OWN])
            raise InvalidRequest(f"expected members of {expected}, got {name[:80]!r}")
    sent: list[SentInput] = []
    values: list[Any] = []
    for name, datatype, num_axes in inputs:
        if name not in found:
            raise InvalidRequest(f"expected the input {name}")
        data = found[name]
        while len(shape := rest.shape_of(data)) < max(1, num_axes):
            data = [data]
        item = {"name": name, "datatype": datatype, "data": data, "shape": shape}
        rest.read_input(item, b"", 0, base64, sent, values)
    rest_of = {name: found[name] for name in _OWN if name in found}
    head = rest.read(orjson.dumps({"inputs": [], **rest_of}), None, base64)
    return head._replace(inputs=sent, values=rest.without_many_texts(values))


def write(answer: InferAnswer) -> bytes:
    """Write an answer, or a part of one: outputs of one value are that value.

    Raises:
        InvalidRequest: see `rest.write`.
    """
    found: dict[str, Any] = {"id": answer.id} if answer.id else {}
    found |= {"model_name": answer.request.name, "model_version": answer.version}
    for tensor, array in zip(answer.request.tensors, answer.arrays, strict=True):
        rest.check_size(tensor.name, array.shape)
        if array.size == 1 and array.dtype.kind != "O":
            (found[tensor.name],) = rest.single_values(array.ravel())
        else:
            values = rest.plain_values(tensor, array)
            while array.size == 1 and isinstance(values, list):
                (values,) = values
            found[tensor.name] = values
    try:
        return orjson.dumps(found, option=orjson.OPT_SERIALIZE_NUMPY)
    except orjson.JSONEncodeError as err:
        raise InvalidRequest(f"an output can't be written as JSON: {err}") from err


def event(content: bytes) -> bytes:
    """Write a server-sent event."""
    return b"data: %b\n\n" % content
