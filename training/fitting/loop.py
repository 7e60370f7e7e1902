"""Fitting: from epochs of batches to a trained network, a checkpoint after every epoch."""

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from training.data.augmentation import Batches
from training.data.mnist import Examples
from training.fitting import checkpoint
from training.fitting.checkpoint import Progress
from training.fitting.trainer import Trainer, evaluate

Row = dict[str, float]
"""What is known after an epoch: loss, accuracy, val_loss, val_accuracy, learning_rate."""

OnEpoch = Callable[[int, Row], None]
"""Told each epoch's number, from 1, and what is known after it."""


@dataclass(frozen=True, slots=True)
class Fit:
    """One training: what changes, how far it has come, and where that is kept."""

    trainer: Trainer
    progress: Progress
    saved: Path
    """The checkpoint."""
    identity: Mapping[str, Any]
    """What must be equal to go on from it."""

    def run(self, epochs: Iterator[Batches], validation: Examples, on_epoch: OnEpoch) -> None:
        """Train on each epoch, evaluate, and write a checkpoint.

        Args:
            epochs: those that remain, each (S, B, 784) images and their labels.
            validation: (N, 784) images and (N,) labels.
            on_epoch: told about each.

        Raises:
            OSError: a checkpoint could not be written.
        """
        progress = self.progress
        wall, cpu = time.monotonic() - progress.seconds, time.process_time() - progress.cpu_seconds
        for batches in epochs:
            self._advance(batches, validation)
            progress.seconds, progress.cpu_seconds = (
                time.monotonic() - wall,
                time.process_time() - cpu,
            )
            checkpoint.save(self.saved, progress, self.trainer.variables, self.identity)
            on_epoch(len(progress.rows), progress.rows[-1])

    def _advance(self, batches: Batches, validation: Examples) -> None:
        """Train for one epoch and take down how it went."""
        trainer, progress = self.trainer, self.progress
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


def describe(epoch: int, epochs: int, row: Row) -> str:
    """Tell in one line how an epoch went; epochs is their number."""
    return (
        f"epoch {epoch:{len(str(epochs))}}/{epochs}  loss {row['loss']:.4f}  "
        f"accuracy {row['accuracy']:.2%}  validation {row['val_accuracy']:.2%}"
    )
