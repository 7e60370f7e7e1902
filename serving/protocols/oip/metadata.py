"""The inference protocol's metadata of server and models, and their statistics."""

from collections.abc import Iterable, Mapping
from functools import cache
from typing import Any

from serving.commandline import installation
from serving.config import BatchingConfig
from serving.protocols.oip import inference_pb
from serving.telemetry.metrics import Counts
from serving.tensors import Tensor, TensorSignature

_PLATFORM, _BACKEND = "onnxruntime_onnx", "onnxruntime"
_EXTENSIONS = ("model_configuration", "statistics")
"""Only complete extensions: of "schedule_policy" there is the timeout, but no priority."""

_PARTS = {"queue": "queue", "compute_infer": "run", "compute_output": "output"}
"""The protocol's name of each part of a request, and ours."""


def server_metadata(*, controls_repository: bool = False) -> Any:
    """Build the ServerMetadataResponse; the operator may allow to load and unload models."""
    extensions = (*_EXTENSIONS, "model_repository") if controls_repository else _EXTENSIONS
    return inference_pb.ServerMetadataResponse(
        name=installation.DISTRIBUTION, version=_version(), extensions=extensions
    )


def model_metadata(name: str, versions: Iterable[str], tensors: TensorSignature) -> Any:
    """Build the ModelMetadataResponse; its shapes include the batch axis."""
    return inference_pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=_PLATFORM,
        inputs=map(_metadata_of, tensors.inputs),
        outputs=map(_metadata_of, tensors.outputs),
    )


def model_config(
    name: str, tensors: TensorSignature, batching: BatchingConfig, facts: Mapping[str, str]
) -> Any:
    """Build the ModelConfigResponse; its shapes leave the batch axis out, if there is one.

    Args:
        name: the model's.
        tensors: its inputs and outputs.
        batching: the sizes of its runs, if it can batch.
        facts: those without a field in the protocol, such as the device.
    """
    config = inference_pb.ModelConfig(
        name=name,
        platform=_PLATFORM,
        backend=_BACKEND,
        parameters={name: {"string_value": text} for name, text in facts.items()},
    )
    first = 1 if tensors.is_batchable else 0
    for each, described in ((tensors.inputs, config.input), (tensors.outputs, config.output)):
        for tensor in each:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            dims = tensor.shape[first:]
            described.add(name=tensor.name, data_type=f"TYPE_{kind}", dims=dims)
    if tensors.is_batchable:
        config.max_batch_size = batching.max_batch_size
        delay_us = round(batching.max_queue_delay_s * 1e6)
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
        config.dynamic_batching.SetInParent()
    return inference_pb.ModelConfigResponse(config=config)


def _metadata_of(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def model_statistics(model: tuple[str, str], counts: Counts, last_ms: int) -> Any:
    """Build the ModelStatistics of a version.

    Args:
        model: the model's name and its version.
        counts: from the metrics.
        last_ms: when it last answered, in milliseconds since 1970; 0 for never.
    """
    name, version = model
    number, times = counts.answered[model], counts.times_ns
    parts = {part: {"count": number, "ns": times[*model, own]} for part, own in _PARTS.items()}
    runs = {run[2]: run for run in sorted(counts.runs) if run[:2] == model}
    return inference_pb.ModelStatistics(
        name=name,
        version=version,
        last_inference=last_ms,
        inference_count=counts.rows[model],
        execution_count=sum(counts.runs[run] for run in runs.values()),
        inference_stats={
            **parts,
            "success": {"count": number, "ns": sum(part["ns"] for part in parts.values())},
            "compute_input": {"count": number},  # decoding is part of no run, and is not timed
            "fail": {"count": counts.failed[model], "ns": times[*model, "fail"]},
        },
        batch_stats=[
            {"batch_size": size,
             "compute_infer": {"count": counts.runs[run], "ns": counts.runs_ns[run]}}
            for size, run in runs.items()
        ],
    )  # fmt: skip


_version = cache(installation.version)
