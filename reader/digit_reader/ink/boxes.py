"""Finds the boxes of forms by their four sides; see docs/decisions/0034."""

from itertools import compress

import numpy as np
from scipy import ndimage

from digit_classifier.normalizer import Labels, Mask, Numbers
from digit_reader.ink.strokes import (
    MAX_LINES,
    MIN_SIDE,
    Runs,
    chosen_parts,
    parts_of,
    thickness,
)

MIN_STRAIGHT = 0.75
"""Share of a box's side that is straight; a zero's is half."""
MAX_ROUND = 0.2
"""Share of a box's height that its corners' radius is."""
MAX_COLUMN, MIN_ASPECT, MAX_ASPECT = 0.25, 0.65, 40
"""Width by height of a box. Between the first two may be a narrow 8 or 0. A narrower box is a
column of a table, or of squared paper, whose lines are as long as the page is high."""
MIN_NEAR = 0.25
"""Share of a straight line that lies along boxes that were found, if it is their side."""
MIN_BREADTH, MAX_SHARE = 2.5, 0.13
"""Pixels of a side's mean breadth, and its share of the length: a thicker line is a stroke."""
MAX_BREADTH = 2
"""Times the usual thickness of lines and a pixel: a thicker one is a stroke."""
MIN_UNCLOSED, MAX_UNCLOSED = 3, 200
"""Equal boxes without an upper side, or a lower one; and how many are compared."""
MAX_MISSES = 500
"""Pairs of vertical lines that are no box; honest pages have at most 200."""
NEIGHBOURS = 4
"""Vertical lines to the right of one that may be its box's other side."""
MAX_SLOPE = 0.06
"""Rise of a side by its length."""

Side = tuple[int, int, int, int]
"""Top, left, height, width."""
Box = tuple[int, int, int, int, int]
"""Top, left, height, width; and how much lower the right side is than the left one."""


def find_boxes(across: Runs, down: Runs) -> list[Box]:
    """Find boxes: two vertical lines, and two horizontal ones from the one to the other.

    What is written may touch the lines or cross them, and so may other lines.
    """
    level = across.of(MIN_SIDE)
    lines, (labels, parts) = parts_of(level)[0], parts_of(down.of(MIN_SIDE).T)
    breadths = np.bincount(labels.ravel())[1:] / parts[:, 2]
    sides = parts[breadths <= np.maximum(MIN_BREADTH, MAX_SHARE * parts[:, 2])]
    sides = sides[np.argsort(sides[:, 1], kind="stable")][:MAX_LINES]
    boxes: list[Box] = []
    unclosed: list[Box] = []
    misses = 0
    for number, side in enumerate(sides.tolist()):
        if misses > MAX_MISSES:
            break
        others = sides[number + 1 :]
        for other in others[_are_like(side, others)][:NEIGHBOURS].tolist():
            box, num_level = _box(across.mask, lines, side, other)
            if num_level == 2:
                boxes.append(box)
                break
            misses += 1
            if num_level:
                unclosed.append(box)
    like = np.array(unclosed[:MAX_UNCLOSED], np.intp).reshape(-1, 5)
    is_same = np.abs(like[:, None] - like)[..., [0, 2, 3]] <= 0.15 * like[:, None, 2:3]
    return boxes + list(compress(unclosed, is_same.all(2).sum(1) >= MIN_UNCLOSED))


def _are_like(side: Side, others: Numbers) -> Mask:
    """Return which lines to the right may be the other side of a line's box."""
    top, left, height, _ = side
    ends, distance = others[:, 0] + others[:, 2], others[:, 1] - left
    reach = 2 * _reach(height)
    lower = np.maximum(reach, 2 + MAX_SLOPE * distance)
    return np.asarray(
        (np.abs(others[:, 2] - height) <= reach)
        & (np.abs(others[:, 0] - top) <= lower)
        & (np.abs(ends - top - height) <= lower)
        & (distance >= MIN_SIDE)
        & ((distance <= MAX_COLUMN * height) | (distance >= MIN_ASPECT * height))
        & (distance <= MAX_ASPECT * height)
    )


def _box(mask: Mask, lines: Labels, one: Side, other: Side) -> tuple[Box, int]:
    """Return the box of two vertical lines, and how many horizontal sides it has.

    A single one has to end at both lines: ones on a ruled line are no boxes.
    """
    (top, left, height, width), (y, right, h, w) = one, other
    steepest = 1 + round(MAX_SLOPE * (right - left))
    rise = max(-steepest, min(steepest, min(y - top, y + h - top - height, key=abs)))
    columns, end = np.arange(left + width, right), right + w
    slope = np.rint(np.linspace(0, rise, len(columns))).astype(np.intp)
    corner, reach = max(3, round(MAX_ROUND * height)), _reach(height)
    edges = np.array([min(top, y - rise), max(top + height, y + h - rise)])
    for number, (low, high) in enumerate(((-corner, reach), (-reach, corner))):
        found = _band(lines, slope + edges[number], columns, low, high).sum(1)
        if found.max() >= MIN_STRAIGHT / 2 * len(columns):
            edges[number] += int(found.argmax()) + low
    low, high = edges.tolist()
    box = low + rise // 2, left, high - low, end - left, rise
    reach = _reach(min(high - low, end - left))
    uprights = (
        mask[max(0, low) : high, left : left + 2 * reach].T,
        mask[max(0, low + rise) : high + rise, end - 2 * reach : end].T,
    )
    if high - low < MIN_SIDE or not all(map(_is_straight, uprights)):
        return box, 0
    reach += (end - left) // 100  # long lines may bend
    beyond = np.append(left - 2 - np.arange(reach), end + 1 + np.arange(reach))
    beyond = np.clip(beyond, 0, mask.shape[1] - 1)
    level = [row for row in edges if _is_straight(_band(mask, slope + row, columns, -reach, reach))]
    goes_on = len(level) == 1 and (
        _band(mask, np.full_like(beyond, level[0]), beyond, -reach, reach).any(0).mean() > 0.5
    )
    return box, 0 if goes_on else len(level)


