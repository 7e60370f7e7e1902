"""A suite on this machine: its cores, its load generator, and the results to fill in."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from benchmarks.load.cores import split_cores
from benchmarks.load.network import Generator
from benchmarks.run import environment, footprint, runner
from benchmarks.run.result_file import Results
from benchmarks.run.suites import Suite
from benchmarks.targets.target import Setting


@dataclass(frozen=True, kw_only=True, slots=True)
class Sources:
    """What is measured, and with what."""

    models: Path
    """The model repository's root."""
    artifacts: Path = Path("artifacts")
    """What training wrote."""
    generator: str = "auto"
    """What drives closed loops; see `Generator`."""
    share_cores: bool = False
    """Whether targets and generator have all cores, instead of half of them each."""
    addresses: Mapping[str, str] = field(default_factory=dict)
    """See `Setting`."""
    checkouts: Mapping[str, Path] = field(default_factory=dict)
    """See `Setting`."""

    @property
    def cores(self) -> tuple[list[int], list[int]]:
        """The cores of the targets, and those of the generator."""
        every = sorted(os.sched_getaffinity(0))
        return (every, every) if self.share_cores else split_cores()


def begin(suite: Suite, sources: Sources) -> Results:
    """Describe the machine and the software, with nothing measured yet."""
    targets, generators = sources.cores
    cores = {"target": len(targets), "generator": len(generators)}
    return Results(
        suite=suite.name,
        date=datetime.now(UTC).date().isoformat(),
        environment=environment.describe(sources.models, cores),
        settings={"rounds": suite.rounds, "seconds": suite.seconds,
                  "latency_slo_s": suite.latency_slo_s, "arrivals": suite.arrivals},
        install=footprint.install_bytes(),
        training=footprint.trainings(sources.artifacts),
    )  # fmt: skip


def measure(
    suite: Suite, sources: Sources, results: Results, progress: Callable[[str], None]
) -> None:
    """Measure a suite; see `runner.run`.

    Raises:
        DigitsError: there is no model.
    """
    targets, generators = sources.cores
    images, answers = runner.golden(sources.models)
    with Generator(generators, sources.generator) as generator:
        setting = Setting(
            models=sources.models, artifacts=sources.artifacts, images=images, answers=answers,
            cores=targets, generator=generator, checkouts=sources.checkouts,
            addresses=sources.addresses,
        )  # fmt: skip
        runner.run(replace(suite, num_cores=len(targets)), setting, results, progress)
