"""Counts and histograms of calls and runs, and what the metrics page shows of them."""

import threading
import time
from bisect import bisect_left
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple, Self, TypeVar

import numpy as np
import numpy.typing as npt

from serving.config import BatchingConfig
from serving.system.usage import Usage
from serving.tensors import ClassNumbers

_SECONDS = tuple(
    mantissa * 10.0**exponent for exponent in range(-5, 1) for mantissa in (1, 2.5, 5)
)  # 10 µs to 5 s
_CONFIDENCES = (0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99, 0.995, 0.999, 0.9999, 1.0)
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 4096)
_MAX_CLASSIFIED, _MAX_CLASSIFIED_BYTES = 256, 64 << 10
"""Runs of classifiers, and bytes of their probabilities, that are kept before they are counted."""

ModelLabel = tuple[str, str]
"""A model's name, and a version of it."""
NO_MODEL = "", ""
"""That of calls for none: of other methods, or for a model that is not served."""
MAX_LABELS = 100
"""The most classes of a version that are counted by their names, in one process."""
OTHER = "other"
"""The name under which the others are counted."""
_MAX_LABEL_CHARACTERS = 128
MAX_OWN_NAMES = 32
"""The most metrics of a handler's own, each of at most MAX_LABELS series and `other`."""
_OWN_VALUES = (
    *(float(f"{mantissa}e{exponent}") for exponent in range(-4, 4) for mantissa in (1, 2.5, 5)),
    10_000.0,
)
"""Bounds of their histograms."""
MAX_MODELS = 500
"""The most versions that are counted at a time: each has some 100 series."""


class Histogram:
    """Counts of values between fixed bounds."""

    def __init__(self, bounds: Sequence[float]) -> None:
        """A value equal to a bound counts below it, as in Prometheus."""
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


_Series = tuple[str, tuple[tuple[str, str], ...]]
"""A metric's name and its labels, by their names."""


class OwnCounts:
    """What a handler counts itself: a bounded number of series."""

    def __init__(self) -> None:
        self.counts: dict[_Series, float] = {}
        self.values: dict[_Series, Histogram] = {}
        self._num_counts: Counter[str] = Counter()
        """The series of each name."""
        self._num_values: Counter[str] = Counter()

    @property
    def is_empty(self) -> bool:
        """Whether nothing was counted."""
        return not self.counts and not self.values

    def count(self, name: str, labels: tuple[tuple[str, str], ...], amount: float) -> None:
        """Count something."""
        if (series := _bounded(self.counts, self._num_counts, (name, labels))) is not None:
            self.counts[series] = self.counts.get(series, 0.0) + amount

    def observe(self, name: str, labels: tuple[tuple[str, str], ...], value: float) -> None:
        """Note a value."""
        if (series := _bounded(self.values, self._num_values, (name, labels))) is not None:
            self.values.setdefault(series, Histogram(_OWN_VALUES)).add(value)

    def add(self, other: "OwnCounts") -> None:
        """Add those of another process."""
        for (name, labels), amount in other.counts.items():
            self.count(name, labels, amount)
        for series, histogram in other.values.items():
            if (known := _bounded(self.values, self._num_values, series)) is not None:
                self.values[known] = self.values.get(known, Histogram(_OWN_VALUES)) + histogram

    def __add__(self, other: "OwnCounts") -> "OwnCounts":
        """Return the sum; both stay unchanged."""
        total = OwnCounts()
        total.add(self)
        total.add(other)
        return total

    def document(self) -> Any:
        """Return them as JSON has them."""
        values = [(series, each.counts, each.sum) for series, each in self.values.items()]
        return [[*self.counts.items()], values]

    @classmethod
    def of(cls, document: Any) -> Self:
        """Parse `document`.

        Raises:
            KeyError, TypeError, ValueError: it is malformed.
        """
        found = cls()
        counts, values = document
        for series, amount in counts:
            found.counts[_series_of(series)] = float(amount)
        for series, numbers, total in values:
            histogram = found.values[_series_of(series)] = Histogram(_OWN_VALUES)
            histogram.counts = [int(each) for each in numbers]
            histogram.sum = float(total)
        return found


