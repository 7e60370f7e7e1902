"""The command `tune`: options, the search, and what it writes."""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from random import Random
from statistics import median
from time import perf_counter
from typing import Any

from benchmarks import runner
from benchmarks.network import Generator
from benchmarks.result_file import UnusableResults
from benchmarks.targets import Setting
from benchmarks.tuning import report, trials
from benchmarks.tuning.candidates import Candidate, config_text, grid
from benchmarks.tuning.search import (
    FINAL_ROUNDS,
    Goal,
    Stage,
    Trial,
    TuningCell,
    cells_of,
    halve,
    measured,
    num_turns,
    stages,
    steadied,
    worst_is_better,
)
from benchmarks.workload import Workload
from serving import Model
from serving.commandline import values
from serving.commandline.progress import Bar
from serving.model.repository import companion
from serving.model.settings import SETTINGS

CALLERS = (1, 4, 16, 64)
_GOALS = "throughput, latency=10ms or memory"


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the options that `benchmarks.cli` does not share with other commands."""
    add = parser.add_argument
    add(
        "--goal",
        type=goal,
        default=Goal(),
        metavar="GOAL",
        help="throughput: the most rows a second; latency=10ms: the most with p99 within that, and "
        "with fewer callers the median; "
        "memory: the least with 80 %% of the best rate (throughput)",
    )
    add(
        "--callers", type=_callers, default=CALLERS, metavar="N,M", help="calls at once (1,4,16,64)"
    )
    add("--rows", type=values.count, default=1, metavar="N", help="rows a call (1)")
    add(
        "--seconds",
        type=values.seconds,
        default=0.1,
        metavar="S",
        help="least length of a timed run in the first stage; it doubles in each (0.1)",
    )
    add("--device", choices=("cpu", "cuda", "all"), default="cpu", help="where to run it (cpu)")
    add(
        "--exhaustive",
        action="store_true",
        help="measure the whole grid as long as the last stage, instead of halving",
    )
    add("--config", type=Path, metavar="FILE", help="settings to write (those beside the model)")
    add("--output", type=Path, default=Path("tuned"), metavar="DIR", help="results (tuned)")


def goal(text: str) -> Goal:
    """Parse a goal."""
    kind, is_limited, limit = text.partition("=")
    if kind == "latency" and is_limited:
        return Goal("latency", values.seconds(limit))
    if kind in ("throughput", "memory") and not is_limited:
        return Goal(kind)
    raise argparse.ArgumentTypeError(f"expected {_GOALS}, got {text!r}")


def _callers(text: str) -> tuple[int, ...]:
    return tuple(sorted({values.count(part) for part in text.split(",")}))


def run(options: argparse.Namespace, workload: Workload) -> int:
    """Search, and write settings, picture and raw results.

    Returns:
        0, or 1 if no settings reach the goal.

    Raises:
        UnusableResults: nothing could be served.
        OSError: a file could not be read or written.
    """
    file, rows = options.model, options.rows
    workload.feeds(rows)  # raises if a call can't have as many
    target = options.config or _settings_file(file)
    old = target.read_text("utf-8") if target.exists() else ""
    cores, generator_cores = share_cores(sorted(usable()))
    devices = ("cpu", "cuda") if options.device == "all" else (options.device,)
    is_batched, run_s = _tried(file, workload, rows)
    candidates = grid(len(cores), rows * max(options.callers), devices, is_batched=is_batched)
    facts = _facts(options, cores, generator_cores)
    words = ", ".join(f"{name} {value}" for name, value in facts.items())
    print(f"{file}: {len(candidates)} settings; {words}", flush=True)
    with (
        trials.copied(file) as copy,
        Generator(generator_cores, "auto") as generator,
    ):
        setting = Setting(
            models=Path("models"),
            model=copy,
            workload=workload,
            cores=cores,
            addresses={},
            checkouts={},
            generator=generator,
        )
        print(_minutes(options, candidates, run_s, len(cores)), flush=True)
        found, failed = _search(options, setting, candidates, old)
        if not found:
            raise UnusableResults(f"nothing could be served: {next(iter(failed.values()))}")
        finals = steadied([trial for trial in found if trial.stage == _last_stage(found)])
        chosen = options.goal.choose(cells_of(finals))
        checked = chosen and _checked(options, setting, finals, chosen, old)
    words = checked[1] if checked else ""
    return _finish(options, found, facts, target, old, (checked and checked[0], words))


def _search(
    options: argparse.Namespace, setting: Setting, candidates: Sequence[Candidate], old: str
) -> tuple[list[Trial], dict[Candidate, str]]:
    """Run the search with a progress bar; say which candidates could not be served."""
    reference, *others = candidates
    plan = _plan(options, len(others))
    runs = sum(
        stage.rounds
        * num_turns(stage.num_candidates)
        * len(options.goal.callers_of(options.callers, stage))
        for stage in plan
    )
    bar = Bar(runs, sys.stderr, "measured {} of {} runs")
    tried = trials.Trials(setting, options.callers, options.rows, old, options.goal, bar.advance)
    if options.exhaustive:
        generator = Random(options.seed)
        found = measured(others, reference, plan[0], generator, tried.measure)
    else:
        found = halve(candidates, options.goal, options.seconds, options.seed, tried.measure)
    bar.clear()
    for candidate, reason in tried.failed.items():
        print(f"not measured: {candidate}: {reason}", file=sys.stderr)
    return found, tried.failed


def _last_stage(found: Sequence[Trial]) -> int:
    return max(trial.stage for trial in found)


def _plan(options: argparse.Namespace, num: int) -> list[Stage]:
    """Return the stages for a number of candidates beside the defaults."""
    plan = stages(num, options.seconds)
    if options.exhaustive:
        plan = [Stage(0, num, 2 * plan[-1].seconds, FINAL_ROUNDS - 1)]
    return plan


def _minutes(
    options: argparse.Namespace, candidates: Sequence[Candidate], run_s: float, num_cores: int
) -> str:
    """Say how long the search will take, by the time of a run of the model."""
    seconds = 0.0
    for stage in _plan(options, len(candidates) - 1):
        runs = sum(
            trials.run_seconds(stage.seconds, run_s * max(1.0, callers / num_cores), callers)
            for callers in options.goal.callers_of(options.callers, stage)
        )
        seconds += stage.rounds * num_turns(stage.num_candidates) * (runs + trials.START_S)
    return f"It takes some {max(1, round(seconds / 60))} min; Ctrl-C changes nothing."


def _checked(
    options: argparse.Namespace,
    setting: Setting,
    finals: Sequence[Trial],
    chosen: TuningCell,
    old: str,
) -> tuple[TuningCell, str]:
    """Return the cell to serve with: the chosen one if that is sure, else the defaults'.

    It is, if its worst round beats the defaults' best, and one more measurement through the
    server confirms it: both in turns, as often as in the last stage.

    Returns:
        The cell, and a sentence with the range of the confirmation, or why the defaults stay.
    """
    goal = options.goal
    defaults = [cell for cell in cells_of(finals) if cell.candidate.is_default]
    usual = goal.best_cell(defaults)
    if usual is None or chosen.candidate.is_default or goal.kind == "memory":
        return chosen, ""
    if not worst_is_better(finals, chosen, usual):
        words = f"The defaults stay: the worst round of {chosen.candidate} is not above their best."
        return usual, words
    stage = Stage(0, 1, max(trial.seconds for trial in finals), FINAL_ROUNDS)
    callers = sorted({chosen.callers, usual.callers})
    again = trials.Trials(setting, callers, options.rows, old, goal, lambda: None)
    ratios = []
    for _ in range(FINAL_ROUNDS):
        rates = []
        for cell in (chosen, usual):
            of_cell = [t for t in again.measure(cell.candidate, stage) if t.callers == cell.callers]
            rates += [0.0 if t.num_errors else t.rows_per_s for t in of_cell] or [0.0]
        ratios.append(rates[0] / rates[1] if rates[1] else 0.0)
    least, most = min(ratios), max(ratios)
    times = f"{median(ratios):.2f} times the defaults' rate ({least:.2f} to {most:.2f})"
    if least <= 1:
        return usual, f"The defaults stay: measured again, {chosen.candidate} had {times}."
    return chosen, f"Measured again: {times}."


def _finish(
    options: argparse.Namespace,
    found: Sequence[Trial],
    facts: dict[str, Any],
    target: Path,
    old: str,
    checked: tuple[TuningCell | None, str],
) -> int:
    finals = steadied([trial for trial in found if trial.stage == _last_stage(found)])
    chosen, words = checked
    shown = report.table(finals, chosen)
    print(f"\n{shown.title}. {shown.note}\n{shown.text()}\n")
    raw = options.output / f"{options.model.stem}.json"
    report.save(raw, found, facts)
    written = [raw]
    try:
        from benchmarks.tuning import picture  # late: matplotlib

        svg = raw.with_suffix(".svg")
        svg.write_text(picture.draw(steadied(found), chosen, options.model.stem), "utf-8")
        written.append(svg)
    except ModuleNotFoundError:
        print("no picture: matplotlib is not installed (extra bench)", file=sys.stderr)
    if chosen is None:
        print(f"No setting reaches the goal {options.goal} without errors; nothing is changed.")
    else:
        print(f"{report.verdict(finals, chosen, options.goal)} {words}".rstrip())
        lines = report.comments(finals, chosen, options.goal, facts)
        lines += [words] if words else []
        if old:
            before = target.with_name(f"{target.name}.before")
            before.write_text(old, "utf-8")
            written.append(before)
        target.write_text(config_text(chosen.candidate, old, lines), "utf-8")
        written.append(target)
    print(f"wrote {', '.join(map(str, written))}")
    return int(chosen is None)


def _settings_file(file: Path) -> Path:
    """Return the file of a model's settings that a server reads, or that it would read."""
    return companion(file, SETTINGS) or file.with_name(f"{file.stem}.{SETTINGS}")


