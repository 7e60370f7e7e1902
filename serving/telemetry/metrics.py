"""Counts and histograms of calls and runs, and what the metrics page shows of them."""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from serving.config import BatchingConfig
from serving.predictions import ClassNumbers, Digits
from serving.system.process import Usage

_SECONDS = tuple(
    mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1, 2.5, 5)
)  # 10 µs to 5 s
_CERTAINTIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_CLASSIFIED, _MAX_CLASSIFIED_BYTES = 256, 64 << 10
"""Runs of classifiers, and bytes of their probabilities, that are kept before they are counted."""


class Histogram:
    """Counts of values between fixed bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """Start empty; a value equal to a bound counts below it, as in Prometheus."""
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.sum = 0.0

    def add(self, value: float, times: int = 1) -> None:
        """Count a value `times` times."""
        self.counts[bisect_left(self.bounds, value)] += times
        self.sum += value * times

    def add_all(self, values: npt.NDArray[np.float32]) -> None:
        """Count many values at once."""
        places = np.searchsorted(self.bounds, values)
        added = np.bincount(places, minlength=len(self.counts))
        self.counts = [a + b for a, b in zip(self.counts, added.tolist(), strict=True)]
        self.sum += float(values.sum(dtype=np.float64))

    def cumulative(self) -> list[tuple[str, float]]:
        """Return (upper bound, number of values up to it), as the exposition format needs them."""
        names = [*map(str, self.bounds), "+Inf"]
        return [(name, sum(self.counts[: i + 1])) for i, name in enumerate(names)]

    def __add__(self, other: "Histogram") -> "Histogram":
        """Return the sum of both; they have the same bounds."""
        total = Histogram(self.bounds)
        total.counts = [a + b for a, b in zip(self.counts, other.counts, strict=True)]
        total.sum = self.sum + other.sum
        return total


@dataclass(slots=True)
class Counts:
    """Everything that is counted; the counts of several processes add up."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that have ended, by method and status."""
    answered: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that were answered by a run, by the model's name and version."""
    rows: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Rows run, by the model's name and version."""
    failed: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that were accepted or refused by a batcher and got no answer, likewise."""
    times_ns: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    """Nanoseconds of all calls, by name, version and "queue", "run", "output" or "fail"."""
    runs: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Runs, by name, version and number of rows."""
    runs_ns: Counter[tuple[str, str, int]] = field(default_factory=Counter)
    """Their nanoseconds, likewise."""
    reloads: Counter[str] = field(default_factory=Counter)
    """Reloads: "adopted", or "failed" for a version that was refused."""
    restarts: int = 0
    """Workers that died and were restarted."""
    cpu_s: float = 0.0
    """Processor time, including processes that have ended."""
    digits: Counter[int] = field(default_factory=Counter)
    """Images run, by the digit that was answered."""
    certainty: Histogram = field(default_factory=partial(Histogram, _CERTAINTIES))
    """The probability of that digit: it falls when the pictures differ from the training images."""
    batch_images: Histogram = field(default_factory=partial(Histogram, _IMAGES))
    queue_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    run_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    request_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))

    def __add__(self, other: "Counts") -> "Counts":
        """Return the sum of two processes' counts; both stay unchanged."""
        names = [each.name for each in fields(self)]
        return Counts(**{name: getattr(self, name) + getattr(other, name) for name in names})


class _Runs:
    """What is counted of a version's runs."""

    __slots__ = ("by_rows", "num_calls", "output_s", "queue_s", "run_s")

    def __init__(self) -> None:
        self.by_rows: dict[int, list[int]] = {}
        """Runs, and their nanoseconds, by their number of rows."""
        self.num_calls = 0
        self.queue_s = self.run_s = self.output_s = 0.0
        """Seconds of all calls."""


