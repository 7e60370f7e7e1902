"""The figures of a result: one for each cell and round, and their ratios."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from benchmarks.result_file import LATENCY, Cell, Latencies, Results, Sample
from benchmarks.targets import OURS, Spec, protocol_of


class Interval(NamedTuple):
    """A ratio, with the least and the greatest of its rounds."""

    estimate: float
    low: float
    high: float

    @property
    def is_of_one_round(self) -> bool:
        """Whether there was but one, so that its range is unknown."""
        return math.isinf(self.high)

    def __str__(self) -> str:
        if self.is_of_one_round:
            return f"{self.estimate:.3g} ×, one round"
        return f"{self.estimate:.3g} ×, {self.low:.3g} to {self.high:.3g}"


def paired_ratio(values: npt.ArrayLike, baseline: npt.ArrayLike) -> Interval:
    """Compare two quantities that were measured in the same rounds.

    A round's drift affects both, and cancels in its own ratio.

    Args:
        values: one positive number per round.
        baseline: the other quantity's, in the same rounds.

    Returns:
        The median, the least and the greatest of values / baseline; one round has no range.
    """
    ratios = np.asarray(values, float) / np.asarray(baseline, float)
    low, high = (ratios.min(), ratios.max()) if len(ratios) > 1 else (0.0, math.inf)
    return Interval(float(np.median(ratios)), float(low), float(high))


def ours_beside(cell: Cell) -> Cell:
    """Return the cell of this server, in its usual settings, that is called as another's is."""
    target = OURS[protocol_of(cell.spec.target)]
    return replace(cell, spec=Spec(target=target, client=cell.spec.client))


_LEAST = 10
"""The fewest calls of a median, and the fewest above any other percentile."""


class Figures:
    """Results by cell, in the order of their first appearance."""

    def __init__(self, results: Results) -> None:
        """Work out the figure of every cell in every round in which it is valid."""
        self.results = results
        self.samples: dict[Cell, list[Sample]] = {}
        for sample in results.samples:
            self.samples.setdefault(sample.cell, []).append(sample)
        every = {cell: _rounds(cell, s, results.latency_slo_s) for cell, s in self.samples.items()}
        self.rounds = {
            cell: rounds for cell, rounds in every.items() if rounds and not self.errors(cell)
        }
        """The figure of each round; of a cell with errors there is none, since calls that fail may
        take less time than those that are answered."""
        started = [start.spec for start in results.starts]
        self.specs = list(dict.fromkeys([*started, *(cell.spec for cell in self.samples)]))
        """The targets that were measured; those by address, which were not started, come last."""
        named = [spec for spec in self.specs if str(spec) == results.settings.get("base")]
        self.base = next(iter([*named, *self.specs]), None)
        """The target that all ratios are of."""

    def valid(self, cell: Cell) -> list[Sample]:
        """Return a cell's samples that measure the target."""
        return [sample for sample in self.samples.get(cell, ()) if not sample.invalid]

    def errors(self, cell: Cell) -> int:
        """Return how many calls of a closed loop failed, in all rounds.

        Open loops look for the rate at which calls begin to fail: theirs are no errors.
        """
        is_open = cell.scenario == "Server" or cell.overload
        return 0 if is_open else sum(each.num_errors for each in self.samples.get(cell, ()))

    def of(self, cell: Cell) -> float | None:
        """Return the median of a cell's rounds."""
        return median(self.rounds[cell].values()) if cell in self.rounds else None

    def latency_s(self, cell: Cell, share: float) -> float | None:
        """Return the latency that `share` of a cell's calls did not exceed, in seconds.

        Returns:
            The median of the rounds; None if a round had fewer than ten calls above it (for the
            median fewer than ten in all), which say little of a percentile.
        """
        latencies = [sample.latency for sample in self.valid(cell)]
        least = _LEAST if share <= 0.5 else round(_LEAST / (1 - share))
        if not latencies or min(each.total for each in latencies) < least:
            return None
        return median(each.quantile(share) for each in latencies)

    def cost_us(self, cell: Cell) -> float | None:
        """Return the target's processor time for a row, in microseconds, at the median."""
        costs = [
            cost_us / each.batch
            for each in self.valid(cell)
            if (cost_us := each.cpu_us_per_call or 0.0) > 0.0  # less, where it was not read
        ]
        return median(costs) if costs else None

    def gain(self, cell: Cell) -> Interval | None:
        """Return how many times as fast this server is as a cell's, called alike, by their rounds.

        Returns:
            None for this server itself, and where the two have no round in common.
        """
        ours = ours_beside(cell)
        if cell.spec.target == ours.spec.target:
            return None
        mine, theirs = self.rounds.get(ours, {}), self.rounds.get(cell, {})
        rounds = sorted(set(mine) & set(theirs))
        if not rounds:
            return None
        return paired_ratio([mine[n] for n in rounds], [theirs[n] for n in rounds])

    def speedup(self, cell: Cell) -> Interval | None:
        """Return how many times as fast a cell is as that of the base, by their rounds.

        Returns:
            None for the base itself, and where the two have no round in common.
        """
        if self.base is None:
            return None
        first = replace(cell, spec=self.base)
        ours, theirs = self.rounds.get(cell, {}), self.rounds.get(first, {})
        rounds = sorted(set(ours) & set(theirs))
        if not rounds or cell == first:
            return None
        values, others = [ours[n] for n in rounds], [theirs[n] for n in rounds]
        return paired_ratio(others, values) if cell.is_latency else paired_ratio(values, others)


def _rounds(cell: Cell, samples: Sequence[Sample], latency_slo_s: float) -> Mapping[int, float]:
    figures = {}
    for number in dict.fromkeys(sample.round for sample in samples):
        of_round = [sample for sample in samples if sample.round == number]
        valid = [sample for sample in of_round if not sample.invalid]
        if cell.scenario == "Server":
            figures[number] = server_rate(of_round, latency_slo_s)
        elif valid and cell.is_latency:
            latency = Latencies.joined(sample.latency for sample in valid)
            figures[number] = latency.quantile(LATENCY[cell.scenario])
        elif valid:
            figures[number] = median(sample.images_per_s for sample in valid)
    return {number: value for number, value in figures.items() if value is not None}


def server_rate(samples: Sequence[Sample], latency_slo_s: float) -> float | None:
    """Return the highest rate, in rows/s, that kept to the objective in one search.

    None if nothing did, or if the rates above it failed by the generator's fault alone: then the
    target may do better, and the search has not found its limit.
    """
    kept = [sample for sample in samples if sample.holds(latency_slo_s)]
    best = max((sample.offered_per_s or 0 for sample in kept), default=0.0)
    above = [sample for sample in samples if (sample.offered_per_s or 0) > best]
    if not best or (above and all(sample.invalid for sample in above)):
        return None
    return best * samples[0].batch
