"""The training loop, with a checkpoint after each epoch, and the estimate of how long it takes."""

import re
import time
from collections.abc import Callable, Iterator

from training.config import Recipe
from training.data.augmentation import Batches
from training.data.mnist import Examples
from training.fitting.artifacts import Checkpoint, Progress
from training.fitting.evaluation import evaluate
from training.fitting.trainer import Trainer

Log = Callable[[str], None]
"""Shows one line of progress."""

TEACHER_EPOCH, TEACHER_VIEW, EPOCH = 40.0, 9.0, 0.8
"""Seconds of two cores (EPYC, AVX-512): an epoch of a teacher, its answers to a view, an epoch of
the network. Only their ratios count: the pace is this training's own."""

MUON = 2.0
"""How many times as long an epoch of the network takes with Muon."""

_LINE = re.compile(r"(?:teacher (\d+)/\d+  )?(epoch|teacher logits  view) +(\d+)/")


def run(
    trainer: Trainer,
    epochs: Iterator[Batches],
    validation: Examples,
    progress: Progress,
    checkpoint: Checkpoint,
    log: Log,
) -> None:
    """Train on each epoch, evaluate, and write a checkpoint.

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


class Estimate:
    """A log that ends each line of progress with the time left, such as "12 min left"."""

    def __init__(self, recipe: Recipe, log: Log) -> None:
        self._log = log
        teaching = recipe.distillation
        self._teachers = teaching.teachers if teaching else 0
        self._teacher_cost = teaching.teacher.epochs * TEACHER_EPOCH if teaching else 0.0
        self._views_start = self._teachers * self._teacher_cost
        views = teaching.all_views if teaching else 0
        self._epochs_start = self._views_start + self._teachers * views * TEACHER_VIEW
        self._epoch_cost = EPOCH * (MUON if recipe.optimizer == "muon" else 1)
        self._total = self._epochs_start + recipe.epochs * self._epoch_cost
        self._started = time.monotonic()
        self._skipped: float | None = None

    def __call__(self, line: str) -> None:
        """Pass the line on, with the estimate where it tells of progress."""
        if found := _LINE.match(line):
            position, step = self._position(*found.groups())
            if self._skipped is None:  # an earlier run's epochs took no time of this one
                self._skipped = position - step
            pace = (time.monotonic() - self._started) / (position - self._skipped)
            left = (self._total - position) * pace
            line += f"  {left / 60:.0f} min left" if left >= 90 else f"  {left:.0f} s left"
        self._log(line)

    def _position(self, teacher: str | None, part: str, done: str) -> tuple[float, float]:
        """Return the costs of all up to here, and those of the last step."""
        if teacher:
            before = (int(teacher) - 1) * self._teacher_cost
            return before + int(done) * TEACHER_EPOCH, TEACHER_EPOCH
        step, start = self._epoch_cost, self._epochs_start
        if part != "epoch":
            step, start = self._teachers * TEACHER_VIEW, self._views_start
        return start + int(done) * step, step
