"""Messages about models for clients: which are ready, and a model's description."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from google.protobuf.message import DecodeError

from serving.client.failures import malformed
from serving.client.infer_messages import tensors_of
from serving.oip import inference_pb
from serving.tensors import ModelInfo, Tensor, content_of

MODEL_METADATA = f"/{inference_pb.SERVICE}/ModelMetadata"
MODEL_CONFIG = f"/{inference_pb.SERVICE}/ModelConfig"
REPOSITORY_INDEX = f"/{inference_pb.SERVICE}/RepositoryIndex"
_NUMBER = (int, float)
_PARAMETERS: dict[str, type | tuple[type, ...]] = {
    "version": str, "default_version": str, "canary_version": str, "batching": str,
    "device": str, "precision": str, "optimized": str, "versions": list, "labels": list,
    "axes": dict, "contents": dict, "not_served": dict, "pictures": dict,
    "max_request_rows": int, "max_message_bytes": int, "test_accuracy": _NUMBER,
}  # fmt: skip
"""Parameters of a model's configuration, and the type of each: texts, and others as JSON."""


def metadata_request(name: str, version: str) -> bytes:
    """Encode a ModelMetadataRequest."""
    request = inference_pb.ModelMetadataRequest(name=name, version=version)
    data: bytes = request.SerializeToString()
    return data


def ready_models(data: bytes, address: str) -> list[str]:
    """Decode a RepositoryIndexResponse: the names of the models that are ready.

    Raises:
        Unavailable: it is not one.
    """
    try:
        response = inference_pb.RepositoryIndexResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, f"no index of models: {err}") from err
    return [*dict.fromkeys(each.name for each in response.models if each.state == "READY")]


def model_info(metadata: bytes, config: bytes | None, version: str, address: str) -> ModelInfo:
    """Make a description of a ModelMetadataResponse and a ModelConfigResponse.

    Args:
        metadata: the former.
        config: the latter; None from servers without it.
        version: the version that was asked for, or a label; empty for the default.
        address: the server's, for errors.

    Raises:
        Unavailable: they are none, or have a data type that the protocol does not define.
    """
    try:
        response = inference_pb.ModelMetadataResponse.FromString(metadata)
        inputs, outputs = tensors_of(response.inputs), tensors_of(response.outputs)
    except (DecodeError, KeyError) as err:
        raise malformed(address, f"no metadata of tensors: {err}") from err
    no_config: tuple[dict[str, Any], int, bool] = {}, 0, False
    found = _config_of(config, address) if config else no_config
    parameters, max_batch_size, in_parts = found
    axes, contents = parameters.get("axes", {}), parameters.get("contents", {})
    versions = tuple(parameters.get("versions") or response.versions)
    newest = versions[0] if versions else ""
    return ModelInfo(
        name=response.name,
        version=parameters.get("version") or version or newest,
        versions=versions,
        default_version=parameters.get("default_version") or newest,
        canary_version=parameters.get("canary_version"),
        not_served=parameters.get("not_served", {}),
        inputs=_named(inputs, axes, contents),
        outputs=_named(outputs, axes, contents),
        is_batchable=max_batch_size > 0,
        in_parts=in_parts,
        batching=parameters.get("batching", ""),
        device=parameters.get("device", ""),
        precision=parameters.get("precision", ""),
        optimized=parameters.get("optimized", ""),
        max_batch_size=max_batch_size,
        max_request_rows=parameters.get("max_request_rows"),
        max_message_bytes=parameters.get("max_message_bytes"),
        labels=tuple(parameters.get("labels", ())),
        pictures=parameters.get("pictures"),
        test_accuracy=parameters.get("test_accuracy"),
    )


def _named(
    side: tuple[Tensor, ...], axes: Mapping[str, Sequence[str]], contents: Mapping[str, str]
) -> tuple[Tensor, ...]:
    """Return tensors with the graph's names of their axes, and what BYTES are."""
    return tuple(
        replace(
            each,
            names=tuple(axes.get(each.name, ())),
            content=content_of(contents.get(each.name, "")),
        )
        for each in side
    )


def _config_of(data: bytes, address: str) -> tuple[dict[str, Any], int, bool]:
    """Decode a ModelConfigResponse: known parameters, a batch's most rows, whether it has parts.

    Raises:
        Unavailable: it is not one, or a parameter has a wrong type.
    """
    try:
        config = inference_pb.ModelConfigResponse.FromString(data).config
        texts = {name: each.string_value for name, each in config.parameters.items()}
        known = {
            name: text if _PARAMETERS[name] is str else json.loads(text)
            for name, text in texts.items()
            if name in _PARAMETERS
        }
    except (DecodeError, ValueError, RecursionError) as err:
        raise malformed(address, f"no configuration: {err}") from err
    for name, value in known.items():
        if not isinstance(value, _PARAMETERS[name]) or isinstance(value, bool):
            raise malformed(address, f"a configuration with a wrong {name}")
    lists = [known.get("labels", []), known.get("versions", []), *known.get("axes", {}).values()]
    lists += [[*known.get(name, {}).values()] for name in ("contents", "not_served")]
    if not all(isinstance(each, list) and all(map(_is_text, each)) for each in lists):
        raise malformed(address, "a configuration with labels or other facts that are no texts")
    return known, config.max_batch_size, config.model_transaction_policy.decoupled


def _is_text(value: object) -> bool:
    return isinstance(value, str)
