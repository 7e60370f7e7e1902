"""The tables of what an image, a start, an installation and a training cost, and of what lacks."""

from collections.abc import Callable, Iterator, Sequence
from statistics import median
from typing import Any

from benchmarks.report.figures import Figures
from benchmarks.report.table import Table, seconds, short
from benchmarks.run.cell import Cell


def by_scenario(figures: Figures) -> Table:
    """Lay out the processor time of an image, in calls of one, by scenario."""
    return _costs(figures, "scenario", ("SingleStream", "Server"), lambda cell: cell.scenario)


def by_callers(figures: Figures) -> Table:
    """Lay out the processor time of an image by callers."""
    return _costs(figures, "callers", ("ClosedLoop",), lambda cell: cell.callers)


def by_batch(figures: Figures) -> Table:
    """Lay out the processor time of an image by the size of calls."""
    return _costs(figures, "images a call", ("Offline",), lambda cell: cell.batch)


def _costs(
    figures: Figures, what: str, scenarios: Sequence[str], column: Callable[[Cell], Any]
) -> Table:
    costs = {
        (cell.spec, column(cell)): cost
        for cell in figures.samples
        if cell.scenario in scenarios and (cost := figures.cost_us(cell))
    }
    columns = sorted({column for _, column in costs})
    rows = [["target", *map(str, columns)]]
    rows += [
        [str(spec), *(short(costs.get((spec, each))) for each in columns)]
        for spec in dict.fromkeys(spec for spec, _ in costs)
    ]
    return Table(f"Processor time an image, by {what}", "Microseconds of the target's.", rows)


def starts(figures: Figures) -> Table:
    """Lay out startup time and memory."""
    rows = [["target", "start to first answer", "memory"]]
    rows += [
        [str(start.spec), seconds(start.startup_s), f"{(start.memory_bytes or 0) / 2**20:.0f} MiB"]
        for start in figures.results.starts
    ]
    return Table("Start and memory", "Memory (PSS) after the last round.", rows)


def installations(figures: Figures) -> Table:
    """Lay out the sizes of installations."""
    sizes = figures.results.install.items()
    rows = [["extra", "size"], *([name, f"{size / 1e6:,.0f} MB"] for name, size in sizes)]
    return Table("Installation", "Unpacked, all dependencies.", rows)


def trainings(figures: Figures) -> Table:
    """Lay out time and accuracy by recipe and device."""
    runs: dict[str, list[tuple[float, float]]] = {}
    for run in figures.results.training:
        name = f"{run['recipe']}, {run['device']}"
        runs.setdefault(name, []).append((run["seconds"], run["accuracy"]))
    rows = [["recipe", "runs", "time", "test accuracy"]]
    for name, pairs in runs.items():
        time_s, accuracy = (median(values) for values in zip(*pairs, strict=True))
        rows.append([name, str(len(pairs)), f"{time_s:.0f} s", f"{accuracy:.2%}"])
    return Table("Training", "Medians of the runs.", rows)


def skips(figures: Figures) -> Table:
    """Lay out what could not be measured, and why."""
    rows = [[str(skip.spec), skip.reason] for skip in figures.results.skips]
    return Table("Not measured", "Nothing is extrapolated.", [["target", "why"], *rows])


def invalid(figures: Figures) -> Table:
    """Lay out which runs were left out, and why."""
    rows = [["cell", "runs", "why, the first time"], *_invalid(figures)]
    return Table("Left out", "Runs that do not measure the target.", rows)


def _invalid(figures: Figures) -> Iterator[list[str]]:
    for cell, samples in figures.samples.items():
        reasons = [sample.invalid for sample in samples if sample.invalid]
        if reasons:
            yield [str(cell), f"{len(reasons)} of {len(samples)}", reasons[0]]
