"""Removes circles and loops that are drawn around digits; see docs/decisions/0034."""

from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from digit_classifier.normalizer import Labels, Levels, Mask, Numbers
from digit_reader.ink.boxes import remains
from digit_reader.ink.strokes import parts_of

MIN_SIDE, MAX_RINGS, MAX_AREA = 20, 40, 3
"""Pixels of a ring's shorter side; the parts of a page that are looked at, the largest; and the
area of their boxes, by that of the page."""
MIN_ASPECT, MAX_ASPECT = 0.7, 9
"""Width by height of a ring; a slashed 0 has less."""
MIN_COVER = 0.72
"""Share of a ring's directions in which there is its line and nothing else."""
MAX_PEN = 0.3
"""Share of a ring's shorter radius that its line is wide."""
MIN_RADIUS, MAX_RADIUS = 0.72, 1.3
"""Radius of a ring by that of the ellipse in its box; the waist of an 8 has less, a corner more."""
TOLERANCE = 0.09
"""Share of a ring's radius by which it may differ from a smooth curve."""
MIN_INSIDE, MIN_BLANK = 0.32, 0.35
"""Height of the ink inside by the ring's; the bar of an e has less. And the blank around it, by the
ring's length."""
ANGLES, RADII = np.arange(96) * np.pi / 48, np.linspace(0, 1.5, 72)
TERMS = np.stack(
    [np.ones(96), *(each(order * ANGLES) for order in (1, 2, 3) for each in (np.cos, np.sin))],
    axis=1,
)
"""A ring as a smooth closed curve: its radius by direction."""

Floats = npt.NDArray[np.float64]


def without_rings(
    levels: Levels, faintest: float, cuts: Mask | None = None
) -> tuple[Labels, Numbers]:
    """Set rings around other ink to 0, in place; return the parts that are left: see parts_of.

    Args:
        levels: (H, W) above the paper.
        faintest: what is above may be a ring.
        cuts: (H, W): where rings go on, too.
    """
    mask = levels > faintest if cuts is None else (levels > faintest) | cuts
    labels, parts = parts_of(mask)
    heights, widths = parts[:, 2:].T
    may_be = (np.minimum(heights, widths) >= MIN_SIDE) & (widths >= MIN_ASPECT * heights)
    chosen = np.flatnonzero(may_be & (widths <= MAX_ASPECT * heights))
    chosen = chosen[np.argsort(-(heights * widths)[chosen], kind="stable")][:MAX_RINGS]
    left, is_changed = MAX_AREA * mask.size, False
    for part, (y, x, h, w) in zip(chosen.tolist(), parts[chosen].tolist(), strict=True):
        window = slice(y, y + h), slice(x, x + w)
        left -= h * w
        if left >= 0 and (ring := _ring(labels[window] == part + 1, mask[window])) is not None:
            levels[window][ring | (ndimage.maximum_filter(ring, 3) & ~mask[window])] = 0
            is_changed = True
    return parts_of(levels > faintest) if is_changed else (labels, parts)


def _ring(own: Mask, mask: Mask) -> Mask | None:
    """Return the pixels of a part that are a ring around other ink; None if it is no ring.

    Args:
        own: (H, W): the part in its box.
        mask: (H, W): all ink there.
    """
    ink = _by_direction(own, ANGLES[:, None], RADII)
    steps = np.arange(len(RADII))
    outer = np.where(ink, steps, 0).max(1)
    radii = RADII[outer]
    may_be = (radii >= MIN_RADIUS - TOLERANCE) & (radii <= MAX_RADIUS + TOLERANCE)
    if may_be.mean() < MIN_COVER:
        return None
    curve, is_near = _smooth(radii, np.asarray(ink.any(1)))
    if not MIN_RADIUS <= curve.min() <= curve.max() <= MAX_RADIUS or is_near.mean() < MIN_COVER:
        return None
    depth, bins = _depth(own.shape, curve)
    inner = np.where((steps < outer[:, None]) & ~ink, steps, 0).max(1)
    pens = _by_direction(depth, ANGLES, RADII[inner])
    pen, radius = float(np.median(pens[is_near])), min(own.shape) / 2
    reach = 1 + TOLERANCE / 2 * radius
    is_thin = is_near & (pens <= pen + reach)
    if pen > MAX_PEN * radius or is_thin.mean() < MIN_COVER:
        return None
    if not _has_ink_inside(mask, depth - pen - reach):
        return None
    is_crossed = ~is_thin & (RADII[outer] > curve + TOLERANCE)
    ring = own & (depth <= pen + reach / 2) & ~is_crossed[bins]
    return np.asarray(ring | remains(own & ~ring, depth <= pen + 2 * reach))


def _smooth(radii: Floats, has_ink: Mask) -> tuple[Floats, Mask]:
    """Fit a smooth closed curve; return it, and where radii are near it."""
    weights = has_ink.astype(np.float64)
    for _ in range(8):
        weighted = TERMS * weights[:, None]
        curve = TERMS @ np.linalg.solve(weighted.T @ TERMS, weighted.T @ radii)
        weights = has_ink / (1 + ((radii - curve) / (TOLERANCE / 2)) ** 2)
    return curve, has_ink & (np.abs(radii - curve) <= TOLERANCE)


def _depth(shape: tuple[int, ...], curve: Floats) -> tuple[Floats, npt.NDArray[np.intp]]:
    """Return how many pixels each pixel is within a curve, and its direction's number."""
    y, x = ((2 * np.arange(side) + 1) / side - 1 for side in shape)
    bins = np.rint(np.arctan2(y[:, None], x) / ANGLES[1]).astype(np.intp) % len(ANGLES)
    is_inside = np.pad(np.hypot(y[:, None], x) <= curve[bins], 1)
    return ndimage.distance_transform_edt(is_inside)[1:-1, 1:-1], bins


def _has_ink_inside(mask: Mask, depth: Floats) -> bool:
    rows = np.flatnonzero((mask & (depth > 0)).any(1))
    is_blank = ~mask[(depth > 0) & (depth <= 2)]
    is_high = len(rows) > 0 and rows[-1] - rows[0] >= MIN_INSIDE * len(mask)
    return bool(is_high and is_blank.mean() >= MIN_BLANK)


def _by_direction(levels: npt.NDArray[Any], angles: Floats, radii: Floats) -> npt.NDArray[Any]:
    """Return levels by directions and radii of the ellipse in their box; 0 beyond the box."""
    height, width = levels.shape
    y = np.rint((1 + np.sin(angles) * radii) * height / 2 + 0.5).astype(np.intp)
    x = np.rint((1 + np.cos(angles) * radii) * width / 2 + 0.5).astype(np.intp)
    found: npt.NDArray[Any] = np.pad(levels, 1)[y.clip(0, height + 1), x.clip(0, width + 1)]
    return found