def _series_of(document: Any) -> _Series:
    name, labels = document
    return str(name), tuple((str(label), str(value)) for label, value in labels)


def _bounded(
    table: Mapping[_Series, Any], numbers: Counter[str], series: _Series
) -> _Series | None:
    """Return the series that counts for one: itself, or `other` of many; None of too many names.

    Args:
        table: the series that there are.
        numbers: how many there are of each name; a new one is counted.
        series: the one to be counted.
    """
    if series in table:
        return series
    name, labels = series
    if name not in numbers and len(numbers) >= MAX_OWN_NAMES:
        return None
    if numbers[name] < MAX_LABELS:
        numbers[name] += 1
        return series
    return name, tuple((label, OTHER) for label, _ in labels)


@dataclass(slots=True)
class ModelCounts:
    """What is counted of one version of a model."""

    requests: Counter[tuple[str, str]] = field(default_factory=Counter)
    """Calls that have ended, by method and status."""
    runs: Counter[int] = field(default_factory=Counter)
    """Runs, by their number of rows."""
    runs_ns: Counter[int] = field(default_factory=Counter)
    """Their nanoseconds, likewise."""
    num_failed: int = 0
    """Calls that were accepted or refused by a batcher and got no answer."""
    failed_s: float = 0.0
    """Seconds of those calls."""
    calls_run_s: float = 0.0
    """Seconds in runs, of all answered calls: those of a run count once for each call in it."""
    calls_output_s: float = 0.0
    """Seconds from the end of their runs until they were answered, likewise."""
    classes: Counter[int] = field(default_factory=Counter)
    """Rows run, by the number of the class that was answered."""
    labels: Counter[str] = field(default_factory=Counter)
    """Rows run, by the name of the class: of models that are no classifiers of images."""
    confidence: Histogram = field(default_factory=partial(Histogram, _CONFIDENCES))
    """The probability of that class: it falls when pictures differ from those of the training."""
    queue_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """From a call's arrival to its last run; as many as calls were answered."""
    run_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    request_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """From a call's arrival to its answer."""

    preprocess_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """Times of a handler: one trip to a process and back."""
    postprocess_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """Times of a handler's second method, likewise: to a process and back."""
    first_part_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """From the arrival of a call that is answered in parts to the first of them."""
    part_gap_s: Histogram = field(default_factory=partial(Histogram, _SECONDS))
    """From a part to the next one."""
    own: OwnCounts = field(default_factory=OwnCounts)
    """What its handler counts itself."""
    num_mismatches: int = 0
    """Batches with a row that had another answer alone."""

    @property
    def batch_rows(self) -> Histogram:
        """The rows of a run."""
        histogram = Histogram(_ROWS)
        for num_rows, times in self.runs.items():
            histogram.add(num_rows, times)
        return histogram

    @property
    def num_rows(self) -> int:
        """The rows run."""
        return sum(num_rows * times for num_rows, times in self.runs.items())

    @property
    def num_answered(self) -> int:
        """The calls that were answered by a run."""
        return sum(self.queue_s.counts)

    def __add__(self, other: "ModelCounts") -> "ModelCounts":
        """Return the sum; both stay unchanged."""
        names = [each.name for each in fields(self)]
        return ModelCounts(**{name: getattr(self, name) + getattr(other, name) for name in names})


@dataclass(slots=True)
class Counts:
    """Everything that is counted; the counts of several processes add up."""

    models: dict[ModelLabel, ModelCounts] = field(default_factory=dict)
    reloads: Counter[str] = field(default_factory=Counter)
    """Reloads: "loaded", or "failed" for a version that was refused."""
    restarts: int = 0
    """Workers that died and were restarted."""
    crashes: Counter[ModelLabel] = field(default_factory=Counter)
    """Workers whose process ended in a run of a version."""
    cpu_s: float = 0.0
    """Processor time, including processes that have ended."""

    @property
    def requests(self) -> Counter[tuple[str, str]]:
        """Calls that have ended, by method and status, of all models and of none."""
        return sum((each.requests for each in self.models.values()), Counter())

    def __add__(self, other: "Counts") -> "Counts":
        """Return the sum of two processes' counts; both stay unchanged."""
        none = ModelCounts()
        models = {
            label: self.models.get(label, none) + other.models.get(label, none)
            for label in {**self.models, **other.models}
        }
        restarts, cpu_s = self.restarts + other.restarts, self.cpu_s + other.cpu_s
        crashes = self.crashes + other.crashes
        return Counts(models, self.reloads + other.reloads, restarts, crashes, cpu_s)


