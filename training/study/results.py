"""The results of the study: a file that gets each row as soon as it is complete."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

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
