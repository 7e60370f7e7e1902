"""ModelStatistics: counts and times of the inference protocol's requests since the start.

Requests of digits.v1 are not included.
"""

import threading
import time
from collections import defaultdict, deque
from typing import Any, NamedTuple

from serving.protocols.oip.inference_pb import ModelStatistics

_REMEMBERED_RUNS = 32
"""Runs that are remembered since more of their answers may come; more than concurrent runs."""


class Statistics:
    """Counts per version, so that a reload starts at zero; safe to use from many threads."""

    def __init__(self) -> None:
        self._versions: dict[tuple[str, str], _Version] = defaultdict(_Version)
        self._lock = threading.Lock()

    def count_success(self, name: str, version: str, answered: "Answered", run: "Run") -> None:
        """Count answered requests of one run."""
        times, output_s = answered.num_calls, time.monotonic() - run.finished_s
        queue_s, run_s = run.started_s - answered.arrived_s, run.finished_s - run.started_s
        with self._lock:
            counts = self._versions[name, version]
            counts.last_inference_ms = time.time_ns() // 1_000_000
            counts.num_rows += answered.num_rows
            counts.queue.add(queue_s, times)
            counts.compute_input.add(answered.decode_s, times)
            counts.compute_infer.add(run_s, times)
            counts.compute_output.add(output_s, times)
            if run.finished_s not in counts.runs:
                counts.runs.append(run.finished_s)
                counts.num_runs += 1
                counts.batches[run.num_rows].add(run_s)

    def count_failure(self, name: str, version: str, duration_s: float, num_calls: int = 1) -> None:
        """Count requests for a version of a model that ended with an error."""
        with self._lock:
            self._versions[name, version].fail.add(duration_s, num_calls)

    def message(self, name: str, version: str) -> Any:
        """Build the ModelStatistics of a version."""
        with self._lock:
            counts = self._versions[name, version]
            return ModelStatistics(
                name=name,
                version=version,
                last_inference=counts.last_inference_ms,
                inference_count=counts.num_rows,
                execution_count=counts.num_runs,
                inference_stats=counts.durations(),
                batch_stats=[
                    {"batch_size": size, "compute_infer": duration.fields()}
                    for size, duration in sorted(counts.batches.items())
                ],
            )


class Answered(NamedTuple):
    """Requests of one layout that were answered together."""

    num_calls: int
    num_rows: int
    """The rows of all of them."""
    arrived_s: float
    """When they were read, in monotonic seconds."""
    decode_s: float
    """How long decoding one of them took."""


class Run(NamedTuple):
    """The run that answered them; all times in monotonic seconds."""

    num_rows: int
    started_s: float
    finished_s: float


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
        self.last_inference_ms = self.num_rows = self.num_runs = 0
        self.fail, self.queue = _Duration(), _Duration()
        self.compute_input, self.compute_infer = _Duration(), _Duration()
        self.compute_output = _Duration()
        self.batches: dict[int, _Duration] = defaultdict(_Duration)
        self.runs: deque[float] = deque(maxlen=_REMEMBERED_RUNS)
        """When the latest runs finished, which identifies them."""

    def durations(self) -> dict[str, dict[str, int]]:
        """Return all durations by name; that of success is the sum of its parts."""
        parts = {
            name: getattr(self, name).fields()
            for name in ("queue", "compute_input", "compute_infer", "compute_output")
        }
        whole = {"count": self.queue.count, "ns": sum(part["ns"] for part in parts.values())}
        return {"success": whole, "fail": self.fail.fields(), **parts}
