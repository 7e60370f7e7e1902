"""Augmentation: every epoch deforms every image at random, at a tenth of the usual cost.

Warping 55,000 images one by one takes seconds an epoch, most of it spent on scattered reads. Here
a group of images shares one random field: each output pixel is a weighted sum of contiguous rows.
Every epoch draws new groups and every batch mixes all groups, so an image gets an independent
field each time.
"""

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from training.config import Deformation, Recipe
from training.data.degradation import degrade
from training.data.mnist import CLASSES, SIDE, Examples, Images, Labels
from training.data.outliers import outliers
from training.data.warping import Field, warp

_Item = TypeVar("_Item")
_Made = TypeVar("_Made")

GROUP = 64
"""Images that share one field: twice as many are no faster, half as many 15 % slower."""

Targets = npt.NDArray[np.float32]
"""(..., 10): the probabilities to learn."""


class Batches(NamedTuple):
    """One epoch, cut into S batches of B images."""

    images: Images
    """(S, B, 784) uint8."""
    labels: Labels | Targets
    """(S, B) uint8 digits, or (S, B, 10) float32 probabilities to learn."""


def epochs(examples: Examples, recipe: Recipe, seed: int, start: int) -> Iterator[Batches]:
    """Make the batches of each epoch, on a thread, while the epoch before is being trained on."""

    def make(epoch: int) -> Batches:
        rng = np.random.default_rng([seed, epoch])
        return batches(examples, recipe, rng, recipe.deformation_in(epoch))

    return prefetch(make, range(start, recipe.epochs))


def prefetch(make: Callable[[_Item], _Made], items: Iterable[_Item]) -> Iterator[_Made]:
    """Process each item on a thread, while the caller uses earlier results."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[_Made] | None = None
        for item in items:
            following = thread.submit(make, item)
            if coming:
                yield coming.result()
            coming = following
        if coming:
            yield coming.result()


def batches(
    examples: Examples,
    recipe: Recipe,
    rng: np.random.Generator,
    deformation: Deformation | None,
) -> Batches:
    """Make one epoch: shuffle, deform, and cut into batches."""
    order = rng.permutation(len(examples.labels))
    images = examples.images[order]
    targets: Labels | Targets = examples.labels[order]
    if deformation:
        images = deform(images, deformation, rng)
    if recipe.outliers:
        targets = np.eye(CLASSES, dtype=np.float32)[targets]
    return cut(images, targets, recipe, rng)


def cut(
    images: Images, targets: Labels | Targets, recipe: Recipe, rng: np.random.Generator
) -> Batches:
    """Degrade some images, replace some by outliers, and cut all into batches that mix them.

    Args:
        images: (N, 784) uint8, in random order; changed in place.
        targets: (N,) labels, or (N, 10) probabilities, which outliers need; changed in place.
        recipe: the batch size B, the share of degraded images and that of outliers; the N mod B
            images left over are others in every epoch.
        rng: the epoch's own generator.

    Returns:
        (N // B, B, 784) images and (N // B, B) or (N // B, B, 10) targets.
    """
    steps = len(images) // recipe.batch_size
    num = steps * recipe.batch_size
    images, targets = images[:num], targets[:num]
    if num_degraded := round(recipe.degraded * num):
        images[:num_degraded] = degrade(images[:num_degraded], rng)
    if num_outliers := round(recipe.outliers * num):
        images[-num_outliers:] = outliers(images[-num_outliers:], rng)
        targets[-num_outliers:] = 1 / CLASSES
    # Neighbours share a field or a kind: a batch takes every steps-th image instead.
    place = np.arange(num).reshape(recipe.batch_size, steps).T
    return Batches(images[place], targets[place])


def deform(
    images: Images, deformation: Deformation, rng: np.random.Generator, group: int = GROUP
) -> Images:
    """Warp each run of some images by a random field of its own, but for some that stay crisp."""
    starts = range(0, len(images), group)
    deformed = np.empty_like(images)
    drawn = fields(len(starts), deformation, rng)
    growths = rng.uniform(-deformation.thickness, deformation.thickness, len(starts))
    is_kept = rng.random(len(starts)) < deformation.identity_share
    for start, field, growth, kept in zip(starts, drawn, growths, is_kept, strict=True):
        run = images[start : start + group]
        deformed[start : start + group] = run if kept else warp(run, field, growth)
    return deformed


def fields(num: int, deformation: Deformation, rng: np.random.Generator) -> Field:
    """Draw random fields: an affine map about the centre, plus an elastic displacement.

    The elastic part is noise smoothed by a Gaussian (Simard, Steinkraus and Platt, "Best practices
    for convolutional neural networks applied to visual document analysis", 2003).

    Returns:
        (F, 2, 28, 28) float32: the row and the column, in pixels, that each output pixel reads.
    """

    def uniform(amplitude: float, *shape: int) -> Field:
        return rng.uniform(-amplitude, amplitude, (num, *shape)).astype(np.float32)

    angle = np.deg2rad(uniform(deformation.rotation_deg, 1, 1))
    rotation = np.block([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = np.eye(2, dtype=np.float32) * (1 + uniform(deformation.scale, 2, 1))
    shape[:, 1, 0] = uniform(deformation.shear)
    centre = (SIDE - 1) / 2
    grid = np.indices((SIDE, SIDE), np.float32).reshape(2, -1) - centre
    affine = rotation @ shape @ grid + uniform(deformation.shift_px, 2, 1) + centre
    kernel = _gaussian_kernel(deformation.elastic_sigma_px)
    noise = rng.standard_normal((num, 2, SIDE, SIDE), np.float32)
    elastic = deformation.elastic_px * (kernel @ noise @ kernel.T)
    drawn: Field = affine.reshape(elastic.shape) + elastic
    return drawn


def _gaussian_kernel(sigma_px: float) -> Field:
    """Return the (28, 28) Gaussian kernel K for which K @ noise @ K.T keeps a variance of 1."""
    offset = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    kernel = np.exp(-(offset**2) / (2 * sigma_px**2))
    normed: Field = (kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32)
    return normed
