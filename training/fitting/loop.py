"""The training loop: from epochs of batches to a trained network, a checkpoint after each epoch."""

import time
from collections.abc import Callable, Iterator

from training.data.augmentation import Batches
from training.data.mnist import Examples
from training.fitting.checkpoint import Checkpoint, Progress
from training.fitting.evaluation import evaluate
from training.fitting.trainer import Trainer

Log = Callable[[str], None]
"""Shows one line of progress."""


def run(
    trainer: Trainer,
    epochs: Iterator[Batches],
    validation: Examples,
    progress: Progress,
    checkpoint: Checkpoint,
    log: Log,
) -> None:
    """Train on each epoch, evaluate, and write a checkpoint.

    Args:
        trainer: its network is trained.
        epochs: those that remain, each (S, B, 784) images and their labels.
        validation: (N, 784) images and (N,) labels.
        progress: updated after each epoch.
        checkpoint: written after each epoch.
        log: gets a line for each epoch, once its checkpoint is written.

    Raises:
        OSError: a checkpoint could not be written.
    """
    wall, cpu = time.monotonic() - progress.seconds, time.process_time() - progress.cpu_seconds
    for batches in epochs:
        loss, accuracy = trainer.fit(batches)
        val_loss, val_accuracy = evaluate(trainer.ema, validation)
        if val_accuracy >= max((row["val_accuracy"] for row in progress.rows), default=0):
            progress.best = trainer.ema.get_weights()
        progress.rows.append(
            {
                "loss": loss,
                "accuracy": accuracy,
                "val_loss": val_loss,
                "val_accuracy": val_accuracy,
                "learning_rate": trainer.learning_rate,
            }
        )
        progress.seconds = time.monotonic() - wall
        progress.cpu_seconds = time.process_time() - cpu
        progress.save(checkpoint, trainer.variables)
        number, num_epochs = len(progress.rows), trainer.recipe.epochs
        log(
            f"epoch {number:{len(str(num_epochs))}}/{num_epochs}  loss {loss:.4f}  "
            f"accuracy {accuracy:.2%}  validation {val_accuracy:.2%}"
        )


def add_prefix(name: str, log: Log) -> Log:
    """Return a log that puts a name in front of each line."""
    return lambda line: log(f"{name}  {line}")
