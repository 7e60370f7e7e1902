"""The search: successive halving, the goals, and the Pareto front; it measures nothing itself."""

import math
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

import numpy as np

from benchmarks.result_file import Latencies
from benchmarks.tuning.candidates import Candidate

ENOUGH = 0.8
"""Goal memory: the share of the best rate that a candidate must reach."""
NOISE = 0.03
"""Differences below this share are taken for noise: the server's defaults are chosen then."""
_BETWEEN = 4
"""How many candidates are measured between two measurements of the reference."""
FINALISTS = 3
FINAL_ROUNDS = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Trial:
    """One timed run of a candidate at a number of callers."""

    candidate: Candidate
    callers: int
    rows: int
    """Rows of a call."""
    stage: int
    """The round of the halving, from 0; the last one has the most time."""
    seconds: float
    rows_per_s: float
    p50_s: float
    p99_s: float
    num_calls: int
    num_errors: int
    memory_bytes: int
    """Memory of the server after the run."""
    latency: Latencies = field(repr=False, compare=False)
    """Latencies of all calls."""
    turn: int = 0
    """Its place in the order of its stage's measurements."""


@dataclass(frozen=True, slots=True)
class TuningCell:
    """A candidate at a number of callers: the medians of its last stage."""

    candidate: Candidate
    callers: int
    rows_per_s: float
    p50_s: float
    p99_s: float
    memory_bytes: int
    num_errors: int
    """Calls that failed in that stage; a cell with errors has no rate, and is never chosen."""


@dataclass(frozen=True, slots=True)
class Goal:
    """What is looked for: "throughput", "latency" or "memory"."""

    kind: str = "throughput"
    latency_s: float = math.inf
    """The most that p99 may be."""

    def __str__(self) -> str:
        return f"latency={self.latency_s * 1e3:g}ms" if self.kind == "latency" else self.kind

    def callers_of(self, callers: Sequence[int], stage: "Stage") -> Sequence[int]:
        """Return by how many callers a stage's candidates are called.

        Rates are highest with many callers: before the last stage only these tell which half is
        better. The limit of a latency may be kept by few callers alone.
        """
        return callers if stage.is_last or self.kind == "latency" else callers[-2:]

    def best_cell(self, cells: Sequence[TuningCell]) -> TuningCell | None:
        """Return the best of a candidate's cells: that of the highest rate within the limit.

        With fewer callers the usual call must be within it, too: a run that waits for more rows
        makes a lone caller the slowest.

        Returns:
            None if each of them has errors, or is too slow.
        """
        good = [c for c in cells if not c.num_errors and self._is_kept(c, cells)]
        return max(good, key=lambda cell: cell.rows_per_s, default=None)

    def _is_kept(self, cell: TuningCell, cells: Sequence[TuningCell]) -> bool:
        """Return whether a limit of latency is kept up to a cell's number of callers."""
        fewer = [c for c in cells if c.candidate == cell.candidate and c.callers < cell.callers]
        return cell.p99_s <= self.latency_s and all(c.p50_s <= self.latency_s for c in fewer)

    def ranked(self, cells: Sequence[TuningCell]) -> list[Candidate]:
        """Return the candidates, the best first; those that miss the goal come last."""
        groups: dict[Candidate, list[TuningCell]] = {}
        for cell in cells:
            groups.setdefault(cell.candidate, []).append(cell)
        best = {each: self.best_cell(group) for each, group in groups.items()}
        most = max((cell.rows_per_s for cell in best.values() if cell), default=0.0)

        def key(candidate: Candidate) -> tuple[int, float]:
            cell = best[candidate]
            if cell is None:
                slow = [c.p99_s for c in groups[candidate] if not c.num_errors]
                return (2, min(slow)) if slow else (3, 0.0)
            if self.kind == "memory" and cell.rows_per_s >= ENOUGH * most:
                return 0, float(max(each.memory_bytes for each in groups[candidate]))
            return 1, -cell.rows_per_s

        return sorted(groups, key=key)

    def choose(self, cells: Sequence[TuningCell]) -> TuningCell | None:
        """Return the cell to serve with: the best candidate's best one.

        Of those that are as good, the server's defaults are chosen: fewer settings to carry on.
        After them one whose runs don't wait for more rows: a lone caller's would, for nothing.

        Returns:
            None if no cell without errors reaches the goal.
        """
        found = [
            self.best_cell([cell for cell in cells if cell.candidate == candidate])
            for candidate in self.ranked(cells)
        ]
        best = found[0]
        if best is None or self.kind == "memory":
            return best
        as_good = [c for c in found if c and c.rows_per_s >= (1 - NOISE) * best.rows_per_s]
        usual = [cell for cell in as_good if cell.candidate.is_default]
        prompt = [cell for cell in as_good if not cell.candidate.delay_s]
        return (*usual, *prompt, best)[0]


def worst_is_better(trials: Sequence[Trial], chosen: TuningCell, usual: TuningCell) -> bool:
    """Return whether the worst round of a cell beats the best of the defaults.

    Of as many rounds of equal settings this is chance: once in 252 for five of each.

    Args:
        trials: of the last stage, steadied.
        chosen: a cell of it.
        usual: the defaults' best cell.
    """
    own, others = (
        [t.rows_per_s for t in trials if (t.candidate, t.callers) == (c.candidate, c.callers)]
        for c in (chosen, usual)
    )
    return min(own, default=0.0) > max(others, default=0.0)


