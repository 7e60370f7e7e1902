"""Removes ruled lines and the boxes of forms from ink; what crosses them stays."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from serving.pictures.parts import Levels, Mask

MIN_SPAN = 0.6
"""Of the picture's width: how much of it a ruled line covers."""
MAX_THICKNESS = 0.015
"""Of the picture's longer side: a thicker line is a stroke, such as the bar of a large 4."""
MAX_SKEW = 0.04
"""Rise of a line from its one end to the other, for each pixel."""
MIN_STRAIGHT = 0.75
"""Of a box's side: how much of it is straight; of a zero's it is half."""
MIN_BOX = 16
"""Pixels of a box's side."""
MIN_NEAR = 0.25
"""Of a straight line: how much of it lies along boxes that were found, if it is their side."""
MAX_BREAK = 4
"""Pixels without ink in a line."""
MAX_BOXES = 400


def without_ruling(ink: Levels, threshold: float, faintest: float) -> Levels:
    """Return (H, W) ink with lines and boxes set to 0.

    Args:
        ink: levels above the paper.
        threshold: what is above is ink.
        faintest: what is above may be a line.
    """
    mask = ink > faintest
    level, upright = _ruled(mask), _ruled(mask.T).T
    rest = mask & ~_without_crossings(mask, level, upright)  # else they cut boxes in two
    boxes = dict.fromkeys([*_rectangles(mask), *_rectangles(rest)])
    level, upright = _with_sides(mask, level, upright, list(boxes))
    lines = _without_crossings(mask, level, upright)
    if not lines.any():
        return ink
    halo = ndimage.maximum_filter(lines, 3) & ~mask
    return np.where(lines | halo, 0, ink).astype(np.float32)


def _without_crossings(mask: Mask, level: Mask, upright: Mask) -> Mask:
    """Leave out of horizontal and vertical lines where strokes cross them."""
    lines = (level & _thin(mask, level)) | (upright & _thin(mask.T, upright.T).T)
    return lines | (level & upright)


def _thin(mask: Mask, lines: Mask) -> Mask:
    """Return where ink is not much higher than horizontal lines are: no stroke crosses there."""
    if not lines.any():
        return lines
    edges = int(np.count_nonzero(np.diff(lines.astype(np.int8), axis=0)))
    thickness = max(1, round(2 * int(np.count_nonzero(lines)) / max(edges, 1)))
    length = 2 * thickness + 2
    levels = mask.view(np.uint8)
    low, high = (length - 1) // 2, length // 2
    runs = np.lib.stride_tricks.sliding_window_view(
        np.pad(levels, ((low, high), (0, 0))), length, 0
    )
    eroded = runs.min(-1)
    grown = np.pad(eroded, ((high, low), (0, 0)))
    opened = np.lib.stride_tricks.sliding_window_view(grown, length, 0).max(-1)
    return np.asarray(opened == 0)


