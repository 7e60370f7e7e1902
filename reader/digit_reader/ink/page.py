"""Finds the ink of a page of digits: over uneven paper, without ruled lines and boxes."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from digit_classifier.normalizer import MIN_CONTRAST, Levels, fit, otsu, resized
from digit_reader.ink.rings import without_rings
from digit_reader.ink.ruling import without_ruling

THUMB = 48
"""Pixels of the longer side of what the paper is estimated on."""
MIN_SHARE = 0.4
"""Share of the ink's usual strength: weaker pixels are paper."""
NUM_SIGMAS = 4
"""Multiple of the paper's grain: weaker pixels are paper."""
MAX_GRAIN = 0.04
"""Share of the ink's strength: coarser grain is smoothed."""
CUT = 7, 5
"""Pixels down and across of what a removed line cuts out of a ring."""
MAX_PARTS = 6000
"""The most parts of a page: more are grain or a texture, where no lines are looked for."""


class Ink(NamedTuple):
    """The ink of a page."""

    levels: Levels
    """(H, W) float32: 0 = paper, 1 = ink of the usual strength."""
    threshold: float
    """What is ink: the levels above it."""


def find_ink(grey: Levels) -> Ink | None:
    """Find the ink of (H, W) grey levels; None if the page is blank."""
    levels = _lifted(grey)
    grain = _grain(levels)
    strength = _strength(levels, grain)
    if strength and grain > MAX_GRAIN * strength and min(levels.shape) > 40:
        levels = ndimage.gaussian_filter(levels, 0.8, truncate=2)
        grain = _grain(levels) * 2
        strength = _strength(levels, grain)
    if not strength:
        return None
    threshold = max(MIN_SHARE * strength, NUM_SIGMAS * grain)
    faintest = max(threshold / 2, NUM_SIGMAS * grain)
    found = without_rings(levels, faintest)
    written = without_ruling(levels, found) if len(found[1]) <= MAX_PARTS else levels
    if written is not levels:  # a line across the page may have joined rings, which it cuts now
        near = ndimage.maximum_filter(written > faintest, CUT)
        without_rings(written, faintest, near & (levels > faintest))
    return Ink(written / np.float32(strength), threshold / strength)


def _lifted(grey: Levels) -> Levels:
    """Subtract the paper with its light and shadows: ink becomes positive, dark or light.

    The paper is a smooth surface, and the median around each pixel of what differs from it.
    """
    thumb = fit(grey, THUMB)
    surface = _surface(thumb)
    rest = thumb - surface
    window = [min(side | 1, THUMB // 3 | 1) for side in thumb.shape]
    rest = ndimage.median_filter(rest, window, mode="reflect")
    levels = grey - resized((surface + rest).astype(np.float32), grey.shape)
    above = fit(levels, 200) if max(levels.shape) > 200 else levels
    # Ink is the rarer side: the long tail of the distribution.
    return levels if float((above**3).sum()) > 0 else -levels


def _surface(thumb: Levels) -> npt.NDArray[np.float64]:
    """Fit a surface of second degree; what differs most, such as ink, counts least."""
    height, width = thumb.shape
    y, x = (side.ravel() for side in np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j])
    terms = np.stack([np.ones_like(x), x, y, x * x, x * y, y * y], axis=1)
    levels, weights = thumb.ravel().astype(np.float64), np.ones(thumb.size)
    for _ in range(6):
        weighted = terms * weights[:, None]
        fitted = terms @ np.linalg.lstsq(weighted.T @ terms, weighted.T @ levels, rcond=None)[0]
        rest = np.abs(levels - fitted)
        weights = 1 / (1 + (rest / max(2.0, 1.5 * float(np.median(rest)))) ** 2)
    surface: npt.NDArray[np.float64] = fitted.reshape(thumb.shape)
    return surface


def _grain(levels: Levels) -> float:
    """Estimate the standard deviation of noise from neighbours' differences."""
    return float(np.median(np.abs(np.diff(levels, axis=1)))) / 0.954 if levels.shape[1] > 1 else 0.0


def _strength(levels: Levels, grain: float) -> float:
    """Return the median level of the ink, 0 if there is none."""
    above = levels[levels > max(MIN_CONTRAST / 2, NUM_SIGMAS * grain)]
    if len(above) < 8:
        return 0.0
    is_even = above.max() - above.min() < 1
    strength = float(np.median(above if is_even else above[above > otsu(above)]))
    return strength if strength >= MIN_CONTRAST else 0.0
