"""The committed results: every final model's figures, and what follows from them."""

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
"""metrics.json of a final model, and `wrong`, the numbers of the test images that it misreads, and
`corrupted`, its accuracy on corrupted test images by kind of corruption."""


@dataclass(slots=True)
class Results:
    """What the study has found so far."""

    runs: list[Run] = field(default_factory=list)
    """Final models, in the order in which they were trained."""
    ablation: list[dict[str, Any]] = field(default_factory=list)
    """trick, seed, and accuracy, calibrated loss and errors on the validation images."""

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read the file; if there is none, nothing has been found yet."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write the file, a run or row a line."""
        blocks = [
            f'"{name}": [\n{",".join(_line(row) for row in rows)}\n]'
            for name, rows in (("runs", self.runs), ("ablation", self.ablation))
        ]
        write_atomically(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())

    def of(self, recipe: str) -> list[Run]:
        """List a recipe's runs."""
        return [run for run in self.runs if run["recipe"] == recipe]

    @property
    def recipes(self) -> list[str]:
        """Name the recipes that were tried, in their usual order."""
        return [name for name in RECIPES if self.of(name)]


def tables(results: Results) -> dict[str, Table]:
    """Lay out everything that is known, by heading; nothing if nothing is."""
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
    rows: list[Sequence[str]] = [
        ("recipe", "seeds", "test accuracy", "errors", "ECE, calibrated", "right, 99 % covered",
         "CPU seconds / 2"),
    ]  # fmt: skip
    for recipe in results.recipes:
        runs = results.of(recipe)
        rows.append(
            (
                recipe,
                str(len(runs)),
                _percent([run["accuracy"]["test"] for run in runs], 3),
                f"{np.mean([run['errors']['test'] for run in runs]):.1f}",
                _percent([run["calibration"]["ece"]["after"] for run in runs], 2),
                _percent([run["calibration"]["coverage"]["accuracy"] for run in runs], 2),
                f"{np.mean([run['cpu_seconds'] for run in runs]) / 2:,.0f}",
            )
        )
    return rows


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
    """Compare any two recipes by the model of each that validation chooses."""
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
    """Tell what each trick gives, each row on top of those above it."""
    rows: list[Sequence[str]] = [
        ("trick", "seeds", "validation errors", "loss, calibrated", "accuracy")
    ]
    for trick in dict.fromkeys(row["trick"] for row in results.ablation):
        found = [row for row in results.ablation if row["trick"] == trick]
        rows.append(
            (
                trick,
                str(len(found)),
                f"{np.mean([row['errors'] for row in found]):.1f}",
                f"{np.mean([row['loss'] for row in found]):.4f}",
                f"{np.mean([row['accuracy'] for row in found]):.2%}",
            )
        )
    return rows


def chosen_run(runs: Sequence[Run]) -> Run:
    """Choose the run that reads the validation images best; the test images have no say."""
    return min(runs, key=lambda run: (-run["accuracy"]["validation"], run["loss"]["validation"]))


def mcnemar(gained: int, lost: int) -> float:
    """Compute the exact two-sided p of McNemar's test.

    Args:
        gained: images that only the one classifier reads rightly.
        lost: images that only the other does.

    Returns:
        How probable a difference at least as large is between two that are equally good.
    """
    num = gained + lost
    tail: int = sum(comb(num, k) for k in range(min(gained, lost) + 1))
    return float(min(Fraction(1), Fraction(2 * tail, 2**num)))


def markdown(table: Table) -> str:
    """Write a table in Markdown, with a line break at its end."""
    heading, *rows = table
    return "".join(f"| {' | '.join(row)} |\n" for row in (heading, ["---"] * len(heading), *rows))


def _percent(shares: Sequence[float], digits: int) -> str:
    """Write mean ± standard deviation."""
    mean = np.mean(shares)
    if len(shares) < 2:
        return f"{mean:.{digits}%}"
    sd = sqrt(np.var(shares, ddof=1))
    return f"{100 * mean:.{digits}f} ± {100 * sd:.{digits}f} %"


def _line(row: dict[str, Any]) -> str:
    return f"\n{json.dumps(row)}"
