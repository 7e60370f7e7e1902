"""From samples to figures: one number for each cell and round, by the scenarios' definitions."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import median

from benchmarks.report.ratios import Interval, paired_ratio
from benchmarks.run.cell import LATENCY, Cell
from benchmarks.run.histogram import Histogram
from benchmarks.run.result_file import Results, Sample
from benchmarks.targets.commands import ENGINE_KINDS
from benchmarks.targets.target import Spec

Rounds = Mapping[int, float]
"""A figure by round: seconds or images/s."""


class Figures:
    """Results by cell, in the order of their first appearance."""

    def __init__(self, results: Results) -> None:
        """Work out the figure of every cell in every round in which it is valid."""
        self.results = results
        self.samples: dict[Cell, list[Sample]] = {}
        for sample in results.samples:
            self.samples.setdefault(sample.cell, []).append(sample)
        every = {cell: _rounds(cell, s, results.latency_slo_s) for cell, s in self.samples.items()}
        self.rounds = {cell: rounds for cell, rounds in every.items() if rounds}
        started = [start.spec for start in results.starts]
        self.specs = list(dict.fromkeys([*started, *(cell.spec for cell in self.samples)]))
        """The targets that were measured; those by address, which were not started, come last."""

    def valid(self, cell: Cell) -> list[Sample]:
        """Return a cell's samples that measure the target."""
        return [sample for sample in self.samples.get(cell, ()) if not sample.invalid]

    def of(self, cell: Cell) -> float | None:
        """Return the median of a cell's rounds."""
        return median(self.rounds[cell].values()) if cell in self.rounds else None

    def cost_us(self, cell: Cell) -> float | None:
        """Return the target's processor time for an image, in microseconds."""
        return cost_us(self.valid(cell))

    def speedup(self, cell: Cell, baseline: Spec | None = None) -> Interval | None:
        """Return how many times as fast a cell is as that of another target, by their rounds.

        Args:
            cell: which.
            baseline: the other target; None for the first one.

        Returns:
            None for the baseline itself, and where the two have no round in common.
        """
        baseline = baseline or self.specs[0]
        ours, theirs = self.rounds.get(cell, {}), self.rounds.get(replace(cell, spec=baseline), {})
        rounds = sorted(set(ours) & set(theirs))
        if not rounds or cell.spec == baseline:
            return None
        values, others = [ours[n] for n in rounds], [theirs[n] for n in rounds]
        return paired_ratio(others, values) if cell.is_latency else paired_ratio(values, others)

    def offline(self, spec: Spec) -> dict[int, float]:
        """Return a target's images/s in Offline by images a call, ascending."""
        cells = sorted(c for c in self.rounds if c.spec == spec and c.scenario == "Offline")
        return {cell.batch: median(self.rounds[cell].values()) for cell in cells}

    def on_cpu(self, cuda: Spec) -> Spec:
        """Return what a target on CUDA is compared with: for a kind of engine, the usual one."""
        same = replace(cuda, device="cpu")
        name, _, kind = cuda.target.partition("-")
        is_other_kind = kind in ENGINE_KINDS and not self.offline(same)
        return replace(same, target=name) if is_other_kind else same

    def crossover(self, cuda: Spec) -> int | None:
        """Return the measured size from which CUDA leads the CPU in Offline; None if it doesn't."""
        on_cpu, on_cuda = self.offline(self.on_cpu(cuda)), self.offline(cuda)
        found = None
        for size in sorted(on_cpu.keys() & on_cuda.keys(), reverse=True):
            if on_cuda[size] <= on_cpu[size]:
                break
            found = size
        return found


def cost_us(samples: Iterable[Sample]) -> float | None:
    """Return the target's processor time for an image, in microseconds: the samples' median."""
    costs = [sample.cpu_us_per_call / sample.batch for sample in samples if sample.cpu_us_per_call]
    return median(costs) if costs else None


def _rounds(cell: Cell, samples: Sequence[Sample], latency_slo_s: float) -> Rounds:
    figures = {}
    for number in dict.fromkeys(sample.round for sample in samples):
        of_round = [sample for sample in samples if sample.round == number]
        valid = [sample for sample in of_round if not sample.invalid]
        if cell.scenario == "Server":
            figures[number] = server_rate(of_round, latency_slo_s)
        elif valid and cell.is_latency:
            latency = Histogram.joined(sample.latency for sample in valid)
            figures[number] = latency.quantile(LATENCY[cell.scenario])
        elif valid:
            figures[number] = median(sample.images_per_s for sample in valid)
    return {number: value for number, value in figures.items() if value is not None}


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
