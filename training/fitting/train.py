"""Training: fit the network by a recipe, calibrate it, and write the artifacts."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from training.config import Recipe
from training.data.mnist import Mnist
from training.fitting import artifacts, distillation, loop
from training.fitting.checkpoint import Checkpoint, Progress
from training.fitting.loop import Log
from training.fitting.metrics import calibrate_and_measure
from training.fitting.trainer import Trainer


def train(
    recipe: Recipe,
    data: Mnist,
    folder: Path,
    *,
    seed: int = 0,
    resume: bool = False,
    teachers: Path | None = None,
    log: Log = lambda line: None,
) -> dict[str, Any]:
    """Train the network and write model.keras, history.json and metrics.json.

    A training that runs to its end keeps its last weights. One that is interrupted (Ctrl-C)
    keeps those of its best epoch, and can still be resumed: every epoch leaves a checkpoint.

    Args:
        recipe: how to train.
        data: what to train on.
        folder: the artifacts; a model already there stays until the new one is complete.
        seed: decides the first weights, the order of the images, deformation and dropout.
        resume: continue from the checkpoint in the folder.
        teachers: the cache of teachers, for a recipe that has some; None for the folder's own.
        log: gets a line for each epoch, the teachers' included.

    Returns:
        What metrics.json holds.

    Raises:
        ResumeError: there is nothing to resume, or it is another training.
        KeyboardInterrupt: interrupted before the first epoch was complete: nothing was kept.
        OSError: the artifacts could not be written.
    """
    training, validation = data.split(recipe.validation_split)
    cache = teachers or folder / "teachers"
    epochs = distillation.epoch_source(recipe, training, validation, cache, log)
    trainer = Trainer(recipe, len(training.labels), seed)
    checkpoint = Checkpoint(folder / "checkpoint.npz", {"seed": seed, **asdict(recipe)})
    progress = checkpoint.restore(trainer.variables) if resume else Progress()
    try:
        remaining = epochs(seed, len(progress.rows))
        loop.run(trainer, remaining, validation, progress, checkpoint, log)
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
        **calibrate_and_measure(trainer.average, validation, data),
    }
    artifacts.save(folder, trainer.average, progress.rows, metrics)
    if len(progress.rows) == recipe.epochs:
        checkpoint.path.unlink(missing_ok=True)
    return metrics
