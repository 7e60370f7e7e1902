"""The teachers: small convolutional networks, trained once and cached for every student.

A teacher is nothing but its last checkpoint. Training one that is complete does nothing; an
interrupted one goes on; one that is damaged, or of other settings or images, starts anew.
"""

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from training.config import Distillation, Recipe
from training.data import augmentation
from training.data.mnist import Examples
from training.fitting import checkpoint
from training.fitting.checkpoint import Progress, ResumeError
from training.fitting.loop import Fit, Row, describe
from training.fitting.trainer import Trainer

Say = Callable[[str], None]
"""Shows a line about how the work goes."""


def train(
    distillation: Distillation, training: Examples, validation: Examples, folder: Path, say: Say
) -> Iterator[keras.Model]:
    """Train the teachers that the cache lacks.

    Args:
        distillation: how many there are, of seeds 0, 1 and so on, and their recipe.
        training: (N, 784) images and (N,) labels.
        validation: what to watch them with; it decides nothing.
        folder: the cache.
        say: told about every epoch.

    Yields:
        One after the other: (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    recipe, num = distillation.teacher, distillation.teachers
    for seed in range(num):
        saved = folder / f"teacher-{seed}.npz"
        fit = _begin(recipe, saved, {"seed": seed, **identity(recipe, training)}, say)

        def show(epoch: int, row: Row, name: str = f"teacher {seed + 1}/{num}") -> None:
            say(f"{name}  {describe(epoch, recipe.epochs, row)}")

        epochs = augmentation.epochs(training, recipe, seed, start=len(fit.progress.rows))
        fit.run(epochs, validation, show)
        yield fit.trainer.average


def identity(recipe: Recipe, training: Examples) -> dict[str, Any]:
    """Tell what makes teachers what they are: their settings and the images they learn from."""
    images = hashlib.sha256(training.images.tobytes() + training.labels.tobytes())
    return {"images": images.hexdigest(), "num_images": len(training.labels), **asdict(recipe)}


def _begin(recipe: Recipe, saved: Path, identity: dict[str, Any], say: Say) -> Fit:
    """Go on from a teacher's checkpoint, or start anew."""
    trainer = Trainer(recipe, identity["num_images"], identity["seed"])
    try:
        progress = checkpoint.restore(saved, trainer.variables, identity)
    except ResumeError as err:
        if saved.exists():
            say(f"this teacher is trained anew: {err}\n")
        progress = Progress()
    return Fit(trainer, progress, saved, identity)
