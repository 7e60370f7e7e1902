"""A trial: the real server with a candidate's settings, called by several numbers of callers."""

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from benchmarks.loops import Trace
from benchmarks.network import Demand, memory_bytes
from benchmarks.others import NotMeasured
from benchmarks.result_file import Latencies
from benchmarks.targets import Running, Setting, Spec, open_target
from benchmarks.tuning.candidates import Candidate, config_text
from benchmarks.tuning.search import Goal, Stage, Trial
from serving.proof.onnx_file import external_files, parse_model

_CYCLES = 3.0
"""How many answers each caller gets in a run, at least; a slow model takes longer for them."""
_LONGEST_S = 30.0
"""The longest run."""
_CALLS = 200
"""Answers of all callers together in a run, at least, unless they take longer."""
START_S = 1.0
"""How long a server takes to start, more or less."""
_MANY = 20
"""Answers of each caller from which on they are counted; see `rate_of`."""
_WARM_UP_S = 0.05


@contextmanager
def copied(file: Path) -> Iterator[Path]:
    """Link or copy a model into a folder of its own, where settings can be written beside it."""
    folder = Path(tempfile.mkdtemp(prefix="tune-"))
    try:
        names = {file.name, *external_files(parse_model(file.read_bytes()))}
        for name in names:
            copy = folder / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(file.parent.resolve() / name, copy)
            except OSError:  # another file system
                shutil.copyfile(file.parent / name, copy)
        yield folder / file.name
    finally:
        shutil.rmtree(folder, ignore_errors=True)


class Trials:
    """Serves candidates, one after the other, and measures them."""

    def __init__(
        self,
        setting: Setting,
        callers: Sequence[int],
        rows: int,
        old: str,
        goal: Goal,
        progress: Callable[[], None],
    ) -> None:
        """Describe what is measured.

        Args:
            setting: the server's cores, the generator, and as its model a copy that settings can
                be written beside.
            callers: how many at once, ascending.
            rows: of a call.
            old: the model's own config.pbtxt; the candidates' settings replace those in it.
            goal: it says by how many callers a stage calls.
            progress: called after each run.
        """
        self._setting, self._callers, self._rows, self._old = setting, callers, rows, old
        self._goal, self._progress = goal, progress
        self.failed: dict[Candidate, str] = {}
        """Why a candidate could not be served."""

    def measure(self, candidate: Candidate, stage: Stage) -> list[Trial]:
        """Serve a candidate, and call it by each number of callers."""
        model = self._setting.model
        assert model is not None
        config = model.with_name(f"{model.stem}.config.pbtxt")
        config.write_text(config_text(candidate, self._old), "utf-8")
        trials: list[Trial] = []
        try:
            spec = Spec(target="h2-infer", device=candidate.device)
            with open_target(spec, self._setting) as running:
                for trial in self._runs(candidate, stage, running):
                    trials.append(trial)
                    self._progress()
        except (NotMeasured, OSError) as err:
            self.failed[candidate] = str(err)
        for _ in self._goal.callers_of(self._callers, stage)[len(trials) :]:
            self._progress()
        return trials

    def _runs(self, candidate: Candidate, stage: Stage, running: Running) -> Iterator[Trial]:
        assert running.pid is not None
        warm_up = running.load.closed(Demand(1, self._rows, _WARM_UP_S))
        # Between two answers to one caller, as the run before had it.
        before, cycle_s = 1, float(np.mean(warm_up.latencies_s))
        for callers in self._goal.callers_of(self._callers, stage):
            likely_s = cycle_s * callers / before
            seconds = run_seconds(stage.seconds, likely_s, callers)
            trace = running.load.closed(Demand(callers, self._rows, seconds))
            before, cycle_s = callers, float(np.mean(trace.latencies_s))
            yield trial_of(
                candidate, stage, trace, callers=callers, rows=self._rows, pid=running.pid
            )


def run_seconds(least_s: float, cycle_s: float, callers: int) -> float:
    """Return how long a run is: as long as the model needs for some hundred calls.

    Args:
        least_s: the least length.
        cycle_s: between two answers to one caller.
        callers: how many there are.
    """
    return min(_LONGEST_S, max(least_s, max(_CYCLES, _CALLS / callers) * cycle_s))


def trial_of(
    candidate: Candidate, stage: Stage, trace: Trace, *, callers: int, rows: int, pid: int
) -> Trial:
    """Return the figures of a run."""
    latency = Latencies.of(trace.latencies_s)
    return Trial(
        candidate=candidate,
        callers=callers,
        rows=rows,
        stage=stage.number,
        seconds=trace.duration_s,
        rows_per_s=rate_of(trace, callers) * rows,
        p50_s=latency.quantile(0.5),
        p99_s=latency.quantile(0.99),
        num_calls=len(trace.latencies_s),
        num_errors=trace.num_errors,
        memory_bytes=memory_bytes(pid),
        latency=latency,
    )


def rate_of(trace: Trace, callers: int) -> float:
    """Return the answers a second of a closed loop.

    Of a short run of a slow model the answers at its end are left out, whole batches of them. Then
    the callers divided by the mean latency is nearer to the rate (Little's law).
    """
    if len(trace.latencies_s) >= _MANY * callers:
        return trace.calls_per_s
    right = 1 - trace.num_errors / max(1, len(trace.latencies_s))
    return float(right * callers / np.mean(trace.latencies_s))
