"""Training: fit the network by a recipe, and write what came out of it."""

import json
import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from training import augment, checkpoint, report
from training.checkpoint import Progress
from training.config import Recipe
from training.data import Examples, Mnist
from training.files import write_atomically
from training.trainer import Trainer, device, evaluate

Row = dict[str, float]
"""What is known after an epoch: loss, accuracy, val_loss, val_accuracy, learning_rate."""


def train(
    recipe: Recipe,
    data: Mnist,
    artifacts: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    resume: bool = False,
    on_epoch: Callable[[int, Row], None] = lambda number, row: None,
) -> dict[str, Any]:
    """Train the network and write model.keras, history.json, metrics.json and the report.

    A training that runs to its end keeps its last weights. One that is interrupted (Ctrl-C)
    keeps those of its best epoch, and can still be resumed: every epoch leaves a checkpoint.

    Args:
        recipe: how to train.
        data: what to train on.
        artifacts: the folder to write to; a model already there stays until the new one is whole.
        seed: decides the first weights, the order of the images, deformation and dropout.
        epochs: how many epochs instead of the recipe's; the schedule is fitted to them.
        resume: go on from the checkpoint in artifacts.
        on_epoch: told each epoch's number, from 1, and its row of the history.

    Returns:
        What metrics.json holds.

    Raises:
        ResumeError: there is nothing to resume, or it is another training.
        KeyboardInterrupt: interrupted before its first epoch was complete: nothing was kept.
        OSError: the artifacts could not be written.
    """
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    training, validation = data.split(recipe.validation_split)
    trainer = Trainer(recipe, len(training.labels), seed)
    saved, identity = artifacts / "checkpoint.npz", {"seed": seed, **asdict(recipe)}
    progress = checkpoint.restore(saved, trainer.variables, identity) if resume else Progress()
    start = time.monotonic() - progress.seconds
    try:
        for batches in augment.epochs(training, recipe, seed, start=len(progress.rows)):
            _advance(progress, trainer, batches, validation)
            progress.seconds = time.monotonic() - start
            checkpoint.save(saved, progress, trainer.variables, identity)
            on_epoch(len(progress.rows), progress.rows[-1])
    except KeyboardInterrupt:
        if not progress.rows:
            raise
        trainer.average.set_weights(progress.best)
    metrics = {
        "recipe": recipe.name,
        "seed": seed,
        "epochs": len(progress.rows),
        "train_seconds": round(progress.seconds, 1),
        **_measure(trainer.average, validation, data.test),
    }
    _write(artifacts, trainer.average, progress.rows, metrics)
    if len(progress.rows) == recipe.epochs:
        saved.unlink(missing_ok=True)
    report.write(artifacts, data)
    return metrics


def _advance(progress: Progress, trainer: Trainer, batches: Examples, validation: Examples) -> None:
    """Train for one epoch and take down how it went."""
    loss, accuracy = trainer.fit(batches)
    val_loss, val_accuracy = evaluate(trainer.average, validation)
    if val_accuracy >= max((row["val_accuracy"] for row in progress.rows), default=0):
        progress.best = trainer.average.get_weights()
    progress.rows.append(
        {
            "loss": loss,
            "accuracy": accuracy,
            "val_loss": val_loss,
            "val_accuracy": val_accuracy,
            "learning_rate": trainer.learning_rate,
        }
    )


def _measure(model: keras.Model, validation: Examples, test: Examples) -> dict[str, Any]:
    """Evaluate the network once and for all, and say what it was trained with."""
    validation_loss, validation_accuracy = evaluate(model, validation)
    test_loss, test_accuracy = evaluate(model, test)
    return {
        "parameters": model.count_params(),
        "device": device(),
        "accuracy": {"validation": validation_accuracy, "test": test_accuracy},
        "loss": {"validation": validation_loss, "test": test_loss},
        "errors": {"test": round((1 - test_accuracy) * len(test.labels))},
        "libraries": {
            "tensorflow": tf.__version__,
            "keras": keras.__version__,
            "numpy": np.__version__,
            "python": platform.python_version(),
        },
    }


def _write(artifacts: Path, model: keras.Model, rows: list[Row], metrics: dict[str, Any]) -> None:
    """Write the three files that export and report read, each whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        write_atomically(artifacts / "model.keras", Path(folder, "model.keras").read_bytes())
    history = {name: [row[name] for row in rows] for name in rows[0]}
    write_atomically(artifacts / "history.json", json.dumps(history, indent=2).encode())
    write_atomically(artifacts / "metrics.json", json.dumps(metrics, indent=2).encode())
