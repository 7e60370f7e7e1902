"""Augmentation: every epoch changes every image at random, at a tenth of the usual cost.

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
from scipy import ndimage, sparse

from training.config import Deformation, Recipe
from training.data.mnist import CLASSES, SIDE, Examples, Images, Labels, as_pixels

Field = npt.NDArray[np.float32]

SLOPE = -1.0
"""Keys's parameter: the kernel's slope at a distance of 1. At -1 it is that of the sinc, the ideal
kernel's, and a tenth of the gradient energy is lost; at -0.5, the smoothest choice, a sixth."""

MARGIN = 2
"""Pixels of background around the image: a kernel at its edge still reads them."""

_PADDED = SIDE + 2 * MARGIN
_TAPS = np.arange(-1, 3)
"""The pixels that a position between 0 and 1 reads, along each axis."""
GROUP = 64
"""Images that share one field: twice as many are no faster, half as many 15 % slower."""
Pixels = npt.NDArray[np.float32]
"""(N, 28, 28), 0 to 255 and somewhat beyond."""
_Item = TypeVar("_Item")
_Made = TypeVar("_Made")
Targets = npt.NDArray[np.float32]
"""(..., 10): the probabilities to learn."""


def warp(images: Images, field: Field, growth: float = 0.0) -> Images:
    """Read each output pixel where the field points, by cubic convolution; outside is background.

    Args:
        images: (N, 784) uint8.
        field: (2, 28, 28) float32, rows and columns in pixels.
        growth: the share of a pixel by which strokes become thicker on either side, -1 to 1.
    """
    padded = np.zeros((_PADDED, _PADDED, len(images)), np.float32)
    padded[MARGIN:-MARGIN, MARGIN:-MARGIN] = images.T.reshape(SIDE, SIDE, -1)
    if growth:
        padded = thicken(padded, growth)
    warped = _weights(field) @ padded.reshape(_PADDED**2, -1)
    return as_pixels(warped).T


def thicken(images: Field, growth: float) -> Field:
    """Give each pixel the brightest value within a distance along rows and columns, or the darkest.

    The values between pixels are read by cubic convolution: strokes move, and don't blur.

    Args:
        images: (H, H, N) float32; MARGIN pixels at the border are background.
        growth: the distance in pixels, -1 to 1; below 0 it is the darkest value that counts.
    """
    extreme = np.maximum if growth > 0 else np.minimum
    num_pixels = len(images) ** 2
    flat = images.reshape(num_pixels, -1)
    reached = flat.copy()
    for shift in (growth, -growth):
        corner = np.floor(shift).astype(int)
        shares = np.tile(cubic(np.float32(shift) - corner - _TAPS), (num_pixels, 1))
        for stride in (len(images), 1):  # along columns, along rows
            # A read beyond an edge is one of the background at the other edge.
            pixels = np.arange(num_pixels)[:, None] + stride * (corner + _TAPS)
            extreme(reached, _matrix(shares, pixels % num_pixels, num_pixels) @ flat, out=reached)
    return reached.reshape(images.shape)


