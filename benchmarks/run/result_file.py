"""Results as data: one JSON file with every sample, the machine, and nothing that names it.

`format` changes whenever a reader of the old one would misread the new one.
"""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.run.histogram import Histogram
from benchmarks.targets.target import Spec

FORMAT = 1


class UnusableResults(Exception):
    """A results file can't be read, or can't be used for what was asked."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Sample:
    """One timed run of one target."""

    spec: Spec
    scenario: str
    round: int
    callers: int
    """Calls in flight; 0 in an open loop."""
    batch: int
    """Images a call."""
    offered_per_s: float | None
    """Open loop: calls sent a second."""
    generator: str
    duration_s: float
    num_calls: int
    num_errors: int
    latency: Histogram
    """Of all calls; in an open loop from the intended send time."""
    lag_p99_s: float | None
    """Open loop: how late calls left."""
    generator_busy: float
    """Cores that the busiest generator process used."""
    target_busy: float | None
    """Cores that the target used; None if it is not on this machine."""
    cpu_us_per_call: float | None
    """The target's processor time for a call."""
    batch_sizes: Mapping[str, int]
    """Runs of the model by upper bound of their size, if the target tells."""
    invalid: str
    """Why this is no measurement of the target; empty if it is one."""
    connections: int = 0
    """Over which the callers are spread; 0 leaves it to the generator."""
    overload: float = 0.0
    """Overload: what was offered, as a multiple of the closed loop's rate before it."""
    outcomes: Mapping[str, int] = field(default_factory=dict)
    """Overload: how many calls ended how, by `benchmarks.load.trace.Outcome`."""

    @property
    def images_per_s(self) -> float:
        """The achieved rate."""
        return (self.num_calls - self.num_errors) * self.batch / self.duration_s

    def holds(self, latency_slo_s: float) -> bool:
        """Tell whether every call was answered, and 99 of 100 within the objective."""
        is_answered = self.outcomes.get("in time", 0) == self.outcomes.get("due", 0)
        is_answered = is_answered and not self.num_errors
        return is_answered and self.latency.quantile(0.99) <= latency_slo_s


@dataclass(frozen=True, kw_only=True, slots=True)
class Start:
    """What a target took to be there."""

    spec: Spec
    startup_s: float
    """From nothing to its first answer."""
    memory_bytes: int | None
    """After the last round; what its processes share counts once."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Skip:
    """A target that was asked for and could not be measured."""

    spec: Spec
    reason: str


@dataclass(kw_only=True, slots=True)
class Results:
    """One run of a suite."""

    suite: str
    date: str
    environment: Mapping[str, Any]
    settings: Mapping[str, Any]
    """Rounds, seconds, objective, arrivals, cores."""
    samples: list[Sample] = field(default_factory=list)
    starts: list[Start] = field(default_factory=list)
    skips: list[Skip] = field(default_factory=list)
    install: Mapping[str, int] = field(default_factory=dict)
    """Bytes that an installation of each extra takes."""
    training: list[Mapping[str, Any]] = field(default_factory=list)
    """Recipe, seconds and accuracy, for each training that left its figures."""

    @property
    def latency_slo_s(self) -> float:
        """The Server scenario's objective."""
        return float(self.settings["latency_slo_s"])

    def save(self, path: Path) -> None:
        """Write the file, a line for each sample."""
        document = {
            "format": FORMAT, "suite": self.suite, "date": self.date,
            "environment": self.environment, "settings": self.settings, "install": self.install,
            "training": self.training, "starts": [asdict(each) for each in self.starts],
            "skips": [asdict(each) for each in self.skips],
            "samples": [_document(sample) for sample in self.samples],
        }  # fmt: skip
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(_lines(document)), "utf-8")


def load(path: Path) -> Results:
    """Read a results file.

    Raises:
        UnusableResults: missing, not a results file, or of another format.
    """
    try:
        document = json.loads(path.read_text("utf-8"))
        if document["format"] != FORMAT:
            raise UnusableResults(f"{path}: format {FORMAT} expected, got {document['format']!r}")
        return Results(
            **{name: document[name] for name in
               ("suite", "date", "environment", "settings", "install", "training")},
            samples=[_sample(each) for each in document["samples"]],
            starts=[Start(**each | {"spec": Spec(**each["spec"])}) for each in document["starts"]],
            skips=[Skip(**each | {"spec": Spec(**each["spec"])}) for each in document["skips"]],
        )  # fmt: skip
    except OSError as err:
        raise UnusableResults(f"{path}: {err.strerror}") from err
    except (ValueError, KeyError, TypeError) as err:
        raise UnusableResults(f"{path} is no results file: {type(err).__name__}: {err}") from err


def _document(sample: Sample) -> dict[str, Any]:
    fields = {name: getattr(sample, name) for name in Sample.__slots__}
    rounded = {
        name: float(f"{value:.5g}") if isinstance(value, float) else value
        for name, value in fields.items()
    }
    return rounded | {"spec": asdict(sample.spec), "latency": sample.latency.encode()}


def _sample(document: dict[str, Any]) -> Sample:
    spec, latency = Spec(**document["spec"]), Histogram.decode(document["latency"])
    return Sample(**document | {"spec": spec, "latency": latency})


def _lines(document: Mapping[str, Any]) -> Iterator[str]:
    """Write JSON with a line for each field, and for each item of a list."""
    separator = "{"
    for name, value in document.items():
        yield f"{separator}\n{json.dumps(name)}: "
        separator = ","
        if isinstance(value, list) and value:
            yield "[\n" + ",\n".join(map(json.dumps, value)) + "\n]"
        else:
            yield json.dumps(value)
    yield "\n}\n"
