"""Images of no digit: how often does a network answer them as if it were sure?"""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
import numpy.typing as npt
from matplotlib.ft2font import FT2Font
from scipy import ndimage

from training.data.mnist import SIDE, Images, as_pixels

SEED = 20_261_126
"""Every network gets the same images."""

CONFIDENT = 0.9
"""The probability from which an answer counts as sure."""

NUM = 1_000
"""Images of each kind; of letters there are as many as fonts, letters and slants give."""

LIKE_DIGITS = "BDGIJOQSZbgijloqsyz"
"""Letters that are left out, since they look like 8 0 6 1 1 0 0 5 2, 6 9 1 1 1 0 9 5 4 2."""

LETTERS = "".join(
    letter
    for letter in "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
    if letter not in LIKE_DIGITS
)

FONTS = [
    f"DejaVu{family}{style}.ttf"
    for family, styles in {
        "Sans": ("", "-Bold", "-Oblique", "-BoldOblique"),
        "Serif": ("", "-Bold", "-Italic", "-BoldItalic"),
        "SansMono": ("", "-Bold", "-Oblique", "-BoldOblique"),
    }.items()
    for style in styles
]
"""Those that matplotlib brings."""

SLANTS_DEG = (-10.0, 0.0, 10.0)
"""Each letter is turned by these."""

BOX_PX = 20
"""Height or width of a letter, whichever is larger, as MNIST's digits have it."""

FAINTEST, FAINT = 10, 60
"""Grey levels of a page that is nearly blank: its darkest place has at least, and at most ..."""
SHADE_PX = 6.0
"""Size of its shades, as sigma of a Gaussian."""

BLOB_PX = 2.5
"""Size of the blobs: sigma of the Gaussian that smooths them."""

GAUSSIAN = (128.0, 64.0)
"""Mean and standard deviation of Gaussian noise, in grey levels."""


@cache
def outliers() -> dict[str, Images]:
    """Make all of them, the same every time.

    Returns:
        By kind, (N, 784) uint8, row-major 28 x 28, 0 = background, 255 = ink.
    """
    rng = np.random.default_rng(SEED)
    shape = (NUM, SIDE, SIDE)
    shades = _stretched(_smooth_noise(shape, SHADE_PX, rng))
    made: dict[str, npt.NDArray[Any]] = {
        "letters": letters(),
        "empty page": np.zeros((1, SIDE, SIDE)),
        "nearly blank pages": shades * rng.uniform(FAINTEST, FAINT, (NUM, 1, 1)),
        "uniform noise": rng.uniform(0, 255, shape),
        "Gaussian noise": rng.normal(*GAUSSIAN, shape),
        "blobs": 255 * np.clip(2 * _stretched(_smooth_noise(shape, BLOB_PX, rng)) - 1, 0, 1),
    }
    return {kind: as_pixels(images).reshape(len(images), -1) for kind, images in made.items()}


def letters() -> Images:
    """Draw the letters that look like no digit, in every font and slant, as MNIST has its digits.

    Returns:
        (N, 28, 28) uint8: 20 pixels high or wide, the centre of mass in the middle.
    """
    folder = Path(matplotlib.get_data_path(), "fonts", "ttf")
    return np.stack(
        [
            _draw(FT2Font(str(folder / font)), letter, slant)
            for font in FONTS
            for letter in LETTERS
            for slant in SLANTS_DEG
        ]
    )


def confident_shares(classify: Callable[[Images], npt.NDArray[np.float32]]) -> dict[str, float]:
    """Measure how often a network is sure of what is no digit.

    Args:
        classify: from (N, 784) uint8 images to (N, 10) probabilities.

    Returns:
        By kind, the share of the images whose highest probability is at least CONFIDENT.
    """
    return {
        kind: float((classify(images).max(axis=1) >= CONFIDENT).mean())
        for kind, images in outliers().items()
    }


def _draw(font: FT2Font, letter: str, slant_deg: float) -> Images:
    """Draw one letter, (28, 28)."""
    font.set_size(5 * BOX_PX, 72)  # larger: the mean over 4 x 4 pixels or so is smooth
    font.set_text(letter, slant_deg)
    font.draw_glyphs_to_bitmap(antialiased=True)
    large = np.asarray(font.get_image()).astype(float)
    large = large[np.ix_(large.any(axis=1), large.any(axis=0))]
    rows, columns = (
        _reduction(length, max(1, round(BOX_PX * length / max(large.shape))))
        for length in large.shape
    )
    small = rows @ large @ columns.T
    image = np.zeros((SIDE, SIDE), np.uint8)
    image[: len(small), : len(small.T)] = np.rint(small)
    middle = ndimage.center_of_mass(image)
    return np.roll(image, [round((SIDE - 1) / 2 - place) for place in middle], axis=(0, 1))


def _reduction(before: int, after: int) -> npt.NDArray[np.float64]:
    """Return the (after, before) matrix that averages over equal parts of a row of pixels."""
    edges = np.linspace(0, before, after + 1)[:, None]
    pixels = np.arange(before)
    shared = np.minimum(edges[1:], pixels + 1) - np.maximum(edges[:-1], pixels)
    shares: npt.NDArray[np.float64] = np.maximum(shared, 0) * (after / before)
    return shares


def _smooth_noise(
    shape: tuple[int, int, int], sigma_px: float, rng: np.random.Generator
) -> npt.NDArray[np.float64]:
    """Draw noise that varies over the given distance."""
    smooth: npt.NDArray[np.float64] = ndimage.gaussian_filter(
        rng.standard_normal(shape), (0, sigma_px, sigma_px), mode="wrap"
    )
    return smooth


def _stretched(images: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Stretch each image to 0 to 1."""
    low, high = (extreme(axis=(1, 2), keepdims=True) for extreme in (images.min, images.max))
    stretched: npt.NDArray[np.float64] = (images - low) / (high - low)
    return stretched
