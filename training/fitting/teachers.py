"""The teachers: small convolutional networks, trained once and cached for every student.

A teacher is stored as its last checkpoint. A complete one is only read, an interrupted one is
resumed; one that is damaged, or of other settings or images, is trained again.
"""

import hashlib
from dataclasses import asdict
from pathlib import Path
from typing import Any

import keras

from training.config import Distillation, Recipe
from training.data import augmentation
from training.data.mnist import Examples
from training.errors import ResumeError
from training.fitting import loop
from training.fitting.artifacts import Checkpoint, Progress
from training.fitting.loop import Log, add_prefix
from training.fitting.trainer import Trainer


def train(
    distillation: Distillation, training: Examples, validation: Examples, folder: Path, log: Log
) -> list[keras.Model]:
    """Train the teachers that the cache lacks, and return all of them.

    Returns:
        Networks from (N, 784) float32 in [0, 1] to (N, 10) float32 probabilities.
    """
    recipe, num = distillation.teacher, distillation.teachers
    models = []
    for seed in range(num):
        trainer = Trainer(recipe, len(training.labels), seed)
        path = folder / f"teacher-{seed}.npz"
        checkpoint = Checkpoint(path, {"seed": seed, **identity(recipe, training)})
        try:
            progress = Progress.restore(checkpoint, trainer.variables)
        except ResumeError as err:
            if path.exists():
                log(f"training this teacher again: {err}\n")
            progress = Progress()
        epochs = augmentation.epochs(training, recipe, seed, start=len(progress.rows))
        log_epoch = add_prefix(f"teacher {seed + 1}/{num}", log)
        loop.run(trainer, epochs, validation, progress, checkpoint, log_epoch)
        models.append(trainer.ema)
    return models


def identity(recipe: Recipe, training: Examples) -> dict[str, Any]:
    """Return all that determines the teachers but their seeds: settings and training images."""
    images = hashlib.sha256(training.images.tobytes() + training.labels.tobytes())
    return {"images": images.hexdigest(), "num_images": len(training.labels), **asdict(recipe)}
