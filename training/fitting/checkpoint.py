"""Checkpoints: all that a training needs to go on as if it had never stopped, in one file."""

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

from training.files import write_atomically

Weights = list[npt.NDArray[np.float32]]


class ResumeError(Exception):
    """There is nothing to resume, or it is another training; the text is one line."""


@dataclass(slots=True)
class Progress:
    """How far a training has come."""

    rows: list[dict[str, float]] = field(default_factory=list)
    """What was known after each epoch: loss, accuracy and so on."""
    best: Weights = field(default_factory=list)
    """The weights after the epoch that classified the validation images best."""
    seconds: float = 0.0
    """Time spent training."""
    cpu_seconds: float = 0.0
    """Time that this process's threads spent on processors meanwhile, added up."""


def save(
    path: Path,
    progress: Progress,
    variables: Sequence[keras.Variable],
    identity: Mapping[str, Any],
) -> None:
    """Write a checkpoint; the one before it is there until this one is complete.

    Args:
        path: the file.
        progress: how far the training has come.
        variables: what it changes: weights, the optimiser's moments, random states.
        identity: what must be equal to resume: the recipe's values and the seed. JSON-able.

    Raises:
        OSError: it could not be written; the one before it is untouched.
    """
    facts = {
        "identity": identity,
        "rows": progress.rows,
        "seconds": progress.seconds,
        "cpu_seconds": progress.cpu_seconds,
    }
    arrays: dict[str, Any] = {"facts": json.dumps(facts)}
    arrays |= {f"variable_{i}": variable.numpy() for i, variable in enumerate(variables)}
    arrays |= {f"best_{i}": weights for i, weights in enumerate(progress.best)}
    content = io.BytesIO()
    np.savez(content, **arrays)
    write_atomically(path, content.getvalue())


def restore(
    path: Path, variables: Sequence[keras.Variable], identity: Mapping[str, Any]
) -> Progress:
    """Read a checkpoint back into the variables.

    Args:
        path: the file.
        variables: set to what they were, in the order they were saved in.
        identity: that of the training about to go on.

    Raises:
        ResumeError: there is no checkpoint, or it is of another training.
    """
    try:
        with np.load(path) as saved:
            arrays = dict(saved)
    except FileNotFoundError:
        raise ResumeError(f"nothing to resume: {path} is not there") from None
    except (OSError, EOFError, ValueError, zipfile.BadZipFile) as err:
        raise ResumeError(f"cannot read {path}: train without --resume") from err
    facts = json.loads(str(arrays.pop("facts")))
    _refuse_other(path, facts["identity"], json.loads(json.dumps(identity)))
    for i, variable in enumerate(variables):
        variable.assign(arrays.pop(f"variable_{i}"))
    best = [arrays[f"best_{i}"] for i in range(len(arrays))]
    return Progress(facts["rows"], best, facts["seconds"], facts["cpu_seconds"])


def _refuse_other(path: Path, saved: Mapping[str, Any], identity: Mapping[str, Any]) -> None:
    """Raise if the saved training differs from this one, naming the first difference."""
    for name, value in identity.items():
        if saved.get(name) != value:
            raise ResumeError(
                f"{path} is of another training: {name} {saved.get(name)}, not {value}; "
                "resume with its settings, or train without --resume"
            )
