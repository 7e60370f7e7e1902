"""Augmentation: every epoch deforms every image at random, at a tenth of the usual cost.

Bilinear warping of 55,000 images one by one takes seconds an epoch, most of it spent on scattered
reads. Here a group of images shares one random field. With the group stored pixel by pixel, each
output pixel is a weighted sum of four contiguous rows, which numpy does at the speed of memory:
0.3 s an epoch on one core. Every epoch draws new groups and every batch mixes all groups, so an
image gets an independent field each time.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.config import Deformation, Recipe
from training.data.mnist import SIDE, Examples, Images, Labels

GROUP = 64
"""Images that share one field: twice as many are no faster, half as many 15 % slower."""

Field = npt.NDArray[np.float32]


class Batches(NamedTuple):
    """One epoch, cut into S batches of B images."""

    images: Images
    """(S, B, 784) uint8."""
    labels: Labels | npt.NDArray[np.float32]
    """(S, B) uint8 digits, or (S, B, 10) float32 probabilities to learn."""


def epochs(examples: Examples, recipe: Recipe, seed: int, start: int) -> Iterator[Batches]:
    """Make the batches of each epoch, on a thread, while the epoch before is being trained on.

    Args:
        examples: (N, 784) images and (N,) labels.
        recipe: the number of epochs, the batch size and the deformation.
        seed: with an epoch's number it decides all of that epoch, so a resumed training is
            exactly the uninterrupted one.
        start: the first epoch's number, from 0.

    Yields:
        As batches() returns them.
    """

    def make(epoch: int) -> Batches:
        rng = np.random.default_rng([seed, epoch])
        return batches(examples, recipe.batch_size, recipe.deformation, rng)

    return ahead(make, range(start, recipe.epochs))


def ahead(make: Callable[[int], Batches], numbers: range) -> Iterator[Batches]:
    """Make each epoch on a thread, while the caller uses the one before."""
    with ThreadPoolExecutor(max_workers=1) as thread:
        coming: Future[Batches] | None = None
        for epoch in numbers:
            ready = coming or thread.submit(make, epoch)
            coming = thread.submit(make, epoch + 1) if epoch + 1 in numbers else None
            yield ready.result()


def batches(
    examples: Examples, batch_size: int, deformation: Deformation | None, rng: np.random.Generator
) -> Batches:
    """Make one epoch: shuffle, deform, and cut into batches that mix the groups.

    Args:
        examples: (N, 784) images and (N,) labels.
        batch_size: B; the N mod B images left over are others in every epoch.
        deformation: of the images, or None.
        rng: the epoch's own generator: the same state gives the same epoch.

    Returns:
        (N // B, B, 784) images and (N // B, B) labels.
    """
    steps = len(examples.labels) // batch_size
    order = rng.permutation(len(examples.labels))[: steps * batch_size]
    images, labels = examples.images[order], examples.labels[order]
    if deformation:
        images = deform(images, deformation, rng)
    # Neighbours share a field: a batch takes every steps-th image instead.
    images = images.reshape(batch_size, steps, -1).swapaxes(0, 1)
    return Batches(np.ascontiguousarray(images), labels.reshape(batch_size, steps).T)


def deform(images: Images, deformation: Deformation, rng: np.random.Generator) -> Images:
    """Warp each run of GROUP images by a random field of its own.

    Args:
        images: (N, 784) uint8.
        deformation: the amplitudes.
        rng: draws the fields.

    Returns:
        (N, 784) uint8, in the order of the images.
    """
    starts = range(0, len(images), GROUP)
    deformed = np.empty_like(images)
    drawn = fields(len(starts), deformation, rng)
    growths = rng.uniform(-deformation.thickness, deformation.thickness, len(starts))
    for start, field, growth in zip(starts, drawn, growths, strict=True):
        deformed[start : start + GROUP] = warp(images[start : start + GROUP], field, growth)
    return deformed


def fields(num: int, deformation: Deformation, rng: np.random.Generator) -> Field:
    """Draw random fields: an affine map about the centre, plus an elastic displacement.

    The elastic part is noise smoothed by a Gaussian (Simard, Steinkraus and Platt, "Best practices
    for convolutional neural networks applied to visual document analysis", 2003).

    Args:
        num: F, how many.
        deformation: the amplitudes.
        rng: draws them.

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


def warp(images: Images, field: Field, growth: float = 0.0) -> Images:
    """Read each output pixel where the field points, bilinearly; outside is background.

    Args:
        images: (N, 784) uint8.
        field: (2, 28, 28) float32, rows and columns in pixels.
        growth: the share of a pixel by which strokes become thicker on either side, -1 to 1.

    Returns:
        (N, 784) uint8.
    """
    padded = np.zeros((SIDE + 2, SIDE + 2, len(images)), np.float32)
    padded[1:-1, 1:-1] = images.T.reshape(SIDE, SIDE, -1)
    if growth:
        thicken(padded, growth)
    pixels = padded.reshape(-1, len(images))
    row, column = np.clip(field.reshape(2, -1) + 1, 0, SIDE + 0.999)
    top, left = np.floor(row), np.floor(column)
    down, right = row - top, column - left  # the shares of the lower and of the right neighbour
    corner = (top * (SIDE + 2) + left).astype(np.intp)
    warped = np.zeros((len(corner), len(images)), np.float32)
    for offset, share in (
        (0, (1 - down) * (1 - right)),
        (1, (1 - down) * right),
        (SIDE + 2, down * (1 - right)),
        (SIDE + 3, down * right),
    ):
        neighbours = pixels.take(corner + offset, axis=0)  # half the time of pixels[...]
        neighbours *= share[:, None]
        warped += neighbours
    return np.rint(warped).astype(np.uint8).T


def thicken(images: Field, growth: float) -> None:
    """Move each pixel towards the brightest of its four neighbours and itself, or the darkest.

    Args:
        images: (H, W, N) float32, changed in place; its border must be background.
        growth: the share of the way; below 0 it goes to the darkest.
    """
    extreme = np.maximum if growth > 0 else np.minimum
    reached = images[1:-1, 1:-1].copy()
    for neighbours in (images[:-2, 1:-1], images[2:, 1:-1], images[1:-1, :-2], images[1:-1, 2:]):
        extreme(reached, neighbours, out=reached)
    reached -= images[1:-1, 1:-1]
    images[1:-1, 1:-1] += np.float32(abs(growth)) * reached


def _gaussian_kernel(sigma_px: float) -> Field:
    """Return the (28, 28) Gaussian kernel K for which K @ noise @ K.T keeps a variance of 1."""
    offset = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    kernel = np.exp(-(offset**2) / (2 * sigma_px**2))
    normed: Field = (kernel / np.linalg.norm(kernel, axis=1, keepdims=True)).astype(np.float32)
    return normed
