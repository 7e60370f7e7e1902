"""Finds the boxes of forms by their four sides; see docs/decisions/0034."""

import numpy as np
from scipy import ndimage

from serving.pictures.ink.parts import Mask
from serving.pictures.ink.strokes import (
    MAX_LINES,
    MIN_SIDE,
    Runs,
    chosen_parts,
    parts_of,
    thickness,
)

MIN_STRAIGHT = 0.75
"""Of a box's side: how much of it is straight; of a zero's it is half."""
MAX_ROUND = 0.2
"""Of a box's height: its corners' radius."""
MIN_ASPECT, MAX_ASPECT = 0.65, 8
"""Of a box: width by height; a narrow 8 or 0 has less."""
MIN_NEAR = 0.25
"""Of a straight line: how much of it lies along boxes that were found, if it is their side."""
MAX_BREADTH = 2
"""Times the usual thickness of lines and a pixel: a thicker one is a stroke."""
NEIGHBOURS = 4
"""Vertical lines to the right of one that may be its box's other side."""

Box = tuple[int, int, int, int]
"""Top, left, height, width."""


def find_boxes(across: Runs, down: Runs) -> list[Box]:
    """Find boxes: two vertical lines, and two horizontal ones from the one to the other.

    What is written may touch the lines or cross them, and so may other lines.
    """
    mask, level = across.mask, across.of(MIN_SIDE)
    parts = parts_of(down.of(MIN_SIDE).T)[1]
    sides = parts[parts[:, 3] <= np.maximum(4, parts[:, 2] / 6)]
    sides = sides[np.argsort(sides[:, 1], kind="stable")][:MAX_LINES]
    boxes: list[Box] = []
    for number, (top, left, height, width) in enumerate(sides.tolist()):
        others, reach, corner = sides[number + 1 :], _reach(height), round(MAX_ROUND * height)
        is_like = np.abs(others[:, 0] - top) <= 2 * reach
        is_like &= np.abs(others[:, 0] + others[:, 2] - top - height) <= 2 * reach
        is_like &= others[:, 1] >= left + max(MIN_SIDE, MIN_ASPECT * height)
        is_like &= others[:, 1] <= left + MAX_ASPECT * height
        for y, right, h, w in others[is_like][:NEIGHBOURS].tolist():
            above = _edge(level[:, left + width : right], min(top, y) - corner, max(top, y) + reach)
            low, high = sorted((top + height, y + h))
            below = _edge(level[:, left + width : right], low - reach, high + corner)
            if below - above >= MIN_SIDE and _has_sides(mask, above, left, below, right + w):
                boxes.append((above, left, below - above, right + w - left))
                break
    return boxes


def _edge(level: Mask, low: int, high: int) -> int:
    """Return the row of the longest horizontal line."""
    return max(0, low) + int(level[max(0, low) : high].sum(1).argmax())


def _has_sides(mask: Mask, top: int, left: int, bottom: int, right: int) -> bool:
    """Return whether there is ink along all four sides; a zero's are half blank."""
    reach = _reach(min(bottom - top, right - left))
    sides = (
        mask[max(0, top - reach) : top + reach, left:right].any(0),
        mask[bottom - reach : bottom + reach, left:right].any(0),
        mask[top:bottom, left : left + 2 * reach].any(1),
        mask[top:bottom, right - 2 * reach : right].any(1),
    )
    return all(side.mean() >= MIN_STRAIGHT for side in sides)


def with_sides(
    across: Runs, down: Runs, level: Mask, upright: Mask, boxes: list[Box],
    near: tuple[Mask, Mask],
) -> tuple[Mask, Mask]:  # fmt: skip
    """Add the sides of boxes, which lie `near`, and what continues them, to lines of both kinds."""
    height, width = (int(np.median(sides)) for sides in np.array(boxes)[:, 2:].T)
    rows, columns = (
        across.of(max(MIN_SIDE, int(0.7 * width))),
        down.of(max(MIN_SIDE, int(0.7 * height))),
    )
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


def edges_of(boxes: list[Box], shape: tuple[int, ...]) -> Mask:
    """Return where the upper and lower sides of boxes are."""
    edges = np.zeros(shape, np.bool_)
    for y, x, h, w in boxes:
        reach = _reach(min(h, w))
        for side in (y, y + h):
            rows = slice(max(0, side - reach), side + reach)
            edges[rows, max(0, x - reach) : x + w + reach] = True
    return edges


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
