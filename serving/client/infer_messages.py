"""The Open Inference Protocol's messages for clients: arrays to a request, an answer to arrays."""

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from google.protobuf.message import DecodeError

from serving import json_values
from serving.client.failures import malformed
from serving.errors import InvalidRequest, TooLarge
from serving.oip import inference_pb
from serving.oip.parameters import NO_PARAMETERS, REASON, set_parameter
from serving.oip.values import (
    CONTENTS,
    as_bytes,
    from_raw,
    from_typed,
    to_raw,
)
from serving.protocols.status import error_named
from serving.tensors import Array, Content, ModelInfo, Outputs, Tensor, as_feeds

MODEL_INFER = f"/{inference_pb.SERVICE}/ModelInfer"
MODEL_STREAM_INFER = f"/{inference_pb.SERVICE}/ModelStreamInfer"
_SPARE_BYTES = 4096
"""For the rest of a message: names, shapes, and its framing."""
_MAX_ANSWER_BYTES = 8 << 20
"""Outputs of one message of a batched model: more rows come in several answers."""


def infer_requests(
    name: str,
    version: str,
    info: ModelInfo,
    inputs: object,
    outputs: Sequence[str],
    parameters: Mapping[str, Any] = NO_PARAMETERS,
) -> list[bytes]:
    """Encode ModelInferRequests: one, or several if the rows are too many for one message.

    Raises:
        InvalidRequest: an input is missing or unknown, or has another type or shape.
        TooLarge: they don't fit into a message, and can't be divided.
    """
    feeds = as_feeds(info.tensors, json_values.written_inputs(info.inputs, inputs))
    empty = inference_pb.ModelInferRequest(model_name=name, model_version=version)
    for each, value in parameters.items():
        set_parameter(empty.parameters, each, value)
    return [_infer_request(empty, info, part, outputs) for part in _divided(feeds, info)]


def stream_request(
    name: str,
    version: str,
    info: ModelInfo,
    inputs: object,
    outputs: Sequence[str],
    parameters: Mapping[str, Any] = NO_PARAMETERS,
) -> bytes:
    """Encode the ModelInferRequest of a call that is answered in parts.

    Raises:
        InvalidRequest: see `infer_requests`.
        TooLarge: it does not fit into a message.
    """
    requests = infer_requests(name, version, info, inputs, outputs, parameters)
    if len(requests) > 1:
        raise TooLarge(f"model {name}: the rows of a stream must fit into one message")
    return requests[0]


def part_of(data: bytes, address: str, info: ModelInfo) -> Outputs:
    """Decode a ModelStreamInferResponse; see `outputs_of`.

    Raises:
        ServingError: it says that the call has failed.
    """
    try:
        response = inference_pb.ModelStreamInferResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, f"no answer of a stream: {err}") from err
    if response.error_message:
        reason = response.infer_response.parameters[REASON].string_param
        raise error_named(reason, f"{address}: {response.error_message}")
    return outputs_in(response.infer_response, address, info)


def _divided(feeds: dict[str, Array], info: ModelInfo) -> Iterator[dict[str, Array]]:
    """Yield the rows of all inputs, as many at a time as a message may have.

    Raises:
        TooLarge: a single row, or a model that is not batched, has more bytes than a message may.
    """
    sizes = {len(array) for array in feeds.values()} if info.is_batchable else set()
    num_rows = sizes.pop() if len(sizes) == 1 else 1
    num_bytes, most_bytes = sum(map(_num_bytes, feeds.values())), info.max_message_bytes or math.inf
    most_rows = info.max_request_rows or math.inf
    if info.is_batchable and (row_bytes := sum(each.row_bytes for each in info.outputs)):
        most_rows = min(most_rows, max(1, _MAX_ANSWER_BYTES // row_bytes))
    if num_rows <= most_rows and num_bytes + _SPARE_BYTES <= most_bytes:
        yield feeds
        return
    if num_rows == 1:
        what = "a row of it" if info.is_batchable else "it, which is not batched, so not divided,"
        raise TooLarge(
            f"model {info.name}: {what} takes {num_bytes} bytes, "
            f"and a message has at most {most_bytes}"
        )
    room = max(1.0, most_bytes - _SPARE_BYTES)
    num_parts = min(num_rows, math.ceil(max(2, num_rows / most_rows, num_bytes / room)))
    step = -(-num_rows // num_parts)
    for first in range(0, num_rows, step):
        part = {name: array[first : first + step] for name, array in feeds.items()}
        yield from _divided(part, info)


def _num_bytes(array: Array) -> int:
    """Return the bytes of an array in a message."""
    if array.dtype.kind != "O":
        return array.nbytes
    return sum(4 + len(as_bytes(each)) for each in array.flat)


def _infer_request(
    empty: Any, info: ModelInfo, feeds: Mapping[str, Array], outputs: Sequence[str]
) -> bytes:
    request = inference_pb.ModelInferRequest()
    request.CopyFrom(empty)
    for tensor, array in zip(info.inputs, feeds.values(), strict=True):
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    for output in outputs:
        request.outputs.add(name=output)
    data: bytes = request.SerializeToString()
    return data


def outputs_of(data: bytes, address: str, info: ModelInfo | None = None) -> Outputs:
    """Decode a ModelInferResponse.

    Args:
        data: the message.
        address: the server's, for errors.
        info: says which outputs are bytes; without it BYTES are texts.

    Raises:
        Unavailable: it is not one, or its tensors contradict their description.
    """
    try:
        response = inference_pb.ModelInferResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, f"no tensors: {err}") from err
    return outputs_in(response, address, info)


def outputs_in(response: Any, address: str, info: ModelInfo | None = None) -> Outputs:
    """Return the outputs of a ModelInferResponse; see `outputs_of`."""
    try:
        known = {} if info is None else {each.name: each.content for each in info.outputs}
        tensors, raw = tensors_of(response.outputs, known), response.raw_output_contents
        if raw:
            pairs = zip(tensors, raw, strict=True)
            arrays = {each.name: from_raw(raw, each, each.shape).copy() for each, raw in pairs}
        else:
            arrays = {
                each.name: from_typed(
                    getattr(output.contents, CONTENTS[each.datatype]), each, each.shape
                )
                for each, output in zip(tensors, response.outputs, strict=True)
            }
        for each in tensors:
            arrays[each.name] = json_values.parsed_output(each, arrays[each.name])
    except (KeyError, ValueError, InvalidRequest) as err:
        raise malformed(address, f"no tensors: {err}") from err
    return Outputs(arrays, response.model_version)


def joined(parts: Sequence[Outputs], address: str) -> Outputs:
    """Put the rows of several answers together; the version is the last one's.

    Raises:
        Unavailable: they have different outputs, or rows of different shapes.
    """
    if len(parts) == 1:
        return parts[0]
    try:
        arrays = {name: np.concatenate([each[name] for each in parts]) for name in parts[-1]}
    except (KeyError, ValueError) as err:
        raise malformed(address, f"parts that don't fit together: {err}") from err
    return Outputs(arrays, parts[-1].model_version)


def tensors_of(
    described: Any, contents: Mapping[str, Content] = NO_PARAMETERS
) -> tuple[Tensor, ...]:
    """Return the tensors that a message describes.

    Args:
        described: its tensors.
        contents: what BYTES are, by the tensors' names.
    """
    return tuple(
        Tensor(each.name, each.datatype, tuple(each.shape), content=contents.get(each.name, ""))
        for each in described
    )