def _ruled(mask: Mask) -> Mask:
    """Find horizontal lines across the picture, level within a few degrees."""
    width = mask.shape[1]
    straight = _straight(mask, max(25, width // 8))
    labels, _ = ndimage.label(straight, np.ones((3, 3)))
    sizes = np.bincount(labels.ravel())
    thickest = max(5.0, MAX_THICKNESS * max(mask.shape))
    found = [
        (number, (x.start + x.stop) / 2, (y.start + y.stop) / 2, x.stop - x.start)
        for number, (y, x) in enumerate(ndimage.find_objects(labels), 1)
        if y.stop - y.start <= max(4, 0.1 * (x.stop - x.start))
        and sizes[number] <= thickest * (x.stop - x.start)
    ]
    is_line = np.zeros(labels.max() + 1, np.bool_)
    if found:
        numbers, x, y, spans = np.array(found).T
        distance = np.abs(x[:, None] - x)
        same = np.abs(y[:, None] - y) <= 3 + MAX_SKEW * distance
        is_long = (same * spans).sum(1) >= MIN_SPAN * width
        is_long &= (same * spans).max(1) >= width / 5
        is_line[numbers[is_long].astype(np.intp)] = True
    return np.asarray(is_line[labels] & mask)


def _straight(mask: Mask, length: int) -> Mask:
    """Keep horizontal runs of some length, which may rise by a pixel."""
    thick = ndimage.maximum_filter(mask.view(np.uint8), (3, MAX_BREAK + 1))
    length |= 1
    eroded = ndimage.minimum_filter1d(thick, length + MAX_BREAK, axis=1, mode="constant")
    opened = ndimage.maximum_filter1d(eroded, length, axis=1, mode="constant")
    return np.asarray(mask & (opened > 0))


def _with_sides(
    mask: Mask, ruled: Mask, columns: Mask, boxes: list[tuple[int, int, int, int]]
) -> tuple[Mask, Mask]:
    """Add the sides of boxes, and what continues them, to horizontal and vertical lines."""
    if not boxes:
        return ruled, columns
    found = [ruled.copy(), columns.copy()]
    height, width = (int(np.median(sides)) for sides in np.array(boxes)[:, 2:].T)
    level = _straight(mask, max(MIN_BOX, int(0.7 * width)))
    upright = _straight(mask.T, max(MIN_BOX, int(0.7 * height))).T
    near = np.zeros_like(mask)
    for y, x, h, w in boxes:
        reach = max(2, round(0.06 * min(h, w)))
        outer = slice(max(0, y - reach), y + h + reach), slice(max(0, x - reach), x + w + reach)
        inner = slice(y + reach, y + h - reach), slice(x + reach, x + w - reach)
        kept = near[inner].copy()
        near[outer] = True
        near[inner] = kept
    for lines, straight in zip(found, (level, upright), strict=True):
        labels, count = ndimage.label(straight, np.ones((3, 3)))
        sizes = np.bincount(labels.ravel(), minlength=count + 1)
        touched = np.bincount(labels[near], minlength=count + 1) >= MIN_NEAR * sizes
        touched[0] = False
        lines |= touched[labels] & straight
    found[1] |= _joining(found[0], upright)
    found[0] |= _joining(found[1].T, level.T).T
    return found[0], found[1]


def _joining(level: Mask, upright: Mask) -> Mask:
    """Return the vertical lines whose both ends are at horizontal lines: other boxes' sides."""
    grown = ndimage.maximum_filter(level, 5)
    labels, count = ndimage.label(upright, np.ones((3, 3)))
    joins = np.zeros(count + 1, np.bool_)
    for number, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        ends = grown[y.start : y.start + 4, x].any() and grown[y.stop - 4 : y.stop, x].any()
        joins[number] = ends and x.stop - x.start <= max(4, (y.stop - y.start) // 4)
    return np.asarray(joins[labels] & upright)


def _rectangles(mask: Mask) -> Iterator[tuple[int, int, int, int]]:
    """Yield top, left, height and width of the holes that have four straight sides."""
    labels, count = ndimage.label(~mask)
    if count < 2:
        return
    height, width = mask.shape
    found = 0
    for hole, (y, x) in enumerate(ndimage.find_objects(labels), 1):
        h, w = y.stop - y.start, x.stop - x.start
        is_inside = y.start > 0 and x.start > 0 and y.stop < height and x.stop < width
        if not is_inside or min(h, w) < MIN_BOX or found >= MAX_BOXES:
            continue
        if _has_straight_sides(labels[y, x] == hole):
            found += 1
            yield y.start, x.start, h, w


def _has_straight_sides(hole: Mask) -> bool:
    reach = max(2, round(0.06 * min(hole.shape)))
    sides = (
        hole[:reach].any(0),
        hole[-reach:].any(0),
        hole[:, :reach].any(1),
        hole[:, -reach:].any(1),
    )
    return all(side.mean() >= MIN_STRAIGHT for side in sides)