def _count_calls(counts: ModelCounts, run: Any, groups: Sequence[Any]) -> None:
    """Count the calls that a run has answered."""
    now_s, started_s, finished_s = time.monotonic(), run.started_s, run.finished_s
    num_calls = 0
    for group in groups:
        times, method = len(group.streams), group.encoder.method
        num_calls += times
        counts.queue_s.add(started_s - group.arrived_s, times)
        counts.request_s.add(finished_s - group.arrived_s, times)
        if method is not None:
            counts.requests[method, "OK"] += times
    counts.calls_run_s += (finished_s - started_s) * num_calls
    counts.calls_output_s += (now_s - finished_s) * num_calls


class Metrics:
    """The counts of one server process; safe to call from many threads."""

    def __init__(self) -> None:
        self._counts = Counts()
        """All but what `_classified` has."""
        self._lock = threading.Lock()
        self._classified: list[tuple[ModelCounts, ClassNumbers, bytes]] = []
        self._num_classified_bytes = 0
        self._answered: dict[tuple[ModelLabel, Any], list[Any]] = {}
        """The answers of runs that are not counted yet, by version and `Answers`."""
        self._num_answered = self._num_answered_bytes = 0
        self.last_ms: dict[ModelLabel, int] = {}
        """When a version last answered, in milliseconds since 1970."""

    def observe_run(self, run: Any, groups: Sequence[Any], model: ModelLabel) -> None:
        """Count a run that succeeded; from any thread.

        Args:
            run: the batcher's `Result`.
            groups: the calls that it has answered, each a `Group` of the batcher's.
            model: the name and the version that ran.
        """
        num_rows, run_s = run.num_rows, run.finished_s - run.started_s
        self.last_ms[model] = time.time_ns() // 1_000_000
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            counts.runs[num_rows] += 1
            counts.runs_ns[num_rows] += round(run_s * 1e9)
            counts.run_s.add(run_s)
            _count_calls(counts, run, groups)
            if run.classes is not None:
                self._classified.append((counts, run.classes, run.rows))
                self._num_classified_bytes += len(run.rows)
                if (
                    self._num_classified_bytes > _MAX_CLASSIFIED_BYTES
                    or len(self._classified) >= _MAX_CLASSIFIED
                ):
                    self._count_classes()

    def observe_answers(self, answers: Any, outputs: Sequence[Any], model: ModelLabel) -> None:
        """Count the classes that a run has answered, and how probable they were.

        Args:
            answers: the model's `Answers`.
            outputs: of the run, in the model's order.
            model: the name and the version that ran.
        """
        kept = answers.kept(outputs)
        with self._lock:
            self._answered.setdefault((model, answers), []).append(kept)
            self._num_answered += 1
            self._num_answered_bytes += sum([each.nbytes for each in kept.values()])
            if (
                self._num_answered >= _MAX_CLASSIFIED
                or self._num_answered_bytes > _MAX_CLASSIFIED_BYTES
            ):
                self._count_answers()

    def _count_answers(self) -> None:
        """Count the classes of many runs; the lock is held."""
        answered, self._answered = self._answered, {}
        self._num_answered = self._num_answered_bytes = 0
        for (model, answers), runs in answered.items():
            counts = self._counts.models.get(model) or self._begin(model)
            classes, confidences = answers.counted(runs)
            for name, times in classes.items():
                name = name[:_MAX_LABEL_CHARACTERS]
                is_known = name in counts.labels or len(counts.labels) < MAX_LABELS
                counts.labels[name if is_known else OTHER] += times
            for each in confidences:
                counts.confidence.add_all(each)

    def observe_calls(self, run: Any, groups: Sequence[Any], model: ModelLabel) -> None:
        """Count calls whose run was counted already; see `observe_run`."""
        self.last_ms[model] = time.time_ns() // 1_000_000
        with self._lock:
            _count_calls(self._counts.models.get(model) or self._begin(model), run, groups)

    def observe_step(self, model: ModelLabel, step: str, seconds: float) -> None:
        """Count a step of a handler: "preprocess", "postprocess" or "predict"."""
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            if step == "preprocess":
                counts.preprocess_s.add(seconds)
            elif step == "postprocess":
                counts.postprocess_s.add(seconds)

    def observe_part(self, model: ModelLabel, seconds: float, *, is_first: bool) -> None:
        """Count a part of an answer, with the time since the call's arrival or the last part."""
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            (counts.first_part_s if is_first else counts.part_gap_s).add(seconds)

    def count_own(self, model: ModelLabel, own: OwnCounts) -> None:
        """Count what a handler has counted itself."""
        with self._lock:
            (self._counts.models.get(model) or self._begin(model)).own.add(own)

    def _begin(self, model: ModelLabel) -> ModelCounts:
        """Begin to count a version, in place of the one that has rested longest if they are many.

        The lock is held.
        """
        models = self._counts.models
        if len(models) >= MAX_MODELS:
            rested = min(models.keys() - {NO_MODEL}, key=lambda label: self.last_ms.get(label, 0))
            del models[rested]
            self.last_ms.pop(rested, None)
        counts = models[model] = ModelCounts()
        return counts

    def _count_classes(self) -> None:
        """Count the classes of many runs; the lock is held."""
        found: dict[tuple[int, type, int], list[tuple[ModelCounts, ClassNumbers, bytes]]] = {}
        for each in self._classified:
            counts, classes, rows = each
            alike = id(counts), type(classes), len(rows) // len(classes)
            found.setdefault(alike, []).append(each)
        self._classified, self._num_classified_bytes = [], 0
        for (_, kind, _), runs in found.items():
            numbers, probabilities = map(b"".join, list(zip(*runs, strict=True))[1:])
            # All at once: some 8 us, and 10 ns a row.
            answered: npt.NDArray[np.unsignedinteger] = np.frombuffer(
                numbers, np.uint8 if kind is bytes else np.uintc
            )
            table = np.frombuffer(probabilities, "<f4").reshape(len(answered), -1)
            added = enumerate(np.bincount(answered).tolist())
            counts = runs[0][0]
            counts.classes.update({number: times for number, times in added if times})
            counts.confidence.add_all(table[np.arange(len(answered)), answered])

    def count(self, method: str, status: str, times: int = 1, model: ModelLabel = NO_MODEL) -> None:
        """Count calls that have ended, unless `observe_run` does; from any thread.

        Args:
            method: its name; "other" for methods that the server does not have.
            status: the name of gRPC's code.
            times: how many calls.
            model: the version that they were for, as far as it is known.
        """
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            counts.requests[method, status] += times

    def count_failure(self, model: ModelLabel, duration_s: float, times: int) -> None:
        """Count calls for a version that end with an error."""
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            counts.num_failed += times
            counts.failed_s += max(0.0, duration_s * times)

    def count_mismatch(self, model: ModelLabel) -> None:
        """Count a batch with a row that has another answer alone; see `spot_check`."""
        with self._lock:
            counts = self._counts.models.get(model) or self._begin(model)
            counts.num_mismatches += 1

    def count_reload(self, outcome: str) -> None:
        """Count a reload.

        Args:
            outcome: "loaded", "failed" for a version that was refused, or "unread" where labels,
                settings or the repository can't be read or used, and all stays as it is.
        """
        with self._lock:
            self._counts.reloads[outcome] += 1

    def snapshot(self) -> Counts:
        """Return a copy of the counts so far."""
        with self._lock:
            self._count_classes()
            self._count_answers()
            self._counts.cpu_s = time.process_time()
            return self._counts + Counts()

    @property
    def num_rows(self) -> int:
        """The rows run so far."""
        with self._lock:
            return sum(each.num_rows for each in self._counts.models.values())


