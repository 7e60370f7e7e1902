"""ModelStatistics: counts and times of the inference protocol's requests since the start.

Answers to digits.v1 are not in it.
"""

import threading
import time
from collections import defaultdict, deque
from typing import Any

from serving.requests import Answer, Request
from serving.rpc.inference_pb import ModelStatistics

_REMEMBERED_RUNS = 32
"""Runs whose other answers may still come; more than there are cores to run at once."""


class Statistics:
    """Counts per version, so that a reload starts afresh; safe to use from many threads."""

    def __init__(self) -> None:
        self._versions: dict[str, _Version] = defaultdict(_Version)
        self._lock = threading.Lock()

    def count_success(self, call: Request, answer: Answer, moments_s: tuple[float, ...]) -> None:
        """Count requests that were answered: those of `answer`.

        Args:
            call: the request, for when it was queued.
            answer: its answer, for when it was run.
            moments_s: monotonic seconds: received, decoded, run and waiting here, encoded.
        """
        received_s, decoded_s, answered_s, encoded_s = moments_s
        batch, times = answer.batch, answer.num_calls
        run_s = batch.finished_s - batch.started_s
        with self._lock:
            counts = self._versions[batch.model.version]
            counts.last_inference_ms = time.time_ns() // 1_000_000
            counts.num_images += len(answer.digits)
            counts.success.add(encoded_s - received_s, times)
            counts.queue.add(batch.started_s - call.arrived_s, times)
            counts.compute_input.add(decoded_s - received_s, times)
            counts.compute_infer.add(run_s, times)
            counts.compute_output.add(encoded_s - answered_s, times)
            if batch.finished_s not in counts.runs:
                counts.runs.append(batch.finished_s)
                counts.num_runs += 1
                counts.batches[batch.num_rows].add(run_s)

    def count_failure(self, version: str, received_s: float) -> None:
        """Count a request for our model that ends now with an error."""
        with self._lock:
            self._versions[version].fail.add(time.monotonic() - received_s)

    def message(self, name: str, version: str) -> Any:
        """Build the ModelStatistics of a version."""
        durations = ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output")
        with self._lock:
            counts = self._versions[version]
            return ModelStatistics(
                name=name,
                version=version,
                last_inference=counts.last_inference_ms,
                inference_count=counts.num_images,
                execution_count=counts.num_runs,
                inference_stats={name: getattr(counts, name).fields() for name in durations},
                batch_stats=[
                    {"batch_size": size, "compute_infer": duration.fields()}
                    for size, duration in sorted(counts.batches.items())
                ],
            )


class _Duration:
    __slots__ = ("count", "total_s")

    def __init__(self) -> None:
        self.count = 0
        self.total_s = 0.0

    def add(self, seconds: float, times: int = 1) -> None:
        self.count += times
        self.total_s += seconds * times

    def fields(self) -> dict[str, int]:
        return {"count": self.count, "ns": max(0, round(self.total_s * 1e9))}


class _Version:
    def __init__(self) -> None:
        self.last_inference_ms = self.num_images = self.num_runs = 0
        self.success, self.fail, self.queue = _Duration(), _Duration(), _Duration()
        self.compute_input, self.compute_infer = _Duration(), _Duration()
        self.compute_output = _Duration()
        self.batches: dict[int, _Duration] = defaultdict(_Duration)
        self.runs: deque[float] = deque(maxlen=_REMEMBERED_RUNS)
        """When the latest runs finished: tells them apart."""
