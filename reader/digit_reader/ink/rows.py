"""Groups a page's ink into rows of about equal height, in reading order."""

from typing import NamedTuple

import numpy as np
from scipy import ndimage

from digit_classifier.normalizer import Labels, Levels, Mask, Numbers, find_parts, resized
from digit_reader.ink.page import Ink

ROW_HEIGHT = 48
"""Pixels to which a row is scaled: its digits' usual height."""
MIN_HEIGHT = 8
"""Pixels of the smallest row."""
MIN_PIXELS = 3
"""The fewest pixels of a connected part, such as a point."""
MAX_PARTS = 600
"""Connected parts of a page, the largest."""
MAX_ROWS = 60
MAX_GAP = 3.0
"""Blank between neighbours of a row, in heights."""
MIN_OVERLAP = 0.4
"""Share of the smaller one's height by which neighbours of a row overlap."""
MAX_RATIO = 2.5
"""The largest ratio of neighbours' heights."""
MIN_SIDE, MAX_SMALL = 0.055, 0.75
"""Shares of a row's height that small marks such as points and commas have."""
MAX_BESIDE = 0.3, 1.0
"""Shares of a row's height: how far above or below, and to the left or right of the others they
are."""


class Row(NamedTuple):
    """A row of ink, cut out of the page."""

    levels: Levels
    """(H, W): 0 = paper, 1 = ink; other rows' ink is left out."""
    mask: Mask
    """(H, W): what is ink."""
    height: float
    """The digits' usual height in these pixels."""
    middle: float
    """The digits' usual middle, pixels from the top."""
    top: float
    """Top of the row in the page, in the page's pixels."""
    left: float
    scale: float
    """The page's pixels for one of the row's."""


def find_rows(ink: Ink) -> list[Row]:
    """Find the rows of a page, from the top to the bottom, from the left to the right."""
    parts = find_parts(ink.levels > ink.threshold, MIN_PIXELS, MAX_PARTS)
    if not len(parts.sizes):
        return []
    groups = _grouped(parts.boxes, parts.sizes)
    rows = [
        _cut_out(ink, parts.labels, parts.boxes, np.flatnonzero(groups == group))
        for group in np.unique(groups[groups >= 0])
    ]
    return _in_reading_order([row for row in rows if row is not None])[:MAX_ROWS]


def _grouped(boxes: Numbers, sizes: Numbers) -> Numbers:
    """Number the row of each part: 0, 1, ...; -1 for what belongs to none."""
    heights = boxes[:, 2] - boxes[:, 0]
    tall = np.flatnonzero(heights >= max(MIN_HEIGHT, 0.4 * _usual_height(heights, sizes)))
    groups = np.full(len(boxes), -1)
    if not len(tall):
        return groups
    top, left, bottom, right = boxes[tall].T
    height = bottom - top
    overlap = np.minimum(bottom[:, None], bottom) - np.maximum(top[:, None], top)
    gap = np.maximum(left[:, None], left) - np.minimum(right[:, None], right)
    lower, higher = np.minimum(height[:, None], height), np.maximum(height[:, None], height)
    linked = (
        (overlap >= MIN_OVERLAP * lower) & (gap <= MAX_GAP * higher) & (higher <= MAX_RATIO * lower)
    )
    group = np.arange(len(tall))
    while True:  # each takes the smallest number that it is linked to
        smallest = np.where(linked, group, len(tall)).min(1)
        if (smallest == group).all():
            break
        group = smallest
    groups[tall] = np.unique(group, return_inverse=True)[1]
    _add_small(groups, boxes, heights)
    return groups


def _usual_height(heights: Numbers, sizes: Numbers) -> float:
    """Return the median height, each part counting by its pixels."""
    order = np.argsort(heights)
    total = np.cumsum(sizes[order])
    return float(heights[order][np.searchsorted(total, total[-1] / 2)])


def _add_small(groups: Numbers, boxes: Numbers, heights: Numbers) -> None:
    """Give the small parts to the row that they are in, or that they stand beside."""
    members = np.bincount(groups[groups >= 0])
    is_alone = (groups >= 0) & (members[groups] == 1)
    small = np.flatnonzero((groups < 0) | is_alone)
    middles = (boxes[small, :2] + boxes[small, 2:]) / 2
    sides = (boxes[small, 2:] - boxes[small, :2]).max(1)
    for group in range(groups.max() + 1):
        own = boxes[groups == group]
        if not len(own):
            continue
        height = np.median(own[:, 2] - own[:, 0])
        low = own[:, :2].min(0) - np.array(MAX_BESIDE) * height
        high = own[:, 2:].max(0) + np.array(MAX_BESIDE) * height
        inside = ((middles > low) & (middles < high)).all(1)
        fits = (sides >= MIN_SIDE * height) & (heights[small] < MAX_SMALL * height)
        is_free = (groups[small] < 0) | (is_alone[small] & (groups[small] != group))
        groups[small[inside & fits & is_free]] = group


def _cut_out(ink: Ink, labels: Labels, boxes: Numbers, members: Numbers) -> Row | None:
    heights = boxes[members, 2] - boxes[members, 0]
    usual = float(np.median(heights[heights >= 0.5 * heights.max()]))
    tall = members[heights >= 0.5 * usual]
    if not len(tall) or usual < MIN_HEIGHT:
        return None
    top, left = boxes[members, :2].min(0)
    bottom, right = boxes[members, 2:].max(0)
    window = slice(top, bottom), slice(left, right)
    is_own = np.zeros(labels.max() + 1, np.bool_)
    is_own[members + 1] = True
    own = is_own[labels[window]]
    other = (labels[window] > 0) & ~own
    levels = np.where(ndimage.maximum_filter(own, 3) & ~other, ink.levels[window], 0)
    scale = usual / ROW_HEIGHT
    height, width = (max(1, round(side / scale)) for side in levels.shape)
    levels = resized(levels.astype(np.float32), (height, width))
    levels = np.clip(np.pad(levels, 1), 0, 1.2).astype(np.float32)
    middle = float(np.median((boxes[tall, 0] + boxes[tall, 2]) / 2 - top)) / scale + 1
    return Row(
        levels,
        levels > ink.threshold,
        float(ROW_HEIGHT),
        middle,
        float(top - scale),
        float(left - scale),
        scale,
    )


def _in_reading_order(rows: list[Row]) -> list[Row]:
    """Sort by lines: rows whose middles are within half a height of each other are one."""
    lines: list[list[Row]] = []
    for row in sorted(rows, key=lambda row: row.top + row.middle * row.scale):
        middle = row.top + row.middle * row.scale
        for line in lines[-1:]:
            first = line[0]
            reach = 0.5 * max(row.height * row.scale, first.height * first.scale)
            if abs(first.top + first.middle * first.scale - middle) < reach:
                line.append(row)
                break
        else:
            lines.append([row])
    return [row for line in lines for row in sorted(line, key=lambda row: row.left)]
