"""Distillation: the network learns its teachers' probabilities of deformed images beside labels.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.config import Distillation, Recipe
from training.data import augmentation
from training.data.augmentation import Batches
from training.data.mnist import SIDE, Examples, Images, Labels
from training.fitting import teacher_logits
from training.fitting.loop import Log
from training.fitting.teacher_logits import Logits

EpochSource = Callable[[int, int], Iterator[Batches]]
"""Makes a recipe's epochs, given the seed and the number of the first epoch, from 0."""


def epoch_source(
    recipe: Recipe, training: Examples, validation: Examples, cache: Path, log: Log
) -> EpochSource:
    """Prepare a recipe's epochs: if it has teachers, train them and compute their logits."""
    if not recipe.distillation:
        return partial(augmentation.epochs, training, recipe)
    logits = teacher_logits.load(recipe, training, validation, cache, log)
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
        images = teacher_logits.view(training.images, recipe, number)
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
