"""Distillation: the network learns what its teachers say of deformed images, not labels alone.

Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network", 2015.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import numpy.typing as npt

from training.config import Distillation, Recipe
from training.data import augmentation
from training.data.augmentation import Batches
from training.data.mnist import Examples, Labels
from training.fitting import teacher_logits
from training.fitting.teacher_logits import Answers
from training.fitting.teachers import Say

Source = Callable[[int, int], Iterator[Batches]]
"""Given the seed and the number of the first epoch, makes all epochs from there on."""


def source(
    recipe: Recipe, training: Examples, validation: Examples, cache: Path, say: Say
) -> Source:
    """Get ready to make a recipe's epochs; if it has teachers, train and ask them first.

    Args:
        recipe: with or without teachers.
        training: (N, 784) images and (N,) labels.
        validation: what to watch the teachers with.
        cache: the folder of teachers and answers.
        say: told how that goes.
    """
    if not recipe.distillation:
        return partial(augmentation.epochs, training, recipe)
    answers = teacher_logits.answers(recipe, training, validation, cache, say)
    return partial(epochs, training, recipe, answers)


def epochs(
    training: Examples,
    recipe: Recipe,
    answers: Sequence[Answers],
    seed: int,
    start: int,
) -> Iterator[Batches]:
    """Make the batches of each epoch from the next view of the pool, cycling through it.

    Args:
        training: (N, 784) images and (N,) labels.
        recipe: has a deformation and a distillation.
        answers: the teachers', by view.
        seed: with an epoch's number it decides the order of the images.
        start: the first epoch's number, from 0.

    Yields:
        (N // B, B, 784) images and (N // B, B, 10) float32 probabilities to learn.
    """
    deformation, distillation = recipe.taught

    def make(epoch: int) -> Batches:
        number = epoch % len(answers)
        images = teacher_logits.view(training.images, deformation, number)
        targets = soften(training.labels, answers[number], distillation)
        order = np.random.default_rng([seed, epoch]).permutation(len(targets))
        order = order[: len(order) // recipe.batch_size * recipe.batch_size]
        order = order.reshape(-1, recipe.batch_size)
        return Batches(images[order], targets[order])

    return augmentation.ahead(make, range(start, recipe.epochs))


def soften(labels: Labels, answers: Answers, distillation: Distillation) -> npt.NDArray[np.float32]:
    """Mix the labels with the teachers' probabilities at the recipe's temperature.

    The temperature is the teachers' alone: a student who has learned their softened answers is as
    unsure as they are, and becomes sure again when its own temperature is fitted (calibration.py).

    Args:
        labels: (N,) uint8.
        answers: (N, 10) log probabilities, up to a constant for each image.
        distillation: temperature, and the teachers' share.

    Returns:
        (N, 10) float32; each row sums to 1.
    """
    logits = answers.astype(np.float32) / distillation.temperature
    soft: npt.NDArray[np.float32] = np.exp(logits - logits.max(axis=1, keepdims=True))
    soft *= distillation.share / soft.sum(axis=1, keepdims=True)
    soft[np.arange(len(labels)), labels] += 1 - distillation.share
    return soft
