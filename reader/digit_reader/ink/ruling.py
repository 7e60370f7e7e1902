"""Removes ruled lines, and the boxes and combs of forms, from ink; what crosses them stays."""

import numpy as np
from scipy import ndimage

from digit_classifier.normalizer import Labels, Levels, Mask, Numbers
from digit_reader.ink.boxes import edges_of, find_boxes, remains, with_sides
from digit_reader.ink.combs import find_combs, find_teeth
from digit_reader.ink.dashes import Dashes
from digit_reader.ink.strokes import (
    MAX_LINES,
    MIN_SIDE,
    Runs,
    chosen_parts,
    parts_of,
    thickness,
)

MIN_SPAN = 0.6
"""Share of the picture's width that a ruled line covers."""
MAX_THICKNESS = 0.015
"""Share of the picture's longer side: a thicker line is a stroke, such as the bar of a large 4."""
MAX_SKEW = 0.04
"""Rise of a line from its one end to the other, for each pixel."""
MIN_DASHES, MIN_DASHES_OF_BOX = 4, 3
"""The fewest dashes of a dashed line, and of a box's side; a hyphen between digits looks like the
latter."""
MIN_FLAT = 8
"""Width by height of a line under a digit; the bar of a 5 is less flat."""


def without_ruling(ink: Levels, found: tuple[Labels, Numbers]) -> Levels:
    """Return (H, W) ink with lines and boxes set to 0.

    Args:
        ink: levels above the paper.
        found: its parts, which may be lines: see parts_of.
    """
    dashes = Dashes(*found)
    across, down, bordered = _runs_of(dashes)
    mask = across.mask
    level, upright = find_combs(across, down)
    is_joined = np.count_nonzero(mask) > np.count_nonzero(found[0])
    parts = parts_of(mask)[1] if is_joined else found[1]
    level |= _ruled(across) | _underlines(across, parts)
    upright |= _ruled(down).T
    across, down = bordered
    boxes, mask = find_boxes(across, down), across.mask
    near = edges_of(boxes, mask.shape)
    if boxes:
        level, upright = with_sides(across, down, level, upright, boxes, near)
        upright |= find_teeth(boxes, down)
    lines = _without_crossings(mask, level, upright)
    if not lines.any():
        return ink
    if boxes:
        lines |= dashes.lines(MIN_DASHES)
        lines |= remains(mask & ~lines, near[0] | near[1] | ndimage.maximum_filter(lines, 5))
    halo = ndimage.maximum_filter(lines, 3) & ~mask
    return np.where(lines | halo, 0, ink).astype(np.float32)


def _runs_of(dashes: Dashes) -> tuple[Runs, Runs, tuple[Runs, Runs]]:
    """Return horizontal and vertical runs, and both of boxes, whose sides may have few dashes."""
    bordered, joined = dashes.joined(MIN_DASHES_OF_BOX), dashes.joined(MIN_DASHES)
    runs = Runs(joined), Runs(np.ascontiguousarray(joined.T))
    if (joined == bordered).all():
        return *runs, runs
    return *runs, (Runs(bordered), Runs(np.ascontiguousarray(bordered.T)))


def _without_crossings(mask: Mask, level: Mask, upright: Mask) -> Mask:
    """Leave out of horizontal and vertical lines where strokes cross them."""
    lines = (level & _thin(mask, level)) | (upright & _thin(mask.T, upright.T).T)
    return lines | (level & upright)


def _thin(mask: Mask, lines: Mask) -> Mask:
    """Return where ink is not much higher than horizontal lines are: no stroke crosses there."""
    if not lines.any():
        return lines
    length = 2 * thickness(lines) + 2
    levels = mask.view(np.uint8)
    low, high = (length - 1) // 2, length // 2
    runs = np.lib.stride_tricks.sliding_window_view(
        np.pad(levels, ((low, high), (0, 0))), length, 0
    )
    eroded = runs.min(-1)
    grown = np.pad(eroded, ((high, low), (0, 0)))
    opened = np.lib.stride_tricks.sliding_window_view(grown, length, 0).max(-1)
    return np.asarray(opened == 0)


def _in_line(lines: Numbers, others: Numbers) -> Mask:
    """Return which of N horizontal lines continue which of M: (N, M)."""
    lines, others = lines.astype(np.float32), others.astype(np.float32)
    y, x = ((lines[:, axis] + lines[:, axis + 2] / 2)[:, None] for axis in (0, 1))
    y_other, x_other = (others[:, axis] + others[:, axis + 2] / 2 for axis in (0, 1))
    return np.asarray(np.abs(y - y_other) <= 3 + MAX_SKEW * np.abs(x - x_other))


def _ruled(runs: Runs) -> Mask:
    """Find horizontal lines across the picture, level within a few degrees."""
    width = runs.mask.shape[1]
    labels, parts = parts_of(runs.of(max(25, width // 8)))
    sizes = np.bincount(labels.ravel())[1:]
    heights, spans = parts[:, 2:].T
    thickest = max(5.0, MAX_THICKNESS * max(runs.mask.shape))
    is_thin = (heights <= np.maximum(4, 0.1 * spans)) & (sizes <= thickest * spans)
    thin = np.flatnonzero(is_thin)[:MAX_LINES]
    same = _in_line(parts[thin], parts[thin]) * spans[thin]
    is_long = (same.sum(1) >= MIN_SPAN * width) & (same.max(1, initial=0) >= width / 5)
    return chosen_parts(labels, thin[is_long])


def _underlines(across: Runs, parts: Numbers) -> Mask:
    """Find short horizontal lines on which digits stand, and what continues them."""
    mask = across.mask
    heights, spans = parts[:, 2:].T
    is_flat = (spans >= MIN_SIDE) & (spans >= MIN_FLAT * heights)
    under = [part for part in parts[is_flat][:MAX_LINES].tolist() if _is_under_ink(mask, *part)]
    if not under:
        return np.zeros_like(mask)
    labels, lines = parts_of(across.of(MIN_SIDE))
    flat = np.flatnonzero(lines[:, 3] >= MIN_FLAT / 2 * lines[:, 2])[:MAX_LINES]
    same = _in_line(lines[flat], np.array(under))
    same &= lines[flat, 3:] >= 0.6 * np.array(under)[:, 3]
    return chosen_parts(labels, flat[same.any(1)])


def _is_under_ink(mask: Mask, y: int, x: int, h: int, w: int) -> bool:
    """Return whether there is ink above a line, and none below."""
    columns = slice(x, x + w)
    return bool(
        mask[max(0, y - w) : y, columns].any() and not mask[y + h : y + h + w, columns].any()
    )
