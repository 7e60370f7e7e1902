"""ModelStatistics: counts and times of all requests for a version since the start."""

from typing import Any

from serving.protocols.oip.inference_pb import ModelStatistics
from serving.telemetry.metrics import Counts

_PARTS = {"queue": "queue", "compute_infer": "run", "compute_output": "output"}
"""The protocol's name of each part of a request, and ours."""


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
    return ModelStatistics(
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
