"""KServe's first protocol: `instances`, a row each, and their `predictions`."""

from typing import Any

import numpy as np
import orjson

from serving.errors import InvalidRequest
from serving.oip import rest
from serving.oip.request import InferAnswer, Sent, SentInput
from serving.oip.rest import NONE, Unwritten
from serving.tensors import Tensor


def read(body: bytes, inputs: list[tuple[str, str]], base64: frozenset[str] = NONE) -> Sent:
    """Read a request, in another process perhaps.

    Args:
        body: JSON.
        inputs: the name and the datatype of each input.
        base64: those whose values are base64, or {"b64": base64}, since they are bytes.

    Raises:
        InvalidRequest: see `rest.read`.
    """
    rows = rest.object_of(body).get("instances")
    if not isinstance(rows, list) or not rows:
        raise InvalidRequest('expected {"instances": [...]}, a row each')
    if all(isinstance(row, dict) and row.keys() == dict(inputs).keys() for row in rows):
        columns = {each: [row[each] for row in rows] for each, _ in inputs}
    elif len(inputs) == 1 and (not isinstance(rows[0], dict) or base64):
        columns = {inputs[0][0]: rows}
    else:
        names = ", ".join(f'"{each}"' for each, _ in inputs)
        raise InvalidRequest(f"expected each instance as an object with {names or 'nothing'}")
    sent: list[SentInput] = []
    values: list[Any] = []
    for name, datatype in inputs:
        item = {"name": name, "datatype": datatype, "data": columns[name]}
        item["shape"] = rest.shape_of(columns[name])
        rest.read_input(item, b"", 0, base64, sent, values)
    return Sent(sent, rest.without_many_texts(values))


def write(answer: InferAnswer) -> bytes:
    """Write an answer.

    The predictions of one output are its rows; of several outputs objects, one a row, or one of all
    outputs if these have different numbers of rows.

    Raises:
        InvalidRequest: see `rest.write`.
    """
    arrays: dict[str, Any] = {}
    for tensor, array in zip(answer.request.tensors, answer.arrays, strict=True):
        rest.check_size(tensor.name, array.shape)
        arrays[tensor.name] = rest.plain_values(tensor, array)
    predictions: Any = arrays
    if len(arrays) == 1:
        predictions = next(iter(arrays.values()))
    elif _are_rows(answer):
        columns = [
            rest.single_values(each) if isinstance(each, np.ndarray) and each.ndim == 1 else each
            for each in arrays.values()
        ]
        rows = zip(*columns, strict=True)
        predictions = [dict(zip(arrays, row, strict=True)) for row in rows]
    return rest.written({"predictions": predictions})


def _are_rows(answer: InferAnswer) -> bool:
    """Return whether all outputs have the same rows."""
    numbers = {len(array) if array.ndim else -1 for array in answer.arrays}
    return len(numbers) == 1 and -1 not in numbers


def outline(answer: InferAnswer) -> list[bytes | Unwritten]:
    """Return the JSON of a long answer, in which values are to be written; see `write`.

    Raises:
        InvalidRequest: an output is too large for JSON.
    """
    outputs = [*zip(answer.request.tensors, answer.arrays, strict=True)]
    for tensor, array in outputs:
        rest.check_size(tensor.name, array.shape)
    if len(outputs) == 1:
        return [b'{"predictions":', Unwritten(*outputs[0]), b"}"]
    if not _are_rows(answer):
        return [b'{"predictions":', *_object(outputs), b"}"]
    text: list[bytes | Unwritten] = []
    for row in range(len(answer.arrays[0])):
        text += (b",", *_object([(tensor, array[row]) for tensor, array in outputs]))
    return [b'{"predictions":[', *text[1:], b"]}"]


def _object(outputs: list[tuple[Tensor, Any]]) -> list[bytes | Unwritten]:
    text: list[bytes | Unwritten] = []
    for tensor, value in outputs:
        text += (b",", orjson.dumps(tensor.name), b":", Unwritten(tensor, value))
    return [b"{", *text[1:], b"}"]
