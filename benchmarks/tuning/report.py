"""What a search found: a table, a picture, the comments of a config.pbtxt, and the raw results."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from benchmarks.tables import NONE, ReportTable, seconds, short
from benchmarks.tuning.search import Goal, Trial, TuningCell, cells_of, front

FORMAT = 1
_SLOWER = 1.25
"""How many times as long a call alone must take, to be told: less is noise."""


def table(trials: Sequence[Trial], chosen: TuningCell | None) -> ReportTable:
    """Lay out the candidates of the last stage, with all numbers of callers."""
    shown = cells_of(trials)
    best = set(front(shown))
    rows = [["", "settings", "callers", "rows/s", "p50", "p99", "errors", "memory"]]
    for cell in sorted(shown, key=lambda each: (str(each.candidate), each.callers)):
        mark = "*" * (cell in best)
        if chosen and (cell.candidate, cell.callers) == (chosen.candidate, chosen.callers):
            mark = "->"
        figures = [short(cell.rows_per_s), seconds(cell.p50_s), seconds(cell.p99_s)]
        rows.append(
            [
                mark,
                str(cell.candidate),
                str(cell.callers),
                *(figures if not cell.num_errors else [NONE] * 3),
                str(cell.num_errors),
                f"{cell.memory_bytes / 2**20:.0f} MiB",
            ]
        )
    note = (
        "The candidates of the last stage, their rates corrected for the machine's drift by the "
        "defaults measured between them. ->: chosen; *: on the Pareto front of rate and p99. A "
        "cell with errors has no rate."
    )
    return ReportTable("Settings", note, rows)


def comments(
    trials: Sequence[Trial], chosen: TuningCell, goal: Goal, facts: Mapping[str, Any]
) -> list[str]:
    """Return the comments of a config.pbtxt: what was measured, where, and how to repeat it."""
    cells = [cell for cell in cells_of(trials) if cell.candidate == chosen.candidate]
    where = ", ".join(f"{name} {value}" for name, value in facts.items())
    lines = [
        f"Written by `tune --goal {goal}`: {chosen.candidate}.",
        f"Measured through the server: {where}.",
        "callers   rows/s       p50       p99   errors",
    ]
    lines += [
        f"{cell.callers:7}  {short(cell.rows_per_s):>7}  {seconds(cell.p50_s):>8}  "
        f"{seconds(cell.p99_s):>8}  {cell.num_errors:7}"
        for cell in sorted(cells, key=lambda each: each.callers)
    ]
    note = lone_caller(trials, chosen)
    return [*lines, note] if note else lines


def lone_caller(trials: Sequence[Trial], chosen: TuningCell) -> str:
    """Say that a call alone is slower by the chosen settings; nothing if it is not, or not known.

    Callers that fill each batch hide it.
    """
    alone = {c.candidate: c for c in cells_of(trials) if c.callers == 1 and not c.num_errors}
    own = alone.get(chosen.candidate)
    usual = next((cell for each, cell in alone.items() if each.is_default), None)
    if own is None or usual is None or own.p50_s <= _SLOWER * usual.p50_s:
        return ""
    words = f"A call alone is slower: p50 {seconds(own.p50_s)}, {seconds(usual.p50_s)} by defaults"
    if delay_s := chosen.candidate.delay_s:
        words += f", as a run waits {seconds(delay_s)} for more rows"
    return f"{words}. With few callers: --callers 1,4."


def verdict(trials: Sequence[Trial], chosen: TuningCell, goal: Goal) -> str:
    """Say in a sentence or two which settings to serve with, and what they gain."""
    words = (
        f"For {goal}: {chosen.candidate}: {short(chosen.rows_per_s)} rows/s with {chosen.callers} "
        f"callers, p99 {seconds(chosen.p99_s)}, {chosen.memory_bytes / 2**20:.0f} MiB."
    )
    if note := lone_caller(trials, chosen):
        words = f"{words} {note}"
    usual = [cell for cell in cells_of(trials) if cell.candidate.is_default]
    best = goal.best_cell(usual)
    if best is None or chosen.candidate.is_default:
        return words
    ratio = chosen.rows_per_s / best.rows_per_s
    return (
        f"{words} The server's defaults: {short(best.rows_per_s)} rows/s with {best.callers} "
        f"callers, p99 {seconds(best.p99_s)}, {best.memory_bytes / 2**20:.0f} MiB; that is "
        f"{ratio:.2f} times their rate."
    )


def save(path: Path, trials: Sequence[Trial], facts: Mapping[str, Any]) -> None:
    """Write the raw results: a line of JSON for each timed run."""
    lines = []
    for trial in trials:
        values = {**asdict(trial), "latency": trial.latency.encode()}
        lines.append(json.dumps(values))
    document = {"format": FORMAT, **facts}
    head = json.dumps(document)[:-1]
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(head + ', "trials": [\n' + ",\n".join(lines) + "\n]}\n", "utf-8")
