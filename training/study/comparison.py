"""The results of the study, and the tables that compare the recipes by them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from math import comb, sqrt
from pathlib import Path
from typing import Any

import numpy as np

from reports.page import Table
from training.config import RECIPES
from training.files import write_atomically

RESULTS = Path(__file__).with_name("results.json")

Run = dict[str, Any]
"""metrics.json of a final model, with `wrong`, the numbers of the test images that it misreads, and
`corrupted`, its accuracy on corrupted test images by kind of corruption."""


@dataclass(slots=True)
class Results:
    """The figures of the study so far."""

    runs: list[Run] = field(default_factory=list)
    """Final models, in the order in which they were trained."""
    ablation: list[dict[str, Any]] = field(default_factory=list)
    """trick, seed, and accuracy, calibrated loss and errors on the validation images."""

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read the file; without one, the results are empty."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write the file, one line for each run or row."""
        blocks = [
            f'"{name}": [\n' + ",".join(f"\n{json.dumps(row)}" for row in rows) + "\n]"
            for name, rows in (("runs", self.runs), ("ablation", self.ablation))
        ]
        write_atomically(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())

    def of(self, recipe: str) -> list[Run]:
        """Return a recipe's runs."""
        return [run for run in self.runs if run["recipe"] == recipe]

    @property
    def recipes(self) -> list[str]:
        """The names of the recipes with runs, in the order of RECIPES."""
        return [name for name in RECIPES if self.of(name)]


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
    kinds = list(results.runs[0]["corrupted"])
    rows: list[Sequence[str]] = [("recipe", *kinds)]
    for recipe in results.recipes:
        runs = results.of(recipe)
        means = (np.mean([run["corrupted"][kind] for run in runs]) for kind in kinds)
        rows.append((recipe, *(f"{mean:.2%}" for mean in means)))
    return rows


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


def _percent(shares: Sequence[float], digits: int) -> str:
    """Format mean ± standard deviation."""
    mean = np.mean(shares)
    if len(shares) < 2:
        return f"{mean:.{digits}%}"
    sd = sqrt(np.var(shares, ddof=1))
    return f"{100 * mean:.{digits}f} ± {100 * sd:.{digits}f} %"
