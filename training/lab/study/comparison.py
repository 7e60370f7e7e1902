"""The tables that compare the recipes by the results of the study."""

from collections.abc import Callable, Collection, Sequence
from math import sqrt
from typing import Any

import numpy as np

from training.lab.study.corruptions import MNIST_C
from training.lab.study.intervals import difference_interval, mcnemar, mean_interval
from training.lab.study.results import Results, Run, chosen_run
from training.report.page import Table

MISSING = "-"
"""Stands for what an old run, or a teacher, lacks."""


def markdown(table: Table) -> str:
    """Write a table as Markdown."""
    heading, *rows = table
    lines = (heading, ["---"] * len(heading), *rows)
    return "".join(f"| {' | '.join(row)} |\n" for row in lines)


def tables(results: Results) -> dict[str, Table]:
    """Return the tables by heading, without those that have no figures."""
    found = {
        "All recipes": recipe_table(results),
        "Corrupted test images": corruption_table(results),
        "No digit, yet answered with 90 %": outlier_table(results),
        "Is the difference chance?": significance_table(results),
    }
    return {title: table for title, table in found.items() if len(table) > 1}


def recipe_table(results: Results) -> Table:
    """Compare the recipes: mean and standard deviation over seeds."""
    columns: dict[str, Callable[[list[Run]], str]] = {
        "recipe": lambda runs: str(runs[0]["recipe"]),
        "seeds": lambda runs: str(len(runs)),
        "trained on": lambda runs: _mean(runs, "{:,.0f}", "examples", "training"),
        "test accuracy": lambda runs: _spread(runs, 3, "accuracy", "test"),
        "errors (95 %)": _errors,
        "ECE, calibrated": lambda runs: _spread(runs, 2, "calibration", "ece", "after"),
        "right, 99 % covered": lambda runs: _spread(runs, 2, "calibration", "coverage", "accuracy"),
        "right, 98 % covered": lambda runs: _spread(runs, 2, "covered", "0.98"),
        f"corrupted, mean of {len(MNIST_C)}": lambda runs: _mean_of_15(runs),
        "CPU seconds / 2": lambda runs: _mean(runs, "{:,.0f}", "cpu_seconds", factor=0.5),
    }
    return _without_empty_columns(
        [
            tuple(columns),
            *(
                tuple(cell(results.of(name)) for cell in columns.values())
                for name in results.recipes
            ),
        ]
    )


def corruption_table(results: Results) -> Table:
    """Compare the recipes on corrupted test images: mean accuracy over seeds."""
    table = _table_by_kind(results, "corrupted")
    kinds = [row[0] for row in table]
    if not set(MNIST_C) <= set(kinds):
        return table
    means = (_mean_of_15(results.of(name)) for name in results.recipes)
    return [*table, (f"mean of the {len(MNIST_C)}", *means)]


def outlier_table(results: Results) -> Table:
    """Compare how often each recipe is sure of what is no digit: mean share over seeds."""
    return _table_by_kind(results, "outliers")


def significance_table(results: Results) -> Table:
    """Compare every two recipes by the model that stands for each."""
    rows: list[Sequence[str]] = [
        ("better", "worse", "only it right", "only the other", "fewer errors (95 %)", "McNemar p")
    ]
    chosen = [chosen_run(results.of(recipe)) for recipe in results.recipes]
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            better, worse = sorted((one, other), key=lambda run: len(run["wrong"]))
            gained = len(set(worse["wrong"]) - set(better["wrong"]))
            lost = len(set(better["wrong"]) - set(worse["wrong"]))
            low, high = difference_interval(gained, lost)
            fewer = f"{gained - lost} ({low:.0f} to {high:.0f})"
            p = f"{mcnemar(gained, lost):.2g}"
            rows.append((better["recipe"], worse["recipe"], str(gained), str(lost), fewer, p))
    return rows


def _table_by_kind(results: Results, name: str) -> Table:
    """Show shares by kind, a row each, and by recipe, a column each: means over seeds."""
    kinds = dict.fromkeys(kind for run in results.runs for kind in run.get(name, {}))
    rows = [
        (kind, *(_mean(results.of(recipe), "{:.2%}", name, kind) for recipe in results.recipes))
        for kind in kinds
    ]
    return [(KIND_HEADINGS[name], *results.recipes), *rows]


KIND_HEADINGS = {"corrupted": "corruption", "outliers": "images"}


def _figures(runs: Collection[Any], *path: str) -> list[float]:
    """Return a figure of each run, by the names that lead to it; none unless all runs have it."""
    found = []
    for run in runs:
        figure: Any = run
        for name in path:
            figure = figure.get(name) if isinstance(figure, dict) else None
        found.append(figure)
    return [] if None in found else found


def _mean(runs: Collection[Any], form: str, *path: str, factor: float = 1) -> str:
    """Format the mean of a figure over runs."""
    figures = _figures(runs, *path)
    return form.format(factor * np.mean(figures)) if figures else MISSING


def _mean_of_15(runs: list[Run]) -> str:
    """Format the mean accuracy over runs and the corruptions of MNIST-C."""
    figures = [_figures(runs, "corrupted", kind) for kind in MNIST_C]
    return f"{np.mean(figures):.2%}" if all(figures) else MISSING


def _errors(runs: list[Run]) -> str:
    """Format the mean error count, and the 95 % interval of the mean."""
    counts = _figures(runs, "errors", "test")
    if not counts:
        return MISSING
    mean, interval = f"{np.mean(counts):.1f}", mean_interval(counts)
    return f"{mean} ({interval[0]:.1f} to {interval[1]:.1f})" if interval else mean


def _spread(runs: list[Run], digits: int, *path: str) -> str:
    """Format mean ± standard deviation of a share."""
    shares = _figures(runs, *path)
    if len(shares) < 2:
        return f"{shares[0]:.{digits}%}" if shares else MISSING
    sd = sqrt(np.var(shares, ddof=1))
    return f"{100 * np.mean(shares):.{digits}f} ± {100 * sd:.{digits}f} %"


def _without_empty_columns(table: Table) -> Table:
    """Leave out the columns in which no row has a figure."""
    heading, *rows = table
    kept = [any(row[i] != MISSING for row in rows) for i in range(len(heading))]
    return [tuple(cell for cell, keep in zip(row, kept, strict=True) if keep) for row in table]
