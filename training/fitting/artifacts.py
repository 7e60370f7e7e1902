"""The artifacts folder: training's output, read by export and report.

model.keras     the network: (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities
history.json    loss, accuracy and so on, each with a value per epoch
metrics.json    how it was trained, with every setting, and how good it is
"""

import io
import json
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt

from serving.commandline import installation
from serving.publishing.files import write_atomically
from training.config import Recipe
from training.errors import NotTrained, ResumeError

Weights = list[npt.NDArray[np.float32]]


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A file of arrays that belong to one training."""

    path: Path
    """The file."""
    identity: Mapping[str, Any]
    """The settings that must match: the recipe's values and so on, as JSON can hold them."""

    def save(self, arrays: Mapping[str, Any]) -> None:
        """Replace the file; the old content stays until the new one is complete.

        Raises:
            OSError: it could not be written; the old content is untouched.
        """
        content = io.BytesIO()
        np.savez(content, **{**arrays, "identity": json.dumps(self.identity)})
        write_atomically(self.path, content.getvalue())

    def load(self) -> dict[str, Any]:
        """Read the arrays.

        Raises:
            ResumeError: the file is missing, unreadable, or of another training; the text names
                the first difference.
        """
        try:
            with np.load(io.BytesIO(self.path.read_bytes())) as file:  # np.load leaves files open
                arrays = dict(file)
            saved = json.loads(str(arrays.pop("identity")))
        except FileNotFoundError:
            raise ResumeError(f"{self.path} is missing") from None
        except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile) as err:
            raise ResumeError(f"cannot read {self.path}") from err
        for name, value in json.loads(json.dumps(self.identity)).items():
            if saved.get(name) != value:
                raise ResumeError(
                    f"{self.path} is of another training: {name} {saved.get(name)}, not {value}"
                )
        return arrays


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

    def save(self, checkpoint: Checkpoint, variables: Sequence[keras.Variable]) -> None:
        """Write a checkpoint of the state and the variables: weights, moments, random states."""
        facts = {"rows": self.rows, "seconds": self.seconds, "cpu_seconds": self.cpu_seconds}
        arrays = {f"variable_{i}": variable.numpy() for i, variable in enumerate(variables)}
        best = {f"best_{i}": weights for i, weights in enumerate(self.best)}
        checkpoint.save({"facts": json.dumps(facts), **arrays, **best})

    @classmethod
    def restore(cls, checkpoint: Checkpoint, variables: Sequence[keras.Variable]) -> "Progress":
        """Read a checkpoint back into the variables, which are in the order they were saved in.

        Raises:
            ResumeError: see Checkpoint.load.
        """
        arrays = checkpoint.load()
        facts = json.loads(str(arrays.pop("facts")))
        for i, variable in enumerate(variables):
            variable.assign(arrays.pop(f"variable_{i}"))
        return cls(best=[arrays[f"best_{i}"] for i in range(len(arrays))], **facts)


def load_model(artifacts: Path) -> keras.Model:
    """Read model.keras.

    Raises:
        NotTrained: it is missing or unreadable.
    """
    path = artifacts / "model.keras"
    if not path.exists():
        raise NotTrained(
            f"nothing is trained in {artifacts}: run {installation.run('train')} first"
        )
    try:
        return keras.models.load_model(path, compile=False)
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as err:
        raise NotTrained(f"cannot read {path}: run {installation.run('train')} again") from err


def load_json(artifacts: Path, name: str) -> dict[str, Any]:
    """Read metrics.json or history.json.

    Raises:
        NotTrained: it is missing or unreadable.
    """
    path = artifacts / name
    try:
        contents: dict[str, Any] = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as err:
        raise NotTrained(f"cannot read {path}: run {installation.run('train')} again") from err
    return contents


def recipe_of(metrics: Mapping[str, Any]) -> Recipe:
    """Return the recipe that the content of a metrics.json was trained by, with its changes.

    Raises:
        NotTrained: it lacks them: it is of an older version.
    """
    try:
        return Recipe.of_json(metrics["settings"])
    except (KeyError, ValueError) as err:
        again = f"run {installation.run('train')} again"
        raise NotTrained(f"metrics.json lacks the settings of its training: {again}") from err


def save(
    artifacts: Path, model: keras.Model, rows: list[dict[str, float]], metrics: dict[str, Any]
) -> None:
    """Write the three files, each whole or not at all.

    Raises:
        OSError: a file could not be written.
    """
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        write_atomically(artifacts / "model.keras", Path(folder, "model.keras").read_bytes())
    history = {name: [row[name] for row in rows] for name in rows[0]}
    write_atomically(artifacts / "history.json", json.dumps(history, indent=2).encode())
    write_atomically(artifacts / "metrics.json", json.dumps(metrics, indent=2).encode())