def cubic(distance: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Compute the weights of pixels at these distances along one axis; beyond 2 they are 0."""
    near = np.minimum(np.abs(distance), 2)
    inner = ((SLOPE + 2) * near - (SLOPE + 3)) * near**2 + 1
    outer = SLOPE * (((near - 5) * near + 8) * near - 4)
    weights: npt.NDArray[np.float32] = np.where(near <= 1, inner, outer).astype(np.float32)
    return weights


def _weights(field: Field) -> sparse.csr_matrix:
    """Return the (784, padded pixels) weights with which each output pixel reads."""
    position = np.clip(field.reshape(2, -1, 1), -1, SIDE - 0.001)
    corner = np.floor(position)
    row, column = cubic(position - corner - _TAPS)
    from_row, from_column = (corner + _TAPS + MARGIN).astype(int)
    shares = row[:, :, None] * column[:, None, :]
    pixels = from_row[:, :, None] * _PADDED + from_column[:, None, :]
    return _matrix(shares, pixels, _PADDED**2)


def _matrix(shares: Field, pixels: npt.NDArray[np.integer], num_pixels: int) -> sparse.csr_matrix:
    """Return the (outputs, num_pixels) weights: `shares[i]` in columns `pixels[i]` of row i."""
    num = len(shares)
    taps = shares.size // num
    starts = np.arange(0, shares.size + 1, taps, dtype=np.int32)
    indices = pixels.ravel().astype(np.int32)
    return sparse.csr_matrix((shares.ravel(), indices, starts), shape=(num, num_pixels))


def degrade(images: Images, rng: np.random.Generator) -> Images:
    """Degrade every image, an equal share of them in each way."""
    parts = np.array_split(images.reshape(-1, SIDE, SIDE).astype(np.float32), len(WAYS))
    for way, part in zip(WAYS, parts, strict=True):
        if len(part):
            part[:] = way(part, rng)
    return as_pixels(np.concatenate(parts)).reshape(images.shape)


def gaussian_noise(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Add noise to every pixel, of a standard deviation of up to 70 grey levels."""
    noise: Pixels = _each(pixels, rng, 5, 70) * rng.standard_normal(pixels.shape, np.float32)
    return pixels + noise


def impulses(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Make up to a sixth of the pixels black or white."""
    drawn = rng.random(pixels.shape, np.float32)
    share = _each(pixels, rng, 0.01, 0.16)
    return np.where(drawn < share, np.where(drawn < share / 2, 0, 255), pixels)


def blur(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Smooth along both axes, by a sigma of up to 1.3 pixels each, as a lens or a motion does."""
    parts = np.array_split(pixels, max(1, len(pixels) // 64))
    blurred = [
        ndimage.gaussian_filter(part, (0, *rng.uniform(0.2, 1.3, 2)), mode="constant", truncate=3)
        for part in parts
    ]
    return np.concatenate(blurred).astype(np.float32, copy=False)


def contrast(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Make the ink paler and the paper greyer: 0 to 255 becomes a part of that range."""
    paper = _each(pixels, rng, 0, 140)
    ink = np.maximum(_each(pixels, rng, 100, 255), paper + 60)
    return (paper + pixels * (ink - paper) / 255).astype(np.float32, copy=False)


def shade(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Lay light over the image that grows from one side to another."""
    row, column = np.indices((SIDE, SIDE), np.float32) / (SIDE - 1) - 0.5
    angle = _each(pixels, rng, 0, 2 * np.pi)
    slope = np.cos(angle) * row + np.sin(angle) * column
    light = _each(pixels, rng, 20, 130) * (slope + 0.5)
    lit: Pixels = pixels + light * (1 - pixels / 255)
    return lit


def occlusion(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Cover a bar of 1 to 4 pixels, across the whole image or part of it, by one grey level."""
    num = len(pixels)
    axis = np.arange(SIDE)
    start, width = rng.integers(2, SIDE - 5, (num, 1)), rng.integers(1, 5, (num, 1))
    across = (axis >= start) & (axis < start + width)
    first, length = rng.integers(0, SIDE, (num, 1)), rng.integers(4, 2 * SIDE, (num, 1))
    along = (axis >= first - length // 2) & (axis < first + length)
    is_row = rng.random((num, 1, 1)) < 0.5
    bar = np.where(
        is_row, across[:, :, None] & along[:, None, :], along[:, :, None] & across[:, None, :]
    )
    level = np.where(rng.random((num, 1, 1)) < 0.5, 0, _each(pixels, rng, 100, 255))
    inverted = np.where(rng.random((num, 1, 1)) < 0.3, 255 - pixels, level)
    return np.where(bar, inverted, pixels)


def line(pixels: Pixels, rng: np.random.Generator) -> Pixels:
    """Draw a straight line through the image, whole or dotted, of up to 2 pixels."""
    num = len(pixels)
    row, column = np.indices((SIDE, SIDE), np.float32) - (SIDE - 1) / 2
    angle = _each(pixels, rng, 0, np.pi)
    offset = _each(pixels, rng, -9, 9)
    distance = np.abs(np.cos(angle) * row + np.sin(angle) * column - offset)
    drawn = np.clip(_each(pixels, rng, 0.6, 1.5) - distance + 0.5, 0, 1)
    along = np.sin(angle) * row - np.cos(angle) * column
    dots = np.sin(along * _each(pixels, rng, 0.8, 2.5)) > 0
    drawn = np.where(dots | (rng.random((num, 1, 1)) < 0.6), drawn, 0)
    return np.maximum(pixels, drawn * _each(pixels, rng, 120, 255))


WAYS: tuple[Callable[[Pixels, np.random.Generator], Pixels], ...] = (
    gaussian_noise, impulses, blur, contrast, shade, occlusion, line,
)  # fmt: skip
"""All ways; each takes (N, 28, 28) pixels and a generator."""


def _each(pixels: Pixels, rng: np.random.Generator, low: float, high: float) -> Pixels:
    """Draw a number for each image, from low to high, to be broadcast over its pixels."""
    drawn: Pixels = rng.uniform(low, high, (len(pixels), 1, 1)).astype(np.float32)
    return drawn


def outliers(images: Images, rng: np.random.Generator) -> Images:
    """Make an outlier of every image: pieces shuffled, parts of two, lines, noise or a blank."""
    made = images.reshape(-1, SIDE, SIDE).copy()
    ways = (_shuffle, _shuffle, _halves, _strokes, _strokes, _texture, _blank)
    for way, part in zip(ways, np.array_split(made, len(ways)), strict=True):
        if len(part):
            part[:] = np.clip(way(part, rng), 0, 255)
    return made.reshape(images.shape)


def _shuffle(images: Images, rng: np.random.Generator) -> Images:
    """Shuffle the quarters of each image, and mirror them."""
    half = SIDE // 2
    quarters = images.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, 4, half, half)
    order = np.array([[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [1, 3, 0, 2]])
    drawn = order[rng.integers(0, len(order), len(images))]
    shuffled = quarters[np.arange(len(images))[:, None], drawn]
    shuffled = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, shuffled[..., ::-1], shuffled)
    whole: Images = shuffled.reshape(-1, 2, 2, half, half).swapaxes(2, 3).reshape(images.shape)
    return whole


def _halves(images: Images, rng: np.random.Generator) -> Images:
    """Put the upper half of one image on the lower half of another that is turned by a quarter."""
    mixed = images.copy()
    mixed[:, SIDE // 2 :] = np.roll(images, 1, axis=0).swapaxes(1, 2)[:, SIDE // 2 :]
    return mixed


def _strokes(images: Images, rng: np.random.Generator) -> Images:
    """Draw 3 or 4 straight strokes of a pen between random points, as in many letters."""
    num = len(images)
    grid = np.indices((SIDE, SIDE), np.float32)[:, None]  # (2, 1, 28, 28)
    drawn = np.zeros(images.shape, np.float32)
    width = rng.uniform(0.9, 1.9, (num, 1, 1)).astype(np.float32)
    end = rng.uniform(4, SIDE - 5, (2, num, 1, 1)).astype(np.float32)
    for stroke in range(4):
        is_joined = rng.random((num, 1, 1)) < 0.6
        start = np.where(is_joined, end, rng.uniform(4, SIDE - 5, (2, num, 1, 1)))
        end = rng.uniform(4, SIDE - 5, (2, num, 1, 1)).astype(np.float32)
        way = end - start
        share = ((grid - start) * way).sum(axis=0) / ((way**2).sum(axis=0) + 1e-3)
        nearest = start + np.clip(share, 0, 1) * way
        distance = np.sqrt(((grid - nearest) ** 2).sum(axis=0))
        ink = np.clip(width - distance + 0.5, 0, 1)
        is_drawn = (stroke < 3) | (rng.random((num, 1, 1)) < 0.6)
        drawn = np.maximum(drawn, np.where(is_drawn, ink, 0))
    return (255 * drawn).astype(np.uint8)


def _texture(images: Images, rng: np.random.Generator) -> Images:
    """Fill the image with noise: of single pixels, or of blocks of 2, 4 or 7."""
    side = int(rng.choice((1, 2, 4, 7)))
    blocks = rng.uniform(0, 256, (len(images), SIDE // side, SIDE // side))
    blocks *= rng.random((len(images), 1, 1)) < 0.8
    sparse = rng.random((len(images), 1, 1)) * 0.9
    blocks *= rng.random(blocks.shape) > sparse
    return blocks.repeat(side, axis=1).repeat(side, axis=2).astype(np.uint8)


def _blank(images: Images, rng: np.random.Generator) -> Images:
    """Leave nothing but an even grey, or a few specks."""
    grey = rng.uniform(0, 256, (len(images), 1, 1)) * (rng.random((len(images), 1, 1)) < 0.5)
    specks = (rng.random(images.shape) < rng.uniform(0, 0.03, (len(images), 1, 1))) * 255
    blank: Images = np.maximum(specks, np.broadcast_to(grey, images.shape)).astype(np.uint8)
    return blank


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
    """Warp each run of some images by a random field of its own, but for some that stay clean."""
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
