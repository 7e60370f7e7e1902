"""The results of the study: a file that gets each row as soon as it is complete."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from training.config import RECIPES
from training.files import write_atomically

RESULTS = Path(__file__).with_name("results.json")

TEACHER = "teacher"
"""The recipe that a teacher's run names."""

Run = dict[str, Any]
"""metrics.json of a final model, with what `Measures.of` adds; runs of older versions lack some."""


@dataclass(slots=True)
class Results:
    """The figures of the study so far."""

    runs: list[Run] = field(default_factory=list)
    """Final models, in the order in which they were trained."""
    teachers: list[Run] = field(default_factory=list)
    """The teachers of `best`, under the recipe `teacher`: plain convolutional networks."""

    @classmethod
    def load(cls, path: Path) -> "Results":
        """Read the file; without one, the results are empty."""
        return cls(**json.loads(path.read_text("utf-8"))) if path.exists() else cls()

    def save(self, path: Path) -> None:
        """Write the file, one line for each run or row."""
        blocks = [
            f'"{name}": [\n' + ",".join(f"\n{json.dumps(row)}" for row in rows) + "\n]"
            for name, rows in asdict(self).items()
        ]
        write_atomically(path, ("{\n" + ",\n".join(blocks) + "\n}\n").encode())

    def of(self, recipe: str) -> list[Run]:
        """Return the runs of a recipe, or those of `teacher`."""
        return [run for run in (*self.runs, *self.teachers) if run["recipe"] == recipe]

    @property
    def recipes(self) -> list[str]:
        """The names of the recipes with runs in the order of RECIPES, then `teacher`."""
        return [name for name in (*RECIPES, TEACHER) if self.of(name)]


def chosen_run(runs: Sequence[Run]) -> Run:
    """Return the run that stands for its recipe; test images don't count.

    It is the run with the highest validation accuracy. Where one has learned from all training
    images, or is a teacher, there is none to choose by: then it is the run of the lowest seed.
    """
    if not all(_is_validated(run) for run in runs):
        return min(runs, key=lambda run: int(run["seed"]))
    return min(runs, key=lambda run: (-run["accuracy"]["validation"], run["loss"]["validation"]))


def _is_validated(run: Run) -> bool:
    """Whether a run was measured on images that it was not trained on, beside the test images."""
    num_held_out = run.get("examples", {}).get("validation")  # old runs held out some, all of them
    return num_held_out != 0 and "validation" in run["accuracy"]
