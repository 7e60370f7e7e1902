"""The tables that compare the recipes by the results of the study."""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction
from math import comb, sqrt

import numpy as np

from reports.page import Table
from training.study.corruptions import MNIST_C
from training.study.results import Results, Run


def tables(results: Results) -> dict[str, Table]:
    """Return all tables by heading; none without runs."""
    if not results.runs:
        return {}
    return {
        "All recipes": recipe_table(results),
        "Corrupted test images": corruption_table(results),
        "Is the difference chance?": significance_table(results),
        "What each trick gives": ablation_table(results),
    }


def recipe_table(results: Results) -> Table:
    """Compare the recipes: mean and standard deviation over seeds."""

    def row(recipe: str) -> Sequence[str]:
        runs = results.of(recipe)
        return (
            recipe,
            str(len(runs)),
            _percent([run["accuracy"]["test"] for run in runs], 3),
            f"{np.mean([run['errors']['test'] for run in runs]):.1f}",
            _percent([run["calibration"]["ece"]["after"] for run in runs], 2),
            _percent([run["calibration"]["coverage"]["accuracy"] for run in runs], 2),
            f"{np.mean([run['cpu_seconds'] for run in runs]) / 2:,.0f}",
        )

    return [
        ("recipe", "seeds", "test accuracy", "errors", "ECE, calibrated", "right, 99 % covered",
         "CPU seconds / 2"),
        *map(row, results.recipes),
    ]  # fmt: skip


def corruption_table(results: Results) -> Table:
    """Compare the recipes on corrupted test images: mean accuracy over seeds."""
    kinds = list(dict.fromkeys(kind for run in results.runs for kind in run["corrupted"]))
    measured = [[run["corrupted"] for run in results.of(recipe)] for recipe in results.recipes]
    rows = [
        (kind, *(_mean_percent([run.get(kind) for run in runs]) for runs in measured))
        for kind in kinds
    ]
    if set(MNIST_C) <= set(kinds):
        means = ([_mean_of(run, MNIST_C) for run in runs] for runs in measured)
        rows.append((f"mean of the {len(MNIST_C)}", *map(_mean_percent, means)))
    return [("corruption", *results.recipes), *rows]


def significance_table(results: Results) -> Table:
    """Compare every two recipes by the model of each that validation chooses."""
    rows: list[Sequence[str]] = [
        ("better", "worse", "only it right", "only the other", "McNemar p")
    ]
    chosen = [chosen_run(results.of(recipe)) for recipe in results.recipes]
    for number, one in enumerate(chosen):
        for other in chosen[:number]:
            better, worse = sorted((one, other), key=lambda run: len(run["wrong"]))
            gained = len(set(worse["wrong"]) - set(better["wrong"]))
            lost = len(set(better["wrong"]) - set(worse["wrong"]))
            p = f"{mcnemar(gained, lost):.1g}"
            rows.append((better["recipe"], worse["recipe"], str(gained), str(lost), p))
    return rows


def ablation_table(results: Results) -> Table:
    """Show what each trick gives; each row has the tricks of the rows above it, too."""

    def row(trick: str) -> Sequence[str]:
        found = [row for row in results.ablation if row["trick"] == trick]
        errors, loss, accuracy = (
            np.mean([row[name] for row in found]) for name in ("errors", "loss", "accuracy")
        )
        return (trick, str(len(found)), f"{errors:.1f}", f"{loss:.4f}", f"{accuracy:.2%}")

    tricks = dict.fromkeys(row["trick"] for row in results.ablation)
    heading = ("trick", "seeds", "validation errors", "loss, calibrated", "accuracy")
    return [heading, *map(row, tricks)]


def chosen_run(runs: Sequence[Run]) -> Run:
    """Return the run with the highest validation accuracy; test images don't count."""
    return min(runs, key=lambda run: (-run["accuracy"]["validation"], run["loss"]["validation"]))


def mcnemar(gained: int, lost: int) -> float:
    """Compute the exact two-sided p of McNemar's test.

    Args:
        gained: the number of images that only one classifier gets right.
        lost: the number of those that only the other gets right.

    Returns:
        The probability of a difference at least as large between two equally good classifiers.
    """
    num = gained + lost
    tail: int = sum(comb(num, k) for k in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**num)))


def _mean_of(figures: Mapping[str, float], names: Collection[str]) -> float | None:
    """Average the named figures; None where one is missing."""
    found = [figures[name] for name in names if name in figures]
    return float(np.mean(found)) if len(found) == len(names) else None


def _mean_percent(shares: Sequence[float | None]) -> str:
    """Format the mean; a dash where a run has no such figure."""
    known = [share for share in shares if share is not None]
    return f"{np.mean(known):.2%}" if len(known) == len(shares) else "-"


def _percent(shares: Sequence[float], digits: int) -> str:
    """Format mean ± standard deviation."""
    mean = np.mean(shares)
    if len(shares) < 2:
        return f"{mean:.{digits}%}"
    sd = sqrt(np.var(shares, ddof=1))
    return f"{100 * mean:.{digits}f} ± {100 * sd:.{digits}f} %"