class Served(NamedTuple):
    """A version in service."""

    name: str
    version: str
    device: str
    precision: str
    transport: str
    role: str
    """"default", "canary", or empty: answers only calls that name it, or one of its labels."""
    num_classes: int
    """Classes of a classifier; 0 for other models."""
    labels: tuple[str, ...] | None = None
    """The names of the classes that are counted by names, as far as they are known; None if none
    are."""
    max_batch_size: int = 0
    """The most rows in one run, by its own settings too; 0 if calls run alone."""
    max_request_rows: int | None = None
    """The most rows in one request; None if calls run alone: they are not counted in rows."""


class QueueUsage(NamedTuple):
    """What waits for runs of a version, or for its handler's processes."""

    num_rows: int = 0
    capacity: int = 0
    """The most rows of any callers; some more may wait, of callers that have few."""


class HandlerUsage(NamedTuple):
    """The processes of a version's handler."""

    num_processes: int = 0
    num_starts: int = 0
    """Since the version was loaded."""
    memory_bytes: int = 0
    """Resident, of all of them."""


_Usage = TypeVar("_Usage", QueueUsage, HandlerUsage)


class Readiness(NamedTuple):
    """Health, as /readyz shows it."""

    is_serving: bool = False
    stuck_models: frozenset[str] = frozenset()
    """Models that do not answer, or wrongly, while the server goes on."""
    reasons: Mapping[str, str] = MappingProxyType({})
    """Why some of them are not served, and newer versions of others, such as "iris/4"."""


