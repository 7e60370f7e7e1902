"""Checkpoints: all that a training needs to resume as if it had never stopped, in one file."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from training.errors import ResumeError
from training.files import write_atomically

Weights = list[npt.NDArray[np.float32]]


@dataclass(slots=True)
class Progress:
    """The state of a training, beside its variables."""

    rows: list[dict[str, float]] = field(default_factory=list)
    """The figures after each epoch: loss, accuracy and so on."""
    best: Weights = field(default_factory=list)
    """The weights after the epoch that classified the validation images best."""
    seconds: float = 0.0
    """Time spent training."""
    cpu_seconds: float = 0.0
    """CPU time of this process's threads meanwhile, added up."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file that holds the state of one training."""

    path: Path
    """The file."""
    identity: Mapping[str, Any]
    """What must be equal to resume: the recipe's values and the seed, as JSON can hold them."""

    def save(self, progress: Progress, variables: Sequence[keras.Variable]) -> None:
        """Replace the file; the old content stays until the new one is complete.

        Args:
            progress: the state of the training.
            variables: weights, the optimiser's moments, random states.

        Raises:
            OSError: it could not be written; the old content is untouched.
        """
        facts = {
            "identity": self.identity,
            "rows": progress.rows,
            "seconds": progress.seconds,
            "cpu_seconds": progress.cpu_seconds,
        }
        arrays: dict[str, Any] = {"facts": json.dumps(facts)}
        arrays |= {f"variable_{i}": variable.numpy() for i, variable in enumerate(variables)}
        arrays |= {f"best_{i}": weights for i, weights in enumerate(progress.best)}
        content = io.BytesIO()
        np.savez(content, **arrays)
        write_atomically(self.path, content.getvalue())

    def restore(self, variables: Sequence[keras.Variable]) -> Progress:
        """Read the file back into the variables, which are in the order they were saved in.

        Raises:
            ResumeError: it is missing, unreadable, or of another training.
        """
        try:
            with np.load(self.path) as saved:
                arrays = dict(saved)
        except FileNotFoundError:
            raise ResumeError(f"nothing to resume: {self.path} is missing") from None
        except (OSError, EOFError, ValueError, zipfile.BadZipFile) as err:
            raise ResumeError(f"cannot read {self.path}: train without --resume") from err
        facts = json.loads(str(arrays.pop("facts")))
        self._require_same(facts["identity"])
        for i, variable in enumerate(variables):
            variable.assign(arrays.pop(f"variable_{i}"))
        best = [arrays[f"best_{i}"] for i in range(len(arrays))]
        return Progress(facts["rows"], best, facts["seconds"], facts["cpu_seconds"])

    def _require_same(self, saved: Mapping[str, Any]) -> None:
        """Raise if the saved training differs from this one, naming the first difference."""
        for name, value in json.loads(json.dumps(self.identity)).items():
            if saved.get(name) != value:
                raise ResumeError(
                    f"{self.path} is of another training: {name} {saved.get(name)}, not {value}; "
                    "resume with its settings, or train without --resume"
                )
