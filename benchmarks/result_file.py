"""The results of a run as one JSON file: every sample and the machine, but nothing that names it.

`FORMAT` changes whenever a reader of the old one would misread the new one.

Latencies are kept as counts in log-linear buckets, in the manner of HdrHistogram. Below 128 us a
bucket is 1 us wide; above, each octave has 64 buckets, so a value read back is off by at most
0.8 %. To read one without this module:

    index, count = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").reshape(2, -1)
    octave = np.maximum(index // 64 - 1, 0);  lowest_us = (index - 64 * octave) * 2**octave
"""

import base64
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from benchmarks.loops import Outcome
from benchmarks.targets import Spec

_SUB_BITS = 6
_SUB = 1 << _SUB_BITS
LATENCY = {"SingleStream": 0.90}
"""Scenarios whose figure is a latency, and at which quantile; the others' is a rate."""
FORMAT = 1


@dataclass(frozen=True, slots=True, eq=False)
class Latencies:
    """Counts of latencies by bucket."""

    index: npt.NDArray[np.int64]
    """The buckets that hold something, ascending."""
    count: npt.NDArray[np.int64]
    """How many each holds."""

    @classmethod
    def of(cls, latencies_s: npt.ArrayLike) -> Self:
        """Count latencies in seconds."""
        microseconds = np.maximum(np.asarray(latencies_s, float) * 1e6, 0).astype(np.int64)
        octave = np.maximum(np.frexp(microseconds)[1] - 1 - _SUB_BITS, 0)
        return cls(*np.unique((microseconds >> octave) + _SUB * octave, return_counts=True))

    @classmethod
    def joined(cls, histograms: Iterable["Latencies"]) -> Self:
        """Add up several histograms."""
        parts = list(histograms)
        index, place = np.unique(np.concatenate([p.index for p in parts]), return_inverse=True)
        counts = np.bincount(place, np.concatenate([p.count for p in parts]))
        return cls(index, counts.astype(np.int64))

    @classmethod
    def decode(cls, text: str) -> Self:
        """Decode the text of `encode`."""
        words = np.frombuffer(zlib.decompress(base64.b64decode(text)), "<u4").astype(np.int64)
        return cls(*words.reshape(2, -1))

    def encode(self) -> str:
        """Write as base64 of zlib of uint32: the buckets, then their counts."""
        words = np.concatenate((self.index, self.count)).astype("<u4")
        return base64.b64encode(zlib.compress(words.tobytes(), 9)).decode()

    @property
    def total(self) -> int:
        """How many latencies were counted."""
        return int(self.count.sum())

    @property
    def values_s(self) -> npt.NDArray[np.float64]:
        """The middle of each bucket, in seconds."""
        octave = np.maximum(self.index // _SUB - 1, 0)
        return np.asarray((self.index - _SUB * octave + 0.5) * np.exp2(octave) * 1e-6)

    def quantile(self, share: float) -> float:
        """Return the latency in seconds that `share` of the calls did not exceed; 0.99 for p99.

        That is the smallest bucket such that this share falls into it or below, as MLPerf and
        HdrHistogram count; NaN without a call.
        """
        if not self.total:
            return float("nan")
        rank = max(1, int(np.ceil(share * self.total)))
        return float(self.values_s[np.searchsorted(np.cumsum(self.count), rank)])


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Cell:
    """A target and a task."""

    spec: Spec
    scenario: str
    callers: int = 1
    """Calls in flight; 0 in Offline for as many as keep the target busy, and in open loops."""
    batch: int = 1
    """Images a call."""
    connections: int = 0
    """ClosedLoop: over which the callers are spread; 0 leaves it to the generator."""
    model: str = ""
    """The model, where there are several."""
    overload: float = 0.0
    """Load and Overload: the offered rate, as a multiple of the closed loop's before it."""

    @property
    def is_latency(self) -> bool:
        """Whether less is better."""
        return self.scenario in LATENCY

    @property
    def in_flight(self) -> str:
        """The callers, as "64", or as "8 × 8" where their connections were named."""
        if not self.connections:
            return str(self.callers)
        return f"{self.connections} × {self.callers // self.connections}"

    @property
    def task(self) -> str:
        """The scenario and its sizes."""
        model = f"{self.model}, " if self.model else ""
        size = f", {self.batch} a call" if self.batch > 1 else ""
        loops = ("ClosedLoop", "NewHeaders", "SameBytes")
        loop = f" {self.in_flight}" if self.scenario in loops else ""
        return f"{model}{self.scenario}{loop}{size}" + (
            f" {self.overload:g} ×" if self.overload else ""
        )

    def __str__(self) -> str:
        return f"{self.spec}, {self.task}"


class UnusableResults(Exception):
    """A results file can't be read, or can't be used for this command."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample(Cell):
    """One timed run of one target; its callers are those that there were."""

    round: int
    offered_per_s: float | None
    """Open loop: calls sent a second."""
    generator: str
    duration_s: float
    num_calls: int
    num_errors: int
    latency: Latencies
    """Latencies of all calls; in an open loop from the intended send time."""
    lag_p99_s: float | None
    """Open loop: how late calls left."""
    generator_busy: float
    """Cores that the busiest generator process used."""
    target_busy: float | None
    """Cores that the target used; None if it is not on this machine."""
    cpu_us_per_call: float | None
    """The target's processor time for a call."""
    invalid: str
    """Why this does not measure the target; empty if it does."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Overload: how many calls ended how, by `Outcome`."""

    @property
    def cell(self) -> Cell:
        """The cell of this sample; Offline's callers are the target's choice."""
        values = {each.name: getattr(self, each.name) for each in fields(Cell)}
        return Cell(**values | ({"callers": 0} if self.scenario == "Offline" else {}))

    @property
    def client_us_per_call(self) -> float:
        """The processor time of the busiest process of callers for a call, in microseconds."""
        return 1e6 * self.generator_busy * self.duration_s / max(1, self.num_calls)

    @property
    def images_per_s(self) -> float:
        """The achieved rate."""
        return (self.num_calls - self.num_errors) * self.batch / self.duration_s

    def holds(self, latency_slo_s: float) -> bool:
        """Return whether every call was answered, and 99 of 100 within the objective."""
        num_missed = self.outcomes.get(Outcome.DUE, 0) - self.outcomes.get(Outcome.IN_TIME, 0)
        all_answered = not num_missed and not self.num_errors
        return all_answered and self.latency.quantile(0.99) <= latency_slo_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """Time and memory of a started target."""

    spec: Spec
    model: str = ""
    """The model, where there are several."""
    startup_s: float
    """From nothing to its first answer."""
    memory_bytes: int | None
    """After the last round; memory shared by its processes counts once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A target that could not be measured."""

    spec: Spec
    reason: str
    model: str = ""
    """The model, where there are several."""


@dataclass(kw_only=True, slots=True)
class Results:
    """One run of a suite."""

    suite: str
    date: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Rounds, seconds, objective, arrivals."""
    starts: list[Start] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    samples: list[Sample] = field(default_factory=list)

    @property
    def latency_slo_s(self) -> float:
        """The Server scenario's objective."""
        return float(self.settings["latency_slo_s"])

    def save(self, path: Path) -> None:
        """Write the file, a line for each sample."""
        values = {each.name: getattr(self, each.name) for each in fields(self)}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{\n" + ",\n".join(_lines({"format": FORMAT} | values)) + "\n}\n", "utf-8")


def load(path: Path) -> Results:
    """Read a results file; fields that it has beside those of `Results` are left out.

    Raises:
        UnusableResults: missing, not a results file, or of another format.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if (found := document["format"]) != FORMAT:
            raise UnusableResults(f"{path}: format {FORMAT} expected, got {found!r}")
        for name, kind in (("starts", Start), ("skips", Skip), ("samples", Sample)):
            items = [each | {"spec": Spec(**each["spec"])} for each in document[name]]
            for each in items if kind is Sample else ():
                each["latency"] = Latencies.decode(each["latency"])
                each.pop("batch_sizes", None)  # of older files
            document[name] = [kind(**each) for each in items]
        return Results(**{each.name: document[each.name] for each in fields(Results)})
    except OSError as err:
        raise UnusableResults(f"{path}: {err.strerror}") from err
    except (AttributeError, ValueError, KeyError, TypeError) as err:
        raise UnusableResults(f"{path} is no results file: {type(err).__name__}: {err}") from err


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Write a line of JSON for each field, and for each item of a list."""
    for name, value in document.items():
        text = json.dumps(value, default=_plain)
        if isinstance(value, list) and value:
            text = "[\n" + ",\n".join(json.dumps(each, default=_plain) for each in value) + "\n]"
        yield f"{json.dumps(name)}: {text}"


def _plain(item: Any) -> Any:
    """Convert values that JSON lacks; floats of samples get five digits."""
    if isinstance(item, Latencies):
        return item.encode()
    if not isinstance(item, Sample):
        return asdict(item)
    values = ((each.name, getattr(item, each.name)) for each in fields(item))
    return {n: float(f"{v:.5g}") if isinstance(v, float) else v for n, v in values}
