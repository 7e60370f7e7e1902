"""Corrupted test images: how well does a network classify what it was not trained on?"""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from training.config import Deformation
from training.data.augmentation import deform
from training.data.mnist import SIDE, Images

SEED = 20_261_124
"""Every network gets the same corrupted images."""

NOISE = 60.0
"""Standard deviation of the noise added to each pixel."""

BLUR_PX = 1.2
"""Sigma of the Gaussian."""

_STILL = Deformation(rotation_deg=0, scale=0, shear=0, shift_px=0, elastic_px=0, elastic_sigma_px=4)

Corruption = Callable[..., Images]
"""From images, (N, 784) uint8, and rng, a generator, to (N, 784) uint8."""


def noise(images: Images, rng: np.random.Generator) -> Images:
    """Add Gaussian noise to every pixel."""
    noisy = images + NOISE * rng.standard_normal(images.shape, np.float32)
    return _pixels(noisy)


def blur(images: Images, rng: np.random.Generator) -> Images:
    """Smooth with a Gaussian."""
    distance = np.subtract.outer(np.arange(SIDE), np.arange(SIDE))
    kernel = np.exp(-(distance**2) / (2 * BLUR_PX**2)) / (BLUR_PX * np.sqrt(2 * np.pi))
    smooth = kernel @ images.reshape(-1, SIDE, SIDE) @ kernel.T
    return _pixels(smooth.reshape(images.shape))


def _pixels(values: npt.NDArray[Any]) -> Images:
    pixels: Images = np.rint(np.clip(values, 0, 255)).astype(np.uint8)
    return pixels


CORRUPTIONS: dict[str, Corruption] = {
    "noise": noise,
    "blur": blur,
    "shift": partial(deform, deformation=replace(_STILL, shift_px=4)),
    "rotation": partial(deform, deformation=replace(_STILL, rotation_deg=30)),
    "thickness": partial(deform, deformation=replace(_STILL, thickness=1)),
}
"""Up to 4 pixels along each axis, up to 30 degrees; strokes grow or shrink by up to a pixel."""


def corrupt(images: Images) -> dict[str, Images]:
    """Corrupt (N, 784) images in each way, the same every time."""
    return {
        name: corruption(images, rng=np.random.default_rng(SEED))
        for name, corruption in CORRUPTIONS.items()
    }
