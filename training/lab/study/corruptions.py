"""Corrupted test images: how well does a network classify what it was not trained on?

The fifteen corruptions of MNIST-C, written from their description (Mu and Gilmer, "MNIST-C: a
robustness benchmark for computer vision", 2019), and Gaussian noise. Their severities are set so
that a plain convolutional network errs about as often as the paper's.
"""

from collections.abc import Callable

import numpy as np

from training.data.mnist import SIDE, Images, as_pixels
from training.lab.study import distortions, overlays
from training.lab.study.distortions import Pictures

SEED = 20_261_124
"""Every network gets the same corrupted images."""

NOISE = 60.0
"""Standard deviation of the noise added to each pixel, in grey levels."""

SHOT_PHOTONS = 4.0
"""Photons that a pixel of full ink receives in the mean; what is counted varies by chance."""

IMPULSE_SHARE = 0.2
"""Share of the pixels that become black or white, half of them either."""

BRIGHTNESS = 140.0
"""Grey levels that are added to every pixel."""

Corruption = Callable[[Pictures, np.random.Generator], Pictures]
"""From (N, 28, 28) float32 pictures, 0 to 255, to such pictures, which may leave that range."""


def noise(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Add Gaussian noise to every pixel."""
    return pictures + np.float32(NOISE) * rng.standard_normal(pictures.shape, np.float32)


def shot_noise(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Count photons instead of measuring light: the noise of a dark picture."""
    photons = rng.poisson(pictures * (SHOT_PHOTONS / 255))
    counted: Pictures = (photons * (255 / SHOT_PHOTONS)).astype(np.float32)
    return counted


def impulse_noise(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Replace some of the pixels by black or white."""
    chance = rng.random(pictures.shape, np.float32)
    replaced = np.where(chance < IMPULSE_SHARE / 2, np.float32(0), np.float32(255))
    hit: Pictures = np.where(chance < IMPULSE_SHARE, replaced, pictures)
    return hit


def brightness(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Make everything brighter, the background included."""
    del rng  # nothing is random here
    return pictures + np.float32(BRIGHTNESS)


MNIST_C: dict[str, Corruption] = {
    "shot noise": shot_noise,
    "impulse noise": impulse_noise,
    "glass blur": distortions.glass_blur,
    "motion blur": distortions.motion_blur,
    "shear": distortions.shear,
    "scale": distortions.scale,
    "rotate": distortions.rotate,
    "brightness": brightness,
    "translate": distortions.translate,
    "stripe": overlays.stripe,
    "fog": overlays.fog,
    "spatter": overlays.spatter,
    "dotted line": overlays.dotted_line,
    "zigzag": overlays.zigzag,
    "Canny edges": distortions.canny_edges,
}
"""The paper's, in its order."""

CORRUPTIONS: dict[str, Corruption] = {"noise": noise, **MNIST_C}
"""All that the study measures."""


def corrupt(images: Images) -> dict[str, Images]:
    """Corrupt images in each way, the same every time.

    Args:
        images: (N, 784) uint8.

    Returns:
        (N, 784) uint8 by the names in CORRUPTIONS, in the order of the images.
    """
    return {kind: corrupt_by(kind, images) for kind in CORRUPTIONS}


def corrupt_by(kind: str, images: Images) -> Images:
    """Corrupt images in one way, the same every time.

    Args:
        kind: a name in CORRUPTIONS.
        images: (N, 784) uint8.

    Returns:
        (N, 784) uint8, in the order of the images.
    """
    pictures = images.reshape(-1, SIDE, SIDE).astype(np.float32)
    corrupted = CORRUPTIONS[kind](pictures, np.random.default_rng(SEED))
    return as_pixels(corrupted).reshape(images.shape)
