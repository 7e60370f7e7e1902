"""The inference protocol's metadata of server and models."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from serving.commandline import installation
from serving.protocols.oip import inference_pb
from serving.tensors import Tensor, TensorSignature

_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_EXTENSIONS = ("model_configuration", "statistics")
"""Only complete extensions: of "schedule_policy" there is the timeout, but no priority."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ServedModel:
    """The protocol's description of a model."""

    name: str
    versions: tuple[str, ...]
    """All that are served."""
    tensors: TensorSignature
    max_batch_size: int
    """The most rows in one run, if it can batch."""
    max_queue_delay_s: float = 0.0
    """How long a request waits for others to share its run."""
    parameters: Mapping[str, str] = field(default_factory=dict)
    """Facts without a field in the protocol, such as the device."""


def server_metadata(*, controls_repository: bool = False) -> Any:
    """Build the ServerMetadataResponse; the operator may allow to load and unload models."""
    extensions = (*_EXTENSIONS, "model_repository") if controls_repository else _EXTENSIONS
    return inference_pb.ServerMetadataResponse(
        name=installation.DISTRIBUTION, version=_version(), extensions=extensions
    )


def model_metadata(model: ServedModel) -> Any:
    """Build the ModelMetadataResponse; its shapes include the batch axis."""
    return inference_pb.ModelMetadataResponse(
        name=model.name,
        versions=model.versions,
        platform=_PLATFORM,
        inputs=map(_metadata_of, model.tensors.inputs),
        outputs=map(_metadata_of, model.tensors.outputs),
    )


def model_config(model: ServedModel) -> Any:
    """Build the ModelConfigResponse; its shapes leave the batch axis out, if there is one."""
    config = inference_pb.ModelConfig(
        name=model.name,
        platform=_PLATFORM,
        backend=_BACKEND,
        parameters={name: {"string_value": text} for name, text in model.parameters.items()},
    )
    first = 1 if model.tensors.is_batchable else 0
    for tensors, described in ((model.tensors.inputs, config.input),
                               (model.tensors.outputs, config.output)):  # fmt: skip
        for tensor in tensors:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            dims = tensor.shape[first:]
            described.add(name=tensor.name, data_type=f"TYPE_{kind}", dims=dims)
    if model.tensors.is_batchable:
        config.max_batch_size = model.max_batch_size
        delay_us = round(model.max_queue_delay_s * 1e6)
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
        config.dynamic_batching.SetInParent()
    return inference_pb.ModelConfigResponse(config=config)


def _metadata_of(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


_version = cache(installation.version)