def _tried(file: Path, workload: Workload, rows: int) -> tuple[bool, float]:
    """Return whether rows of several calls may share a run, and the seconds of a call's run."""
    with Model.load(file, device="cpu", threads=1) as model:
        info, feeds = model.describe(), dict(workload.feeds(rows))
        model.infer(feeds)
        begin_s = perf_counter()
        model.infer(feeds)
        run_s = perf_counter() - begin_s
    return info.is_batchable and bool(workload.rows), run_s


def usable() -> set[int]:
    """Return the cores of this process."""
    return os.sched_getaffinity(0)


def share_cores(cores: Sequence[int]) -> tuple[list[int], list[int]]:
    """Divide cores: a quarter for the callers; with fewer than four they share the server's."""
    num = len(cores) // 4
    if not num:
        return list(cores), list(cores[-1:])
    return list(cores[:-num]), list(cores[-num:])


def _facts(
    options: argparse.Namespace, cores: Sequence[int], generator_cores: Sequence[int]
) -> dict[str, Any]:
    there = runner.describe(options.model, {"target": len(cores)})
    is_shared = bool({*cores} & {*generator_cores})
    return {
        "goal": str(options.goal),
        "seed": options.seed,
        "rows a call": options.rows,
        "cores": f"{len(cores)}{', shared with the callers' if is_shared else ''}",
        "cpu": there["cpu"],
        "onnxruntime": there["packages"].get("onnxruntime", "?"),
    }