def _band(levels: Labels | Mask, rows: Numbers, columns: Numbers, low: int, high: int) -> Mask:
    """Return (high - low, N): the ink in the rows from `low` to `high` beside each of N points."""
    band = rows + np.arange(low, high)[:, None]
    inside = np.minimum(np.maximum(band, 0), len(levels) - 1)  # np.clip is slower
    return np.asarray(levels[inside, columns] > 0)


def _is_straight(band: Mask) -> bool:
    """Return whether there is ink along a side; a zero's are half blank."""
    return bool(np.count_nonzero(band.any(0)) >= MIN_STRAIGHT * band.shape[1])


def with_sides(
    across: Runs,
    down: Runs,
    level: Mask,
    upright: Mask,
    boxes: list[Box],
    near: tuple[Mask, Mask],
) -> tuple[Mask, Mask]:
    """Add the sides of boxes, which lie `near`, and what continues them, to lines of both kinds."""
    height, width = (int(np.median(sides)) for sides in np.array(boxes)[:, 2:4].T)
    rows = across.of(max(MIN_SIDE, int(0.7 * width)))
    columns = down.of(max(MIN_SIDE, int(0.7 * height)))
    level = level | _along(near[0], rows)
    upright = upright | _along(near[1].T, columns).T
    upright |= _joining(level, columns.T)
    return level | _joining(upright.T, rows.T).T, upright


def _along(near: Mask, level: Mask) -> Mask:
    """Return the horizontal lines that lie where boxes' sides are, but no thicker strokes."""
    labels, parts = parts_of(level)
    sizes = np.bincount(labels.ravel())[1:]
    along = np.flatnonzero(
        np.bincount(labels[near], minlength=len(sizes) + 1)[1:] >= MIN_NEAR * sizes
    )
    breadths = sizes[along] / parts[along, 3]
    usual = np.median(breadths) if len(along) else 0
    return chosen_parts(labels, along[breadths <= MAX_BREADTH * (usual + 1)])


def edges_of(boxes: list[Box], shape: tuple[int, ...]) -> tuple[Mask, Mask]:
    """Return where the horizontal sides of boxes are, and the vertical ones.

    A box's horizontal sides are looked for beside it, too: the next box may lack a side.
    """
    level, upright = np.zeros(shape, np.bool_), np.zeros(shape, np.bool_)
    for y, x, h, w, rise in boxes:
        reach = _reach(min(h, w))
        beside = reach + w * (w < 2 * h)
        for side in (y - rise / 2, y - rise / 2 + h):
            _draw(level, (side, x), (w, rise), beside, reach)
        for side in (x, x + w):
            turned = (side + rise * h / w / 2, y), (h, -rise * h / w)
            _draw(upright.T, *turned, reach + abs(rise), reach)
    return level, upright


def _draw(
    level: Mask, start: tuple[float, float], size: tuple[int, float], beside: int, reach: int
) -> None:
    """Draw a line of some width and rise, and what continues it, `reach` up and down."""
    (y, x), (width, rise) = start, size
    columns = np.arange(max(0, int(x) - beside), min(level.shape[1], int(x) + width + beside))
    rows = np.rint(y + (columns - x) * rise / width).astype(np.intp)
    band = rows + np.arange(-reach, reach)[:, None]
    level[np.clip(band, 0, len(level) - 1), columns] = True


def _joining(level: Mask, upright: Mask) -> Mask:
    """Return the vertical lines whose both ends are at horizontal lines: other boxes' sides."""
    grown = ndimage.maximum_filter(level, 5)
    labels, parts = parts_of(upright)
    sizes = np.bincount(labels.ravel())[1:]
    thickest = MAX_BREADTH * (thickness(level) + 1)
    joining = [
        number
        for number, (y, x, h, w) in enumerate(parts.tolist())
        if sizes[number] <= thickest * h
        and grown[y : y + 4, x : x + w].any()
        and grown[y + h - 4 : y + h, x : x + w].any()
    ]
    return chosen_parts(labels, np.array(joining, np.intp))


def remains(rest: Mask, near: Mask) -> Mask:
    """Return the parts that lie where the sides of boxes are, such as round corners."""
    labels, count = ndimage.label(rest, np.ones((3, 3)))
    is_outside = np.zeros(count + 1, np.bool_)
    is_outside[labels[~near]] = True
    return np.asarray(rest & ~is_outside[labels])


def _reach(side: int) -> int:
    """Return how far from a box's edge its sides may be."""
    return max(2, round(0.06 * side))
