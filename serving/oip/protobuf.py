"""ModelInferRequests and ModelInferResponses: protobuf's bytes to values and back."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from serving.batching.run import text_bytes
from serving.http2 import Pieces, Written
from serving.http2.pieces import Buffer
from serving.oip import inference_pb
from serving.oip.inference_pb import ModelInferRequest, ModelStreamInferResponse
from serving.oip.long_values import PART_BYTES, is_long, joined, raw_part
from serving.oip.parameters import IS_END, NO_PARAMETERS, parameters_of
from serving.oip.request import InferAnswer, Sent
from serving.oip.values import CONTENTS, as_bytes, to_raw, to_typed
from serving.protocols import parse, varint
from serving.protocols.framing import frame, frame_prefix
from serving.tensors import Array, Tensor

_OUTPUTS, _CONTENTS, _RAW_CONTENTS = b"\x2a", b"\x2a", b"\x32"
"""Tags: of an output in an answer, of its typed contents, and of raw contents in the answer."""
_NUM_VALUES = 16_384
"""Typed contents that are written at a time."""


def read(message: bytes) -> tuple[Any, Sent]:
    """Read a ModelInferRequest; return also the message.

    Raises:
        InvalidRequest: it is none.
    """
    request = parse(ModelInferRequest, message)
    return request, sent_in(request)


def sent_in(request: Any) -> Sent:
    """Return what a ModelInferRequest says."""
    inputs, raw = request.inputs, request.raw_input_contents
    is_raw = len(raw) > 0 or not inputs
    parameters = parameters_of(request.parameters) if request.parameters else NO_PARAMETERS
    values = raw if is_raw else inputs
    sent = Sent(inputs, values, request.outputs, request.id, parameters, is_raw)
    if is_raw and len(raw) != len(inputs):
        text = f"expected {len(inputs)} raw_input_contents, got {len(raw)}"
        return sent._replace(values=(), fault=text)
    if is_raw and any(each.HasField("contents") for each in inputs):
        return sent._replace(fault="expected contents or raw_input_contents, got both")
    return sent


def message_of(answer: InferAnswer) -> Any:
    """Build the ModelInferResponse of an answer.

    FP16 has no typed contents: where one is wanted, all tensors are raw.
    """
    response = _described(answer)
    if _is_raw(answer):
        response.raw_output_contents.extend(map(to_raw, answer.arrays))
        return response
    for output, array in zip(response.outputs, answer.arrays, strict=True):
        getattr(output.contents, CONTENTS[output.datatype]).extend(to_typed(array))
    return response


def _described(answer: InferAnswer) -> Any:
    """Build a ModelInferResponse without contents."""
    request, arrays, version, identifier, is_end = answer
    response = inference_pb.ModelInferResponse(
        model_name=request.name, model_version=version, id=identifier
    )
    for tensor, array in zip(request.tensors, arrays, strict=True):
        response.outputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
    if is_end is not None:
        response.parameters[IS_END].bool_param = is_end
    return response


def _is_raw(answer: InferAnswer) -> bool:
    request = answer.request
    return any(request.as_bytes) or any(each.datatype not in CONTENTS for each in request.tensors)


class Messages:
    """Writes answers as framed messages."""

    def __init__(self, *, is_stream: bool = False) -> None:
        """Prepare; on a stream each answer has another message around it."""
        self._is_stream = is_stream

    def write(self, answer: InferAnswer) -> bytes | Pieces:
        """Write an answer; a long one from its arrays."""
        if is_long(answer.arrays):
            return self._pieces(answer)
        response = message_of(answer)
        if self._is_stream:
            response = ModelStreamInferResponse(infer_response=response)
        return frame(response.SerializeToString())

    def before(self, num_bytes: int) -> bytes:
        """Return the tag and the length of one of raw_output_contents."""
        return _RAW_CONTENTS + varint(num_bytes)

    def _pieces(self, answer: InferAnswer) -> Pieces:
        parts = _raw_parts(answer) if _is_raw(answer) else _typed_parts(answer)
        size = sum(num_bytes for num_bytes, _ in parts)
        around = b"\x12" + varint(size) if self._is_stream else b""
        return Pieces([frame_prefix(len(around) + size), around, *[part for _, part in parts]])


_Part = tuple[int, Buffer | Written]


def _raw_parts(answer: InferAnswer) -> list[_Part]:
    """Return an answer in parts: raw_output_contents are its last fields."""
    first = _described(answer).SerializeToString()
    parts: list[_Part] = [(len(first), first)]
    for array in answer.arrays:
        num_bytes, data = raw_part(array)
        before = _RAW_CONTENTS + varint(num_bytes)
        parts += [(len(before), before), (num_bytes, data)]
    return parts


def _typed_parts(answer: InferAnswer) -> list[_Part]:
    """Return an answer in parts: the contents of each output are its last field."""
    response = _described(answer)
    described = [each.SerializeToString() for each in response.outputs]
    response.ClearField("outputs")
    first = response.SerializeToString()
    parts: list[_Part] = [(len(first), first)]
    for tensor, array, text in zip(answer.request.tensors, answer.arrays, described, strict=True):
        num_bytes, contents = _typed_part(tensor, array)
        before = _CONTENTS + varint(num_bytes)
        size = len(text) + len(before) + num_bytes
        start = _OUTPUTS + varint(size) + text + before
        parts += [(len(start), start), (num_bytes, contents)]
    return parts


def _typed_part(tensor: Tensor, array: Array) -> _Part:
    """Return the InferTensorContents of an output, and their length.

    Numbers are a field of its own for some of them at a time: fields of packed numbers that follow
    one another are one list.
    """
    if tensor.datatype == "BYTES":
        sizes = map(text_bytes, array.ravel().tolist())
        num_bytes = sum(1 + len(varint(size)) + size for size in sizes)
        return num_bytes, Written(num_bytes, joined(_typed_texts(array)))
    flat, field = array.ravel(), CONTENTS[tensor.datatype]
    starts = range(0, len(flat), _NUM_VALUES)
    num_bytes = 0
    for at in starts:
        size = _packed_bytes(flat[at : at + _NUM_VALUES])
        num_bytes += 1 + len(varint(size)) + size
    return num_bytes, Written(
        num_bytes, (_packed(flat[at : at + _NUM_VALUES], field) for at in starts)
    )


def _typed_texts(array: Array) -> Iterator[Buffer]:
    for each in array.flat:
        yield b"\x42" + varint(text_bytes(each))
        for at in range(0, len(each), PART_BYTES):
            yield as_bytes(each[at : at + PART_BYTES])


def _packed(values: Array, field: str) -> bytes:
    contents = inference_pb.InferTensorContents(**{field: values.tolist()})
    data: bytes = contents.SerializeToString()
    return data


def _packed_bytes(values: Array) -> int:
    """Return the length of packed numbers: an integer has seven bits a byte, a negative one 64."""
    if values.dtype.kind == "f":
        return values.nbytes
    wide = values.astype(np.int64).view(np.uint64) if values.dtype != np.uint64 else values
    return len(wide) + sum(int((wide >= np.uint64(1 << bits)).sum()) for bits in range(7, 64, 7))
