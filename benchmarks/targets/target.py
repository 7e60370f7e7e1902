"""A target: something that classifies, named by its settings, and opened to be measured."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from benchmarks.load.network import Generator, NetworkLoad
from benchmarks.targets.workload import Workload


class NotMeasured(Exception):
    """A target can't be measured here; the text says why, and goes into the results."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Spec:
    """A target and its settings: the key of results."""

    target: str
    """A name of the catalogue, of `Setting.addresses` or of `Setting.checkouts`."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    precision: str = "fp32"
    """"fp32" or "int8"."""
    workers: int = 1
    """Processes of a server."""

    def __str__(self) -> str:
        workers = f"x{self.workers}" if self.workers > 1 else ""
        words = (self.target, self.precision, self.device, workers)
        return " ".join(word for word in words if word not in ("fp32", "cpu", ""))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setting:
    """The environment of targets."""

    models: Path
    """The repository of the digits' model."""
    model: Path | None
    """A file to measure instead."""
    workload: Workload
    """The rows of the calls."""
    cores: list[int]
    """Where a target may run."""
    addresses: Mapping[str, str]
    """Name to host:port of other Open Inference Protocol servers."""
    checkouts: Mapping[str, Path]
    """Name to folder of other checkouts of this project, whose server is to be started."""
    generator: Generator
    """Sends requests to those behind an address."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Running:
    """A target that has answered a first request rightly."""

    load: NetworkLoad
    """Sends it requests."""
    startup_s: float | None
    """From nothing to the first answer."""
    parallel_calls: int
    """How many calls in flight keep it busy when it has plenty to do."""
    pid: int | None = None
    """Its process; None if it was not started here."""
