"""Training: fit the network by a recipe, and write what came out of it."""

import json
import tempfile
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import keras

from training.config import Recipe
from training.data.mnist import Mnist
from training.files import write_atomically
from training.fitting import checkpoint, distillation
from training.fitting.checkpoint import Progress
from training.fitting.loop import Fit, OnEpoch, Row
from training.fitting.metrics import finish
from training.fitting.teachers import Say
from training.fitting.trainer import Trainer
from training.study import report


def train(
    recipe: Recipe,
    data: Mnist,
    artifacts: Path,
    *,
    seed: int = 0,
    epochs: int | None = None,
    resume: bool = False,
    on_epoch: OnEpoch = lambda number, row: None,
    teachers: Path | None = None,
    say: Say = lambda line: None,
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
        on_epoch: told about each epoch.
        teachers: where teachers are cached, for a recipe that has some; None for the artifacts'.
        say: told about their training.

    Returns:
        What metrics.json holds.

    Raises:
        ResumeError: there is nothing to resume, or it is another training.
        KeyboardInterrupt: interrupted before its first epoch was complete: nothing was kept.
        OSError: the artifacts could not be written.
    """
    recipe = replace(recipe, epochs=recipe.epochs if epochs is None else epochs)
    training, validation = data.split(recipe.validation_split)
    cache = teachers or artifacts / "teachers"
    epochs_from = distillation.source(recipe, training, validation, cache, say)
    trainer = Trainer(recipe, len(training.labels), seed)
    saved, identity = artifacts / "checkpoint.npz", {"seed": seed, **asdict(recipe)}
    progress = checkpoint.restore(saved, trainer.variables, identity) if resume else Progress()
    fit = Fit(trainer, progress, saved, identity)
    try:
        fit.run(epochs_from(seed, len(progress.rows)), validation, on_epoch)
    except KeyboardInterrupt:
        if not progress.rows:
            raise
        trainer.average.set_weights(progress.best)
    metrics = {
        "recipe": recipe.name,
        "seed": seed,
        "epochs": len(progress.rows),
        "train_seconds": round(progress.seconds, 1),
        "cpu_seconds": round(progress.cpu_seconds, 1),
        **finish(trainer.average, validation, data),
    }
    _write(artifacts, trainer.average, progress.rows, metrics)
    if len(progress.rows) == recipe.epochs:
        saved.unlink(missing_ok=True)
    report.write(artifacts, data)
    return metrics


def _write(artifacts: Path, model: keras.Model, rows: list[Row], metrics: dict[str, Any]) -> None:
    """Write the three files that export and report read, each whole or not at all."""
    with tempfile.TemporaryDirectory() as folder:
        model.save(Path(folder, "model.keras"))
        write_atomically(artifacts / "model.keras", Path(folder, "model.keras").read_bytes())
    history = {name: [row[name] for row in rows] for name in rows[0]}
    write_atomically(artifacts / "history.json", json.dumps(history, indent=2).encode())
    write_atomically(artifacts / "metrics.json", json.dumps(metrics, indent=2).encode())
