"""The Open Inference Protocol's messages for clients: arrays to a request, an answer to arrays."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from serving.client.transport import malformed
from serving.errors import InvalidRequest
from serving.protocols.oip import inference_pb
from serving.protocols.oip.tensors import CONTENTS, from_raw, from_typed, to_raw
from serving.tensors import Array, Tensor, TensorSignature, as_feeds

MODEL_METADATA = f"/{inference_pb.SERVICE}/ModelMetadata"
MODEL_CONFIG = f"/{inference_pb.SERVICE}/ModelConfig"
MODEL_INFER = f"/{inference_pb.SERVICE}/ModelInfer"
REPOSITORY_INDEX = f"/{inference_pb.SERVICE}/RepositoryIndex"
_DOCUMENTS: dict[str, type] = {"labels": list, "axes": dict, "pictures": dict}
"""Parameters of a model's configuration that are JSON, and the type of each."""


def metadata_request(name: str, version: str) -> bytes:
    """Encode a ModelMetadataRequest."""
    request = inference_pb.ModelMetadataRequest(name=name, version=version)
    data: bytes = request.SerializeToString()
    return data


def ready_models(data: bytes, address: str) -> list[tuple[str, str]]:
    """Decode a RepositoryIndexResponse: names and versions of the models that are ready.

    Raises:
        Unavailable: it is not one.
    """
    try:
        response = inference_pb.RepositoryIndexResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, f"no index of models: {err}") from err
    return [(model.name, model.version) for model in response.models if model.state == "READY"]


def signature_of(data: bytes, address: str) -> TensorSignature:
    """Decode a ModelMetadataResponse; it does not say whether rows can be batched.

    Raises:
        Unavailable: it is not one, or has a data type that the protocol does not define.
    """
    try:
        response = inference_pb.ModelMetadataResponse.FromString(data)
        return TensorSignature(_tensors(response.inputs), _tensors(response.outputs), False)
    except (DecodeError, KeyError) as err:
        raise malformed(address, f"no metadata of tensors: {err}") from err


def named(signature: TensorSignature, axes: Mapping[str, Sequence[str]]) -> TensorSignature:
    """Return a signature with the graph's names of its axes."""
    inputs, outputs = (
        tuple(replace(each, names=tuple(axes.get(each.name, ()))) for each in side)
        for side in (signature.inputs, signature.outputs)
    )
    return replace(signature, inputs=inputs, outputs=outputs)


def config_of(data: bytes, address: str) -> dict[str, Any]:
    """Decode a ModelConfigResponse: its parameters, some of them JSON.

    Raises:
        Unavailable: it is not one.
    """
    try:
        config = inference_pb.ModelConfigResponse.FromString(data).config
        facts: dict[str, Any] = {
            name: each.string_value for name, each in config.parameters.items()
        }
        facts |= {name: json.loads(facts[name]) for name in _DOCUMENTS if name in facts}
    except (DecodeError, ValueError, RecursionError) as err:
        raise malformed(address, f"no configuration: {err}") from err
    for name, kind in _DOCUMENTS.items():
        if not isinstance(facts.get(name, kind()), kind):
            raise malformed(address, f"a configuration with {name} that are no {kind.__name__}")
    texts = [facts.get("labels", []), *facts.get("axes", {}).values()]
    if not all(isinstance(each, list) and all(map(_is_text, each)) for each in texts):
        raise malformed(address, "a configuration with labels or axes that are no texts")
    return facts | {"max_batch_size": config.max_batch_size}


def infer_request(
    name: str, version: str, signature: TensorSignature, inputs: Mapping[str, object],
    outputs: Sequence[str],
) -> bytes:  # fmt: skip
    """Encode a ModelInferRequest.

    Raises:
        InvalidRequest: an input is missing or unknown, or has another type or shape.
    """
    request = inference_pb.ModelInferRequest(model_name=name, model_version=version)
    for tensor, array in zip(signature.inputs, as_feeds(signature, inputs).values(), strict=True):
        request.inputs.add(name=tensor.name, datatype=tensor.datatype, shape=array.shape)
        request.raw_input_contents.append(to_raw(array))
    for output in outputs:
        request.outputs.add(name=output)
    data: bytes = request.SerializeToString()
    return data


def arrays_of(data: bytes, address: str) -> dict[str, Array]:
    """Decode a ModelInferResponse.

    Raises:
        Unavailable: it is not one, or its tensors contradict their description.
    """
    try:
        response = inference_pb.ModelInferResponse.FromString(data)
        tensors, raw = _tensors(response.outputs), response.raw_output_contents
        if raw:
            pairs = zip(tensors, raw, strict=True)
            return {each.name: from_raw(raw, each, each.shape).copy() for each, raw in pairs}
        return {
            each.name: from_typed(
                getattr(output.contents, CONTENTS[each.datatype]), each, each.shape
            )
            for each, output in zip(tensors, response.outputs, strict=True)
        }
    except (DecodeError, KeyError, ValueError, InvalidRequest) as err:
        raise malformed(address, f"no tensors: {err}") from err


def _tensors(described: Any) -> tuple[Tensor, ...]:
    return tuple(Tensor(each.name, each.datatype, tuple(each.shape)) for each in described)


def _is_text(value: object) -> bool:
    return isinstance(value, str)
