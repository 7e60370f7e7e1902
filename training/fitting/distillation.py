"""Distillation: the network learns its teachers' probabilities of deformed images beside labels.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.

The teachers are small convolutional networks, trained once and cached for every student. A teacher
is stored as its last checkpoint: a complete one is only read, an interrupted one is resumed; one
that is damaged, or of other settings or images, is trained again.

They are ten times slower than their student, so they classify each view of the training images once
and every student cycles through the views. A view is made again from its number whenever it is
needed; only the logits are stored, one file for each view. A file that is damaged, or of other
teachers, images or deformation, is computed again.
"""

import hashlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.config import Deformation, Distillation, Recipe
from training.data import augmentation
from training.data.augmentation import Batches
from training.data.mnist import SIDE, Examples, Images, Labels
from training.errors import ResumeError
from training.fitting.artifacts import Checkpoint, Progress
from training.fitting.epochs import Log, Trainer, add_prefix, run_epochs

STREAM = 2**32
"""Keeps a view's random numbers apart from those of all seeds, which are smaller."""
LEAST = 1e-12
"""Added to probabilities, so that their logarithms have a bound."""
BATCH = 1_000
Logits = npt.NDArray[np.float16]
"""(N, 10): the mean of the teachers' log probabilities."""
EpochSource = Callable[[int, int], Iterator[Batches]]
"""Makes a recipe's epochs, given the seed and the number of the first epoch, from 0."""


def train_teachers(
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
        run_epochs(trainer, epochs, validation, progress, checkpoint, log_epoch)
        models.append(trainer.ema)
    return models


def identity(recipe: Recipe, training: Examples) -> dict[str, Any]:
    """Return all that determines the teachers but their seeds: settings and training images."""
    images = hashlib.sha256(training.images.tobytes() + training.labels.tobytes())
    return {"images": images.hexdigest(), "num_images": len(training.labels), **asdict(recipe)}


def load_logits(
    recipe: Recipe, training: Examples, validation: Examples, folder: Path, log: Log
) -> list[Logits]:
    """Read the teachers' logits for every view, after computing those that are missing.

    Raises:
        ValueError: the recipe has no teachers.
        OSError: the cache could not be written.
    """
    _, distillation = recipe.views()
    facts = {
        "teachers": distillation.teachers,
        **identity(distillation.teacher, training),
    }
    classify: Callable[[Images], Logits] | None = None
    found = []
    for number in range(distillation.all_views):
        views = asdict(deformation_of(recipe, number))
        file = Checkpoint(folder / f"view-{number:03}.npz", {**facts, "views": views})
        try:
            logits = file.load()["logits"]
        except ResumeError as err:
            if file.path.exists():
                log(f"computing this view again: {err}\n")
            classify = classify or _compile(
                train_teachers(distillation, training, validation, folder, log)
            )
            logits = classify(view(training.images, recipe, number))
            file.save({"logits": logits})
            width = len(str(distillation.all_views))
            log(f"teacher logits  view {number + 1:{width}}/{distillation.all_views}")
        found.append(logits)
    return found


def deformation_of(recipe: Recipe, number: int) -> Deformation:
    """Return how a view is deformed: those of the last epochs have the last numbers."""
    deformation, distillation = recipe.views()
    return deformation if number < distillation.views else deformation.halved()


def view(images: Images, recipe: Recipe, number: int) -> Images:
    """Deform all images; the same number gives the same view."""
    rng = np.random.default_rng([STREAM, number])
    order = rng.permutation(len(images))  # in each view, other images share a field
    deformed = np.empty_like(images)
    deformed[order] = augmentation.deform(images[order], deformation_of(recipe, number), rng)
    return deformed


def _compile(models: Sequence[keras.Model]) -> Callable[[Images], Logits]:
    """Compile the teachers into one function from (N, 784) uint8 to their mean logits."""

    @tf.function(reduce_retracing=True)  # type: ignore[untyped-decorator]
    def mean_logits(images: tf.Tensor) -> tf.Tensor:
        inputs = tf.cast(images, tf.float32) / 255
        logits = [tf.math.log(model(inputs, training=False) + LEAST) for model in models]
        return tf.cast(tf.reduce_mean(logits, axis=0), tf.float16)

    def classify(images: Images) -> Logits:
        batches = (images[i : i + BATCH] for i in range(0, len(images), BATCH))
        return np.concatenate([mean_logits(tf.constant(batch)).numpy() for batch in batches])

    return classify


def epoch_source(
    recipe: Recipe, training: Examples, validation: Examples, cache: Path, log: Log
) -> EpochSource:
    """Prepare a recipe's epochs: if it has teachers, train them and compute their logits."""
    if not recipe.distillation:
        return partial(augmentation.epochs, training, recipe)
    logits = load_logits(recipe, training, validation, cache, log)
    return partial(epochs, training, recipe, logits)


def epochs(
    training: Examples, recipe: Recipe, logits: Sequence[Logits], seed: int, start: int
) -> Iterator[Batches]:
    """Make the batches of each epoch from the next view, cycling through the views.

    The recipe's last epochs cycle through the views that are deformed half as far.

    Each epoch shifts a view differently, and degrades a part of it differently.

    Yields:
        (N // B, B, 784) images and (N // B, B, 10) float32 probabilities to learn.
    """
    _, distillation = recipe.views()

    def make(epoch: int) -> Batches:
        number = view_in(recipe, epoch)
        images = view(training.images, recipe, number)
        targets = soften(training.labels, logits[number], distillation)
        rng = np.random.default_rng([seed, epoch])
        order = rng.permutation(len(targets))
        shifted = shift(images[order])
        return augmentation.cut(shifted, targets[order], recipe, rng)

    return augmentation.prefetch(make, range(start, recipe.epochs))


def view_in(recipe: Recipe, epoch: int) -> int:
    """Return the number of the view that an epoch, from 0, is made of."""
    _, distillation = recipe.views()
    if epoch < recipe.first_mild:
        return epoch % distillation.views
    return distillation.views + (epoch - recipe.first_mild) % distillation.fine_tune_views


def shift(images: Images) -> Images:
    """Move the images by up to a pixel along each axis, every ninth one in the same way.

    A teacher is as sure of a digit wherever it stands, so its answer holds for nine views.
    """
    padded = np.pad(images.reshape(-1, SIDE, SIDE), ((0, 0), (1, 1), (1, 1)))
    shifted = np.empty((len(images), SIDE, SIDE), np.uint8)
    for number, (row, column) in enumerate(product(range(3), repeat=2)):
        shifted[number::9] = padded[number::9, row : row + SIDE, column : column + SIDE]
    return shifted.reshape(images.shape)


def soften(labels: Labels, logits: Logits, distillation: Distillation) -> npt.NDArray[np.float32]:
    """Mix the labels with the teachers' probabilities at the recipe's temperature.

    The temperature is the teachers' alone: a student that has learned softened probabilities is as
    uncertain as they are, until its own temperature is fitted (calibration.py).

    Returns:
        (N, 10) float32; each row sums to 1.
    """
    scaled = logits.astype(np.float32) / distillation.temperature
    targets: npt.NDArray[np.float32] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    targets *= distillation.share / targets.sum(axis=1, keepdims=True)
    targets[np.arange(len(labels)), labels] += 1 - distillation.share
    return targets