class Metrics:
    """The counts of one server process; safe to call from many threads."""

    def __init__(self) -> None:
        self._counts = Counts()
        """All but what `_runs`, `_ok` and `_classified` have."""
        self._lock = threading.Lock()
        self._runs: dict[tuple[str, str], _Runs] = {}
        self._ok: dict[str, int] = {}
        """Calls that runs have answered, by method."""
        self._classified: list[tuple[ClassNumbers, bytes]] = []
        self._num_classified_bytes = 0
        self.last_ms: dict[tuple[str, str], int] = {}
        """When a version last answered, in milliseconds since 1970, by the model's name and it."""

    def observe_run(
        self,
        started_s: float,
        finished_s: float,
        num_rows: int,
        requests: Sequence[tuple[float, str | None, int]],
        classified: tuple[ClassNumbers, bytes] | None = None,
        model: tuple[str, str] = ("", ""),
    ) -> None:
        """Count a run that succeeded; from any thread.

        Args:
            started_s: when it began, in monotonic seconds.
            finished_s: when it ended.
            num_rows: the rows of the run: images.
            requests: the answered requests: arrival, method to count an answered call under (None
                if it is counted elsewhere), number of such calls.
            classified: of a classifier the class number of each image of the run, and their
                probabilities: float32, one for each image and class.
            model: the name and the version that ran.
        """
        now_s, run_s = time.monotonic(), finished_s - started_s
        self.last_ms[model] = time.time_ns() // 1_000_000
        counts, ok = self._counts, self._ok
        with self._lock:
            runs = self._runs.get(model)
            if runs is None:
                runs = self._runs[model] = _Runs()
            if (alike := runs.by_rows.get(num_rows)) is None:
                alike = runs.by_rows[num_rows] = [0, 0]
            alike[0] += 1
            alike[1] += _ns(run_s)
            counts.run_s.add(run_s)
            num_calls = 0
            for arrived_s, method, times in requests:
                num_calls += times
                queue_s = started_s - arrived_s
                runs.queue_s += queue_s * times
                counts.queue_s.add(queue_s, times)
                counts.request_s.add(finished_s - arrived_s, times)
                if method is not None:
                    ok[method] = ok.get(method, 0) + times
            runs.num_calls += num_calls
            runs.run_s += run_s * num_calls
            runs.output_s += (now_s - finished_s) * num_calls
            if classified is not None:
                self._classified.append(classified)
                self._num_classified_bytes += len(classified[1])
                if (
                    self._num_classified_bytes > _MAX_CLASSIFIED_BYTES
                    or len(self._classified) >= _MAX_CLASSIFIED
                ):
                    self._count_classes()

    def _count_classes(self) -> None:
        """Count the classes of many runs; the lock is held."""
        found: dict[tuple[type, int], list[tuple[ClassNumbers, bytes]]] = {}
        for classes, rows in self._classified:
            found.setdefault((type(classes), len(rows) // len(classes)), []).append((classes, rows))
        self._classified, self._num_classified_bytes = [], 0
        for (kind, _), alike in found.items():
            digits, probabilities = map(b"".join, zip(*alike, strict=True))
            # All at once: some 8 us, and 10 ns an image.
            answered: Digits = np.frombuffer(digits, np.uint8 if kind is bytes else np.uintc)
            table = np.frombuffer(probabilities, "<f4").reshape(len(answered), -1)
            added = enumerate(np.bincount(answered).tolist())
            self._counts.digits.update({digit: number for digit, number in added if number})
            self._counts.certainty.add_all(table[np.arange(len(answered)), answered])

    def count(self, method: str, status: str, times: int = 1) -> None:
        """Count a call that has ended, unless `observe_run` does; from any thread."""
        with self._lock:
            self._counts.requests[method, status] += times

    def count_failure(self, model: tuple[str, str], duration_s: float, times: int) -> None:
        """Count calls for a version, of a name and this version, that end with an error."""
        with self._lock:
            self._counts.failed[model] += times
            self._counts.times_ns[*model, "fail"] += _ns(duration_s * times)

    def count_reload(self, outcome: str) -> None:
        """Count a reload: "adopted", or "failed" for a version that was refused."""
        with self._lock:
            self._counts.reloads[outcome] += 1

    def snapshot(self) -> Counts:
        """Return a copy of the counts so far."""
        with self._lock:
            self._count_classes()
            self._counts.cpu_s = time.process_time()
            counts = self._counts + Counts()
            counts.requests.update({(method, "OK"): times for method, times in self._ok.items()})
            for model, runs in self._runs.items():
                counts.answered[model] += runs.num_calls
                for part in ("queue", "run", "output"):
                    counts.times_ns[*model, part] += _ns(getattr(runs, f"{part}_s"))
                for num_rows, (number, nanoseconds) in runs.by_rows.items():
                    counts.rows[model] += num_rows * number
                    counts.batch_images.add(num_rows, number)
                    counts.runs[*model, num_rows] += number
                    counts.runs_ns[*model, num_rows] += nanoseconds
            return counts

    @property
    def num_images(self) -> int:
        """The images run so far."""
        with self._lock:
            alike = [each for runs in self._runs.values() for each in runs.by_rows.items()]
        return sum(num_rows * number for num_rows, (number, _) in alike)


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


class Served(NamedTuple):
    """A version in service."""

    name: str
    version: str
    device: str
    precision: str
    transport: str
    num_classes: int
    """Of a classifier; 0 of other models."""


class Readiness(NamedTuple):
    """Health, as /readyz shows it."""

    is_serving: bool = False
    stuck_models: frozenset[str] = frozenset()
    """Models that do not answer, or wrongly, while the server goes on."""


class Report(NamedTuple):
    """The content of the metrics page at one moment; workers send it to their supervisor."""

    models: tuple[Served, ...]
    """The served models: the default version of each."""
    batching: BatchingConfig
    """Sizes and limits, of each model."""
    num_waiting: int
    """Rows that wait for a run."""
    queue_capacity: int
    """The most rows that may wait."""
    num_calls: int
    """Calls in progress."""
    is_serving: bool
    """Whether health is SERVING."""
    usage: Usage
    """Memory and file descriptors of the process."""
    counts: Counts
    """The counts so far."""
    stuck_models: frozenset[str] = frozenset()
    """Models that do not answer, or wrongly."""

    def ended(self) -> "Report":
        """Return the report of a process that has ended: its models, and zeros."""
        return self._replace(
            num_waiting=0, num_calls=0, is_serving=False, usage=Usage(), counts=Counts()
        )


def total(reports: list[Report], earlier: Counts) -> Report:
    """Add up the reports of workers, at least one, and the counts of those that died."""
    counts = sum([report.counts for report in reports], earlier)
    usages = [Usage.now(), *(report.usage for report in reports)]  # the supervisor's, too
    return Report(
        models=reports[0].models,
        batching=reports[0].batching,
        num_waiting=sum(report.num_waiting for report in reports),
        queue_capacity=sum(report.queue_capacity for report in reports),
        num_calls=sum(report.num_calls for report in reports),
        is_serving=all(report.is_serving for report in reports),
        usage=Usage(*map(sum, zip(*usages, strict=True))),
        counts=replace(counts, cpu_s=counts.cpu_s + time.process_time()),
        stuck_models=frozenset[str]().union(*(report.stuck_models for report in reports)),
    )
