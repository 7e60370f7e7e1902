"""The server's counters and histograms.

Timings travel with each run, so nothing is observed per request. A run is put into a list, and many
runs are added up at once: when the metrics are read, or when there are enough of them.
"""

import threading
import time
from bisect import bisect_left
from collections import Counter, deque
from collections.abc import Sequence
from dataclasses import dataclass, field, fields
from functools import partial

import numpy as np
import numpy.typing as npt

from serving.predictions import ClassNumbers, Digits

_SECONDS = tuple(
    mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1, 2.5, 5)
)  # 10 µs to 5 s
_CERTAINTIES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)
_IMAGES = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)


_MAX_RUNS = 64
"""Runs that are kept before they are added up."""
_Run = tuple[
    float, float, int, Sequence[tuple[float, str | None, int]], tuple[ClassNumbers, bytes] | None,
    tuple[str, str], float,
]  # fmt: skip
"""The arguments of `observe_run`, and the time of the call."""


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


class Metrics:
    """The counts of one server process; safe to call from many threads."""

    def __init__(self) -> None:
        """Start at zero."""
        self._counts = Counts()
        self._lock = threading.Lock()
        self._runs: deque[_Run] = deque()
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
        now_s = time.monotonic()
        self._runs.append((started_s, finished_s, num_rows, requests, classified, model, now_s))
        self.last_ms[model] = time.time_ns() // 1_000_000
        if len(self._runs) >= _MAX_RUNS:
            self.add_up()

    def add_up(self) -> None:
        """Add the kept runs to the counts."""
        counts = self._counts
        with self._lock:
            outcomes: dict[tuple[type, int], list[tuple[ClassNumbers, bytes]]] = {}
            while self._runs:
                started_s, finished_s, num_rows, requests, classified, model, now_s = (
                    self._runs.popleft()
                )
                if classified is not None:
                    classes, rows = classified
                    alike = type(classes), len(rows) // len(classes)
                    outcomes.setdefault(alike, []).append(classified)
                counts.batch_images.add(num_rows)
                counts.run_s.add(finished_s - started_s)
                counts.rows[model] += num_rows
                num_calls, queue_s = 0, 0.0
                for arrived_s, method, times in requests:
                    num_calls += times
                    queue_s += (started_s - arrived_s) * times
                    counts.queue_s.add(started_s - arrived_s, times)
                    counts.request_s.add(finished_s - arrived_s, times)
                    if method is not None:
                        counts.requests[method, "OK"] += times
                counts.answered[model] += num_calls
                counts.runs[*model, num_rows] += 1
                counts.runs_ns[*model, num_rows] += _ns(finished_s - started_s)
                for part, seconds in (
                    ("queue", queue_s), ("run", (finished_s - started_s) * num_calls),
                    ("output", (now_s - finished_s) * num_calls),
                ):  # fmt: skip
                    counts.times_ns[*model, part] += _ns(seconds)
            for (kind, _), classified_runs in outcomes.items():
                digits, probabilities = map(b"".join, zip(*classified_runs, strict=True))
                # All at once: some 8 µs, and 10 ns an image.
                answered: Digits = np.frombuffer(digits, np.uint8 if kind is bytes else np.uintc)
                table = np.frombuffer(probabilities, "<f4").reshape(len(answered), -1)
                added = enumerate(np.bincount(answered).tolist())
                counts.digits.update({digit: number for digit, number in added if number})
                counts.certainty.add_all(table[np.arange(len(answered)), answered])

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
        self.add_up()
        with self._lock:
            self._counts.cpu_s = time.process_time()
            return self._counts + Counts()

    @property
    def num_images(self) -> float:
        """The images run so far."""
        self.add_up()
        return self._counts.batch_images.sum


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))
