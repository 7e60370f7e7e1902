"""The loop of training: steps, epochs, the average of weights, the time that is left."""

import math
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence

import keras
import tensorflow as tf

from training.config import Recipe
from training.data.augmentation import Batches
from training.data.mnist import Examples
from training.errors import Diverged, UnusableInput
from training.fitting.artifacts import Checkpoint, Progress
from training.fitting.evaluation import evaluate
from training.fitting.networks import build

IS_FUSED = sys.platform == "linux"
"""Whether XLA compiles the optimiser's step on a CPU: it fuses some twenty passes over the
weights, a quarter less time for an epoch. The whole step would be four times slower there."""
TEACHER_EPOCH, TEACHER_VIEW, EPOCH = 40.0, 9.0, 0.8
"""Seconds of two cores (EPYC, AVX-512): an epoch of a teacher, its answers to a view, an epoch of
the network. Only their ratios count: the pace is this training's own."""
MUON = 2.0
"""How many times as long an epoch of the network takes with Muon."""
_MOMENTUM = 0.9
"""Momentum of SGD."""
_MUON_STEPS = 3
"""Steps of Newton and Schulz, to make an update orthogonal; 5 gain nothing here and take longer."""
_LINE = re.compile(r"(?:teacher (\d+)/\d+  )?(epoch|teacher logits  view) +(\d+)/")
Log = Callable[[str], None]
"""Shows one line of progress."""


def device() -> str:
    """Return the device that TensorFlow trains on: "cuda" if it sees a GPU, else "cpu"."""
    return "cuda" if tf.config.list_physical_devices("GPU") else "cpu"


class Trainer:
    """The state of a training, and the step that changes it."""

    def __init__(self, recipe: Recipe, num_images: int, seed: int) -> None:
        if num_images < recipe.batch_size:
            raise UnusableInput(
                f"batch_size: expected at most {num_images:,}, the number of training images, got "
                f"{recipe.batch_size:,}"
            )
        keras.utils.set_random_seed(seed)
        self.recipe = recipe
        """How it trains."""
        self._model = build(recipe)
        self._optimizer = _optimizer(recipe, num_images // recipe.batch_size)
        self._optimizer.build(self._model.trainable_variables)
        self._loss = keras.losses.CategoricalCrossentropy()
        self.ema = self._model
        """The network to evaluate and to keep: averaged weights if the recipe averages."""
        if recipe.ema_decay:
            self.ema = keras.models.clone_model(self._model)
            self.ema.set_weights(self._model.get_weights())
        self._update = tf.function(self._apply, jit_compile=IS_FUSED and device() == "cpu")

    @property
    def variables(self) -> Sequence[keras.Variable]:
        """All state, for a checkpoint: weights, moments, step count, random states, average."""
        return [*self._model.variables, *self._optimizer.variables, *self.ema.weights]

    @property
    def learning_rate(self) -> float:
        """The rate of the next step."""
        return float(self._optimizer.learning_rate)

    def fit(self, batches: Batches) -> tuple[float, float]:
        """Train on one epoch.

        Returns:
            The means of loss and accuracy over the epoch's batches, each before its step.
        """
        loss, accuracy = self._fit(tf.constant(batches.images), tf.constant(batches.labels))
        return float(loss), float(accuracy)

    @tf.function  # type: ignore[untyped-decorator]
    def _fit(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Run the epoch as one graph: Keras's own loop spends more on calls than on arithmetic."""
        losses, right = 0.0, 0.0
        for step in tf.range(tf.shape(images)[0]):
            loss, accuracy = self._step(images[step], labels[step])
            losses += loss
            right += accuracy
        steps = tf.cast(tf.shape(images)[0], tf.float32)
        return losses / steps, right / steps

    def _step(self, images: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Train on one batch: (B, 784) uint8 images, and (B,) labels or (B, 10) probabilities."""
        inputs = tf.cast(images, tf.float32) / 255
        targets = tf.one_hot(labels, 10) if labels.shape.rank == 1 else labels
        with tf.GradientTape() as tape:
            answers = self._model(inputs, training=True)
            loss = self._loss(targets, answers)
        self._update(tape.gradient(loss, self._model.trainable_variables))
        return loss, tf.reduce_mean(keras.metrics.categorical_accuracy(targets, answers))

    def _apply(self, gradients: list[tf.Tensor]) -> None:
        """Take one step of the optimiser, and move the average after it."""
        self._optimizer.apply(gradients, self._model.trainable_variables)
        if self.ema is not self._model:
            step = tf.cast(self._optimizer.iterations, tf.float32)
            # A young average follows faster, or the first weights would dominate it for epochs.
            share = tf.maximum(1 - self.recipe.ema_decay, 9 / (10 + step))
            for mean, weight in zip(self.ema.weights, self._model.weights, strict=True):
                mean.assign_add(share * (weight - mean))


def _optimizer(recipe: Recipe, steps_per_epoch: int) -> keras.Optimizer:
    if recipe.optimizer == "sgd":
        return keras.optimizers.SGD(recipe.learning_rate, momentum=_MOMENTUM)
    if recipe.optimizer == "rmsprop":
        return keras.optimizers.RMSprop(recipe.learning_rate)
    steps = recipe.epochs * steps_per_epoch
    warmup_steps = round(recipe.warmup * steps)
    rate = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0,
        decay_steps=steps - warmup_steps,
        warmup_target=recipe.learning_rate,
        warmup_steps=warmup_steps,
    )
    decay = recipe.weight_decay
    if recipe.optimizer == "adamw":
        return keras.optimizers.AdamW(rate, weight_decay=decay)
    return keras.optimizers.Muon(
        rate,
        weight_decay=decay,
        adam_weight_decay=decay,  # of the biases and of the last layer
        exclude_layers=["probabilities"],
        ns_steps=_MUON_STEPS,
    )


def run_epochs(
    trainer: Trainer,
    epochs: Iterator[Batches],
    validation: Examples,
    progress: Progress,
    checkpoint: Checkpoint,
    log: Log,
) -> None:
    """Train on each epoch, evaluate, and write a checkpoint.

    Raises:
        Diverged: the loss is no longer a number.
        OSError: a checkpoint could not be written.
    """
    wall, cpu = time.monotonic() - progress.seconds, time.process_time() - progress.cpu_seconds
    for batches in epochs:
        loss, accuracy = trainer.fit(batches)
        val_loss, val_accuracy = evaluate(trainer.ema, validation)
        if not math.isfinite(loss + val_loss):
            raise Diverged(
                f"the loss is no longer a number in epoch {len(progress.rows) + 1}: train with a "
                f"lower --learning-rate than {trainer.recipe.learning_rate:g}"
            )
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
