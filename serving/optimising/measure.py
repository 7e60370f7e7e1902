"""How fast models are on the engine that serves, in turns, so that a busy machine slows all alike.

alone   one call, as the server runs it when no other call needs the cores
busy    a batch of the size that the server would run, on one thread; of a model that is not batched
        one call
"""

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from serving.errors import InvalidRequest, ModelError
from serving.model.loaded import LoadedModel
from serving.tensors import Feeds

_CALLS = 4
"""Different calls that are run in turns."""
_LEAST_S, _LEAST_RUNS = 0.06, 3
"""How long one round of one model lasts at least, and how many runs it has."""
_BATCH_S, _LEAST_ROWS, _MOST_ROWS = 0.005, 8, 64
"""A batch takes as long as the first, unless that would be fewer rows than the second, or more than
the third."""
LEAST_GAIN = 1.1
"""The least median gain with many callers that is worth a version of its own."""
LEAST_ALONE = 0.97
"""The least median gain of a lone call: one that is as fast may seem slower by chance."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rates:
    """Rows a second of one model, a number for each round."""

    alone: tuple[float, ...]
    busy: tuple[float, ...]
    batch: int
    """Rows of a run of `busy`."""

    def joined(self, other: "Rates") -> "Rates":
        """Return these rounds and further ones."""
        return Rates(alone=self.alone + other.alone, busy=self.busy + other.busy, batch=self.batch)


@dataclass(frozen=True, kw_only=True, slots=True)
class Gain:
    """How many times as fast one model is as another, in the same rounds."""

    median: float
    least: float
    most: float
    is_sure: bool
    """Whether the worst round of the one beats the best of the other."""

    @classmethod
    def of(cls, rates: Sequence[float], others: Sequence[float]) -> "Gain":
        """Compare rates of the same rounds."""
        ratios = [mine / its for mine, its in zip(rates, others, strict=True)]
        is_sure = min(rates) > max(others)
        return cls(
            median=statistics.median(ratios), least=min(ratios), most=max(ratios), is_sure=is_sure
        )

    def __str__(self) -> str:
        """Return text such as "2.1 (1.9 to 2.2)"."""
        return f"{self.median:.2f} ({self.least:.2f} to {self.most:.2f})"


def batch_rows(model: LoadedModel, calls: Sequence[Feeds], most_rows: int) -> int:
    """Return how many rows the server would run at once with many callers.

    Args:
        model: whose rows may share a run, or not.
        calls: of one row each.
        most_rows: of the server and the model's settings.
    """
    if not model.tensors.is_batchable:
        return 1
    row_s = min(_run_s(lambda: model.run(calls[0])) for _ in range(3))
    rows = _LEAST_ROWS
    while rows < _MOST_ROWS and 2 * rows * row_s <= _BATCH_S:
        rows *= 2
    return min(rows, most_rows)


class Meter:
    """Measures models in turns."""

    def __init__(self, calls: Sequence[Feeds], rows: int) -> None:
        """Choose the calls.

        Args:
            calls: of one row each; some of them are run.
            rows: of a batch.
        """
        self._calls = list(calls[:_CALLS])
        self._rows = rows
        self._batches: list[Feeds] | None = None

    def measure(
        self, models: Mapping[str, LoadedModel], rounds: int, progress: Callable[[], None]
    ) -> dict[str, Rates]:
        """Return the rates of each model, by its name.

        Each round runs all of them, and begins with another one.

        Args:
            models: what to measure.
            rounds: how often.
            progress: called after each model of each round.
        """
        names = list(models)
        alone: dict[str, list[float]] = {name: [] for name in names}
        busy: dict[str, list[float]] = {name: [] for name in names}
        for number in range(rounds):
            for at in range(len(names)):
                name = names[(at + number) % len(names)]
                model = models[name]
                run, _ = model.stoppable(is_alone=True)
                alone[name].append(_rate([_job(run, call) for call in self._calls], 1))
                feeds, rows = self._busy_of(model)
                busy[name].append(_rate([_job(model.run, each) for each in feeds], rows))
                progress()
        return {
            name: Rates(
                alone=tuple(alone[name]),
                busy=tuple(busy[name]),
                batch=self._busy_of(models[name])[1],
            )
            for name in names
        }

    def _busy_of(self, model: LoadedModel) -> tuple[list[Feeds], int]:
        """Return the runs of a model with many callers, and the rows of each."""
        if not model.tensors.is_batchable or self._rows == 1:
            return self._calls, 1
        if self._batches is None:
            first = self._calls[0]
            alike = [each for each in self._calls if _shapes(each) == _shapes(first)]
            self._batches = [
                {
                    name: np.concatenate([alike[at % len(alike)][name] for at in range(self._rows)])
                    for name in first
                }
            ]
        return self._batches, self._rows


def _shapes(call: Feeds) -> list[tuple[int, ...]]:
    return [array.shape for array in call.values()]


def _job(run: Callable[[Feeds], object], call: Feeds) -> Callable[[], object]:
    return lambda: run(call)


def _run_s(job: Callable[[], object]) -> float:
    begin_s = time.perf_counter()
    try:
        job()
    except (InvalidRequest, ModelError):
        return float("inf")
    return time.perf_counter() - begin_s


def _rate(jobs: Sequence[Callable[[], object]], rows: int) -> float:
    """Return the rows a second of some runs: by the median, which others' work moves little."""
    _run_s(jobs[0])  # memory, and the caches of the processor
    times: list[float] = []
    while len(times) < _LEAST_RUNS or sum(times) < _LEAST_S:
        times.append(_run_s(jobs[len(times) % len(jobs)]))
    return rows / max(statistics.median(times), 1e-9)
