"""Degradation: the mild effects of scanners, cameras and pens on an image.

A network that learns from clean images alone reads a third of the noisy ones wrongly. Some of its
training images are degraded, each in one way; the label, or a teacher's answer to the image
before, stays. The severities are milder than those of the corrupted test images, and the kinds
are simpler, so the test also covers effects that were not learned.
"""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.data.mnist import SIDE, Images, as_pixels

Pixels = npt.NDArray[np.float32]
"""(N, 28, 28), 0 to 255 and somewhat beyond."""


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
