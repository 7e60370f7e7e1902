"""Long answers over HTTP: JSON whose texts are written part by part, and raw outputs behind it."""

from base64 import b64encode
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import orjson

from serving.http2.pieces import Buffer, Written
from serving.oip import rest
from serving.oip.long_answers import PART_BYTES, joined, raw_part
from serving.oip.rest import Form
from serving.tensors import Array, Tensor


class LongAnswer(NamedTuple):
    """The content of an answer over HTTP that is long."""

    name: str
    """The model's."""
    version: str
    id: str
    tensors: Sequence[Tensor]
    """The outputs that it has."""
    arrays: Sequence[Array]


def json_texts(array: Array, *, is_base64: bool) -> Iterator[Buffer]:
    """Write texts as a list of JSON, part by part.

    Args:
        array: texts, or bytes.
        is_base64: whether they are bytes, which JSON has as base64.
    """
    return joined(_json_texts(array, is_base64=is_base64))


def _json_texts(array: Array, *, is_base64: bool) -> Iterator[Buffer]:
    before = b"["
    for each in array.flat:
        yield before + b'"'
        for at in range(0, len(each), PART_BYTES):
            part = each[at : at + PART_BYTES]
            yield b64encode(part) if is_base64 else orjson.dumps(part)[1:-1]
        yield b'"'
        before = b","
    yield b"]" if array.size else b"[]"


def outline(answer: LongAnswer, form: Form) -> tuple[list[bytes | Array], list[Buffer | Written]]:
    """Return the JSON of an answer, in which outputs are to be written, and the raw ones behind.

    Raises:
        InvalidRequest: an output is too large for JSON.
    """
    head = {"model_name": answer.name, "model_version": answer.version}
    if answer.id:
        head["id"] = answer.id
    text: list[bytes | Array] = [orjson.dumps(head)[:-1] + b',"outputs":[']
    behind: list[Buffer | Written] = []
    between = b""
    for tensor, array in zip(answer.tensors, answer.arrays, strict=True):
        shape = list(array.shape)
        item = {"name": tensor.name, "datatype": tensor.datatype, "shape": shape}
        if form.wants_bytes(tensor.name):
            size, part = raw_part(array)
            text.append(between + orjson.dumps({**item, "parameters": {"binary_data_size": size}}))
            behind.append(part)
        else:
            rest.check_size(tensor.name, shape)
            text += (between + orjson.dumps(item)[:-1] + b',"data":', array, b"}")
        between = b","
    return [*text, b"]}"], behind


def json_numbers(array: Array) -> bytes:
    """Write an output's numbers as a list of JSON."""
    data = rest.written({"data": rest.plain_values(array.ravel())})
    return data[data.index(b"[") : -1]