class Report(NamedTuple):
    """The content of the metrics page at one moment; workers send it to their supervisor."""

    models: tuple[Served, ...]
    """All versions in service."""
    batching: BatchingConfig
    """Sizes and limits, of each model."""
    queues: Mapping[ModelLabel, QueueUsage]
    """What waits, by version."""
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
    request: str = ""
    """A command that calls the first model."""
    methods: tuple[str, ...] = ()
    """The methods of applications by which classifiers are called."""
    handlers: Mapping[ModelLabel, HandlerUsage] = MappingProxyType({})
    """The processes of the versions with a handler."""
    waiting: Mapping[str, str] = MappingProxyType({})
    """Newer versions that are not served, such as "iris/4", and why."""
    missing: Mapping[str, str] = MappingProxyType({})
    """Models that are named on the command line and can't be served, and why."""

    @property
    def num_waiting(self) -> int:
        """Rows that wait for a run, of all versions."""
        return sum(queue.num_rows for queue in self.queues.values())

    def ended(self) -> "Report":
        """Return the report of a process that has ended: its models, and zeros."""
        return self._replace(
            queues=dict.fromkeys(self.queues, QueueUsage()),
            num_calls=0,
            is_serving=False,
            usage=Usage(),
            counts=Counts(),
            handlers=dict.fromkeys(self.handlers, HandlerUsage()),
        )


def total(reports: list[Report], earlier: Counts) -> Report:
    """Add up the reports of workers, at least one, and the counts of those that died."""
    counts = sum([report.counts for report in reports], earlier)
    usages = [Usage.now(), *(report.usage for report in reports)]  # the supervisor's, too
    return Report(
        models=reports[0].models,
        batching=reports[0].batching,
        queues=_summed(QueueUsage, [report.queues for report in reports]),
        num_calls=sum(report.num_calls for report in reports),
        is_serving=all(report.is_serving for report in reports),
        usage=Usage(*map(sum, zip(*usages, strict=True))),
        counts=replace(counts, cpu_s=counts.cpu_s + time.process_time()),
        stuck_models=frozenset[str]().union(*(report.stuck_models for report in reports)),
        request=reports[0].request,
        methods=reports[0].methods,
        handlers=_summed(HandlerUsage, [report.handlers for report in reports]),
        waiting=reports[0].waiting,
        missing={name: why for each in reports for name, why in sorted(each.missing.items())},
    )


def _summed(
    kind: Callable[..., _Usage], usages: Iterable[Mapping[ModelLabel, _Usage]]
) -> dict[ModelLabel, _Usage]:
    """Add up the usages of each version."""
    found: dict[ModelLabel, list[_Usage]] = {}
    for each in usages:
        for label, usage in each.items():
            found.setdefault(label, []).append(usage)
    return {label: kind(*map(sum, zip(*each, strict=True))) for label, each in found.items()}
