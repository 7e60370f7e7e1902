"""The inference protocol's metadata of server and model."""

from functools import cache
from typing import Any

from serving import installation
from serving.config import BatchingConfig
from serving.errors import ModelNotFound
from serving.model.info import ModelInfo
from serving.protocols.oip import inference_pb
from serving.protocols.oip.tensors import INPUT, OUTPUT, quoted

_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_EXTENSIONS = ("model_configuration", "statistics")
"""Only complete extensions: of "schedule_policy" there is the timeout, but no priority."""


def check_model(name: str, version: str, info: ModelInfo) -> None:
    """Check that a request is for the served model; an empty version means the one in service.

    Raises:
        ModelNotFound: another name, or another version.
    """
    if name != info.name:
        raise ModelNotFound(f"no model {quoted(name)}: this server serves {info.name!r}")
    if version not in ("", info.version):
        raise ModelNotFound(
            f"no version {quoted(version)} of {info.name!r}: this server serves {info.version!r}"
        )


def server_metadata() -> Any:
    """Build the ServerMetadataResponse."""
    return inference_pb.ServerMetadataResponse(
        name=installation.DISTRIBUTION, version=_version(), extensions=_EXTENSIONS
    )


def model_metadata(info: ModelInfo) -> Any:
    """Build the ModelMetadataResponse; its shapes include the batch axis."""
    signature = info.signature
    return inference_pb.ModelMetadataResponse(
        name=info.name,
        versions=[info.version],
        platform=_PLATFORM,
        inputs=[{"name": INPUT, "datatype": "UINT8", "shape": [-1, signature.image_bytes]}],
        outputs=[{"name": OUTPUT, "datatype": "FP32", "shape": [-1, signature.num_classes]}],
    )


def model_config(info: ModelInfo, batching: BatchingConfig) -> Any:
    """Build the ModelConfigResponse; its shapes leave the batch axis out."""
    signature = info.signature
    config = {
        "name": info.name,
        "platform": _PLATFORM,
        "backend": _BACKEND,
        "max_batch_size": info.max_batch_size,
        "input": [{"name": INPUT, "data_type": "TYPE_UINT8", "dims": [signature.image_bytes]}],
        "output": [{"name": OUTPUT, "data_type": "TYPE_FP32", "dims": [signature.num_classes]}],
        "dynamic_batching": {
            "max_queue_delay_microseconds": round(batching.max_queue_delay_s * 1e6)
        },
        # The protocol has no field for this: a request may have more images than a run.
        "parameters": {
            "max_request_images": {"string_value": str(info.max_request_images)},
            "precision": {"string_value": info.precision},
            "device": {"string_value": info.device},
        },
    }
    return inference_pb.ModelConfigResponse(config=config)


def repository_index(info: ModelInfo, *, is_ready: bool, only_ready: bool) -> Any:
    """Build the RepositoryIndexResponse: the version in service."""
    if only_ready and not is_ready:
        return inference_pb.RepositoryIndexResponse()
    state = {"state": "READY"} if is_ready else {"state": "UNAVAILABLE", "reason": "not ready"}
    model = {"name": info.name, "version": info.version, **state}
    return inference_pb.RepositoryIndexResponse(models=[model])


_version = cache(installation.version)