def cells_of(trials: Sequence[Trial]) -> list[TuningCell]:
    """Return the cells: of each candidate and number of callers the medians of its last stage."""
    groups: dict[tuple[Candidate, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.candidate, trial.callers), []).append(trial)
    cells = []
    for (candidate, callers), group in groups.items():
        last = [trial for trial in group if trial.stage == max(t.stage for t in group)]
        num_errors = sum(trial.num_errors for trial in last)
        cells.append(
            TuningCell(
                candidate,
                callers,
                0.0 if num_errors else median(trial.rows_per_s for trial in last),
                median(trial.p50_s for trial in last),
                median(trial.p99_s for trial in last),
                max(trial.memory_bytes for trial in last),
                num_errors,
            )
        )
    return cells


def front(cells: Sequence[TuningCell]) -> list[TuningCell]:
    """Return the Pareto front, by rate: no other cell has a higher rate and a lower p99."""
    good = sorted((cell for cell in cells if not cell.num_errors), key=lambda c: -c.rows_per_s)
    found: list[TuningCell] = []
    for cell in good:
        if not found or cell.p99_s < found[-1].p99_s:
            found.append(cell)
    return found[::-1]


@dataclass(frozen=True, slots=True)
class Stage:
    """A round of the search: each of its candidates is measured as often, for as long."""

    number: int
    num_candidates: int
    seconds: float
    """The least length of a timed run."""
    rounds: int = 1

    @property
    def is_last(self) -> bool:
        """Whether its figures are those that are reported."""
        return self.rounds > 1


def stages(num: int, seconds: float) -> list[Stage]:
    """Plan the halving: each stage has half of the candidates, and twice the time for each.

    The last one has `FINALISTS`, and is repeated at the length of the one before: its figures are
    medians.
    """
    planned: list[Stage] = []
    while num > FINALISTS:
        planned.append(Stage(len(planned), num, seconds))
        num, seconds = max(FINALISTS, math.ceil(num / 2)), 2 * seconds
    seconds = planned[-1].seconds if planned else seconds
    return [*planned, Stage(len(planned), num, seconds, FINAL_ROUNDS)]


def halve(
    candidates: Sequence[Candidate],
    goal: Goal,
    seconds: float,
    seed: int,
    measure: Callable[[Candidate, Stage], Sequence[Trial]],
) -> list[Trial]:
    """Measure all candidates for a short time, the better half for twice as long, and so on.

    The first candidate, the server's defaults, is the reference: it is measured in every stage,
    between the others; see `steadied`. The order within a stage is random.

    Args:
        candidates: the settings to try, the reference first.
        goal: which half is the better one.
        seconds: the least length of a run in the first stage.
        seed: of the order.
        measure: runs a candidate at every number of callers; it returns nothing of a candidate
            that can't be served.
    """
    generator, trials = random.Random(seed), list[Trial]()
    reference, *alive = candidates
    for stage in stages(len(alive), seconds):
        alive = alive[: stage.num_candidates]
        trials += measured(alive, reference, stage, generator, measure)
        of_stage = [trial for trial in trials if trial.stage == stage.number]
        ranked = goal.ranked(cells_of(steadied(of_stage))) if of_stage else []
        alive = [each for each in ranked if each != reference]
    return trials


def measured(
    candidates: Sequence[Candidate],
    reference: Candidate,
    stage: Stage,
    generator: random.Random,
    measure: Callable[[Candidate, Stage], Sequence[Trial]],
) -> list[Trial]:
    """Measure candidates in a random order as often as a stage says, the reference between them."""
    trials: list[Trial] = []
    for number in range(stage.rounds):
        order = generator.sample(list(candidates), len(candidates))
        turns = [order[at : at + _BETWEEN] for at in range(0, len(order), _BETWEEN)]
        sequence = [each for turn in turns for each in (reference, *turn)]
        for place, candidate in enumerate([*sequence, reference]):
            turn = number * num_turns(len(candidates)) + place
            trials += [replace(trial, turn=turn) for trial in measure(candidate, stage)]
    return trials


def num_turns(num: int) -> int:
    """Return the measurements in a round of `num` candidates, those of the reference included."""
    return num + math.ceil(num / _BETWEEN) + 1


def steadied(trials: Sequence[Trial]) -> list[Trial]:
    """Correct rates for the drift of the machine, by the reference that was measured between them.

    Of each stage and number of callers, a rate is divided by the reference's at that time, drawn
    straight between its measurements before and after, and multiplied by its median.
    """
    groups: dict[tuple[int, int], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.stage, trial.callers), []).append(trial)
    steady = []
    for group in groups.values():
        defaults = Counter(t.candidate for t in group if t.candidate.is_default)
        reference = defaults.most_common(1)[0][0] if defaults else None
        usual = [t for t in group if t.candidate == reference and not t.num_errors]
        if len(usual) < 2:
            steady += group
            continue
        usual.sort(key=lambda trial: trial.turn)
        rates = [trial.rows_per_s for trial in usual]
        for trial in group:
            there = float(np.interp(trial.turn, [each.turn for each in usual], rates))
            steady.append(replace(trial, rows_per_s=trial.rows_per_s * median(rates) / there))
    return steady
