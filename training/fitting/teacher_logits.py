"""The teachers' logits for deformed views of the training images, cached.

The teachers are ten times slower than their student, so they classify each view once and every
student cycles through the views. A view is made again from its number whenever it is needed; only
the logits are stored, one file for each view. A file that is damaged, or of other teachers, images
or deformation, is computed again.
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path

import keras
import numpy as np
import numpy.typing as npt
import tensorflow as tf

from training.config import Deformation, Recipe
from training.data import augmentation
from training.data.mnist import Examples, Images
from training.errors import ResumeError
from training.fitting import teachers
from training.fitting.artifacts import Checkpoint
from training.fitting.loop import Log

Logits = npt.NDArray[np.float16]
"""(N, 10): the mean of the teachers' log probabilities."""

STREAM = 2**32
"""Keeps a view's random numbers apart from those of all seeds, which are smaller."""

LEAST = 1e-12
"""Added to probabilities, so that their logarithms have a bound."""

BATCH = 1_000


def load(
    recipe: Recipe, training: Examples, validation: Examples, folder: Path, log: Log
) -> list[Logits]:
    """Read the teachers' logits for every view, after computing those that are missing.

    Raises:
        ValueError: the recipe has no teachers.
        OSError: the cache could not be written.
    """
    _, distillation = recipe.views()
    identity = {
        "teachers": distillation.teachers,
        **teachers.identity(distillation.teacher, training),
    }
    classify: Callable[[Images], Logits] | None = None
    found = []
    for number in range(distillation.all_views):
        views = asdict(deformation_of(recipe, number))
        file = Checkpoint(folder / f"view-{number:03}.npz", {**identity, "views": views})
        try:
            logits = file.load()["logits"]
        except ResumeError as err:
            if file.path.exists():
                log(f"computing this view again: {err}\n")
            classify = classify or _compile(
                teachers.train(distillation, training, validation, folder, log)
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
