"""From samples to figures: one number for each cell and round, by the scenarios' definitions."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from statistics import median

from benchmarks.report.stats import Interval, paired_ratio
from benchmarks.run.histogram import Histogram
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.target import Spec

LATENCY = {"SingleStream": 0.90, "MultiStream": 0.99}
"""Scenarios whose figure is a latency, and at which quantile; the others' is a rate."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Key:
    """What a figure is of."""

    spec: Spec
    scenario: str
    callers: int = 1
    batch: int = 1
    connections: int = 0
    overload: float = 0.0

    @classmethod
    def of(cls, sample: Sample) -> "Key":
        """Return the key that a sample belongs to; Offline's callers are the target's choice."""
        callers = 0 if sample.scenario == "Offline" else sample.callers
        return cls(
            spec=sample.spec, scenario=sample.scenario, callers=callers, batch=sample.batch,
            connections=sample.connections, overload=sample.overload,
        )  # fmt: skip

    @property
    def is_latency(self) -> bool:
        """Whether less is better."""
        return self.scenario in LATENCY

    def with_spec(self, spec: Spec) -> "Key":
        """Return the same cell of another target."""
        return replace(self, spec=spec)

    @property
    def in_flight(self) -> str:
        """The callers, as "64", or as "8 × 8" where their connections were named."""
        if not self.connections:
            return str(self.callers)
        return f"{self.connections} × {self.callers // self.connections}"

    def __str__(self) -> str:
        sizes = {"ClosedLoop": f" {self.in_flight} callers", "Offline": f" batch {self.batch}"}
        size = f" {self.overload:g} ×" if self.overload else sizes.get(self.scenario, "")
        return f"{self.spec}, {self.scenario}{size}"


Rounds = Mapping[int, float]
"""A figure by round: seconds or images/s."""


def figures(results: Results) -> dict[Key, Rounds]:
    """Work out the figure of every cell in every round in which it is valid."""
    found: dict[Key, Rounds] = {}
    for key, samples in grouped(results.samples).items():
        by_round: dict[int, list[Sample]] = {}
        for sample in samples:
            by_round.setdefault(sample.round, []).append(sample)
        values = {n: _figure(key, each, results.latency_slo_s) for n, each in by_round.items()}
        if rounds := {n: value for n, value in values.items() if value is not None}:
            found[key] = rounds
    return found


def grouped(samples: Sequence[Sample]) -> dict[Key, list[Sample]]:
    """Sort samples by cell, in the order of their first appearance."""
    groups: dict[Key, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(Key.of(sample), []).append(sample)
    return groups


def _figure(key: Key, samples: Sequence[Sample], latency_slo_s: float) -> float | None:
    if key.scenario == "Server":
        return server_rate(samples, latency_slo_s)
    valid = [sample for sample in samples if not sample.invalid]
    if not valid:
        return None
    if key.is_latency:
        return sum((sample.latency for sample in valid), Histogram.of([])).quantile(
            LATENCY[key.scenario]
        )
    return median(sample.images_per_s for sample in valid)


def server_rate(samples: Sequence[Sample], latency_slo_s: float) -> float | None:
    """Return the highest rate, in images/s, that kept to the objective in one search.

    None if nothing did, or if the rates above it failed by the generator's fault alone: then the
    target may do better, and the search has not found its limit.
    """
    kept = [sample for sample in samples if sample.holds(latency_slo_s)]
    best = max((sample.offered_per_s or 0 for sample in kept), default=0.0)
    above = [sample for sample in samples if (sample.offered_per_s or 0) > best]
    if not best or (above and all(sample.invalid for sample in above)):
        return None
    return best * samples[0].batch


def speedup(key: Key, baseline: Key, found: Mapping[Key, Rounds]) -> Interval | None:
    """Tell how many times as fast one cell is as another, from the rounds that both have."""
    ours, theirs = found.get(key, {}), found.get(baseline, {})
    rounds = sorted(set(ours) & set(theirs))
    if not rounds:
        return None
    above, below = [ours[n] for n in rounds], [theirs[n] for n in rounds]
    return paired_ratio(below, above) if key.is_latency else paired_ratio(above, below)


def curve(
    found: Mapping[Key, Rounds], spec: Spec, scenario: str, size: Callable[[Key], int]
) -> tuple[list[int], list[float]]:
    """Return a target's sizes, ascending, and its median figures at them."""
    points = sorted(
        (size(key), median(rounds.values()))
        for key, rounds in found.items()
        if key.spec == spec and key.scenario == scenario
    )
    return [point[0] for point in points], [point[1] for point in points]


def specs_of(results: Results) -> list[Spec]:
    """List the targets that were measured, in their order; those by address come last."""
    started = [start.spec for start in results.starts]
    return list(dict.fromkeys([*started, *(sample.spec for sample in results.samples)]))
