"""Removes ruled lines, and the boxes and combs of forms, from ink; what crosses them stays."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from serving.pictures.ink.parts import Levels, Mask, Numbers

MIN_SPAN = 0.6
"""Of the picture's width: how much of it a ruled line covers."""
MAX_THICKNESS = 0.015
"""Of the picture's longer side: a thicker line is a stroke, such as the bar of a large 4."""
MAX_SKEW = 0.04
"""Rise of a line from its one end to the other, for each pixel."""
MIN_STRAIGHT = 0.75
"""Of a box's side: how much of it is straight; of a zero's it is half."""
MIN_SIDE = 16
"""Pixels of a box's side, or of a line under a digit."""
MAX_ROUND = 0.2
"""Of a box's height: its corners' radius."""
MIN_ASPECT, MAX_ASPECT = 0.65, 8
"""Of a box: width by height; a narrow 8 or 0 has less."""
MIN_NEAR = 0.25
"""Of a straight line: how much of it lies along boxes that were found, if it is their side."""
MIN_FLAT = 8
"""Width by height of a line under a digit; the bar of a 5 is less flat."""
MIN_TOOTH = 10
"""Pixels of a tooth of a comb."""
MAX_BREAK = 4
"""Pixels without ink in a line."""
MAX_LINES = 1000
"""That are compared with each other."""
MAX_BREADTH = 2
"""Times the usual thickness of lines and a pixel: a thicker one is a stroke."""
NEIGHBOURS = 4
"""Vertical lines to the right of one that may be its box's other side."""

_Box = tuple[int, int, int, int]
"""Top, left, height, width."""


class _Runs:
    """The horizontal runs of ink, which may rise by a pixel."""

    def __init__(self, mask: Mask) -> None:
        self.mask = mask
        self._thick = ndimage.maximum_filter(mask.view(np.uint8), (3, MAX_BREAK + 1))

    def of(self, length: int) -> Mask:
        """Keep those of some length."""
        length |= 1
        eroded = ndimage.minimum_filter1d(self._thick, length + MAX_BREAK, axis=1, mode="constant")
        opened = ndimage.maximum_filter1d(eroded, length, axis=1, mode="constant")
        return np.asarray(self.mask & (opened > 0))


def without_ruling(ink: Levels, threshold: float, faintest: float) -> Levels:
    """Return (H, W) ink with lines and boxes set to 0.

    Args:
        ink: levels above the paper.
        threshold: what is above is ink.
        faintest: what is above may be a line.
    """
    mask = ink > faintest
    across, down = _Runs(mask), _Runs(np.ascontiguousarray(mask.T))
    level, upright = _combs(across, down)
    level |= _ruled(across) | _underlines(across)
    upright |= _ruled(down).T
    boxes = _boxes(across, down)
    near = _edges(boxes, mask.shape), _edges([_turned(box) for box in boxes], mask.T.shape).T
    if boxes:
        level, upright = _with_sides(across, down, level, upright, boxes, near)
    lines = _without_crossings(mask, level, upright)
    if not lines.any():
        return ink
    if boxes:
        lines |= _remains(mask & ~lines, near[0] | near[1])
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
    length = 2 * _thickness(lines) + 2
    levels = mask.view(np.uint8)
    low, high = (length - 1) // 2, length // 2
    runs = np.lib.stride_tricks.sliding_window_view(
        np.pad(levels, ((low, high), (0, 0))), length, 0
    )
    eroded = runs.min(-1)
    grown = np.pad(eroded, ((high, low), (0, 0)))
    opened = np.lib.stride_tricks.sliding_window_view(grown, length, 0).max(-1)
    return np.asarray(opened == 0)


def _thickness(lines: Mask) -> int:
    """Return the mean thickness of horizontal lines, 1 or more."""
    edges = int(np.count_nonzero(np.diff(lines.astype(np.int8), axis=0)))
    return max(1, round(2 * int(np.count_nonzero(lines)) / max(edges, 1)))


def _parts(mask: Mask) -> tuple[Numbers, Numbers]:
    """Return (H, W) numbers of the connected parts, from 1, and their boxes: (N, 4) y, x, h, w."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    boxes = [
        (y.start, x.start, y.stop - y.start, x.stop - x.start)
        for y, x in ndimage.find_objects(labels)
    ]
    return labels, np.array(boxes, np.intp).reshape(-1, 4)


def _chosen(labels: Numbers, chosen: Numbers) -> Mask:
    """Return where the parts of these indexes are."""
    is_chosen = np.zeros(labels.max(initial=0) + 1, np.bool_)
    is_chosen[chosen + 1] = True
    return np.asarray(is_chosen[labels])


def _in_line(lines: Numbers, others: Numbers) -> Mask:
    """Return which of N horizontal lines continue which of M: (N, M)."""
    lines, others = lines.astype(np.float32), others.astype(np.float32)
    y, x = ((lines[:, axis] + lines[:, axis + 2] / 2)[:, None] for axis in (0, 1))
    y_other, x_other = (others[:, axis] + others[:, axis + 2] / 2 for axis in (0, 1))
    return np.asarray(np.abs(y - y_other) <= 3 + MAX_SKEW * np.abs(x - x_other))


def _ruled(runs: _Runs) -> Mask:
    """Find horizontal lines across the picture, level within a few degrees."""
    width = runs.mask.shape[1]
    labels, parts = _parts(runs.of(max(25, width // 8)))
    sizes = np.bincount(labels.ravel())[1:]
    heights, spans = parts[:, 2:].T
    thickest = max(5.0, MAX_THICKNESS * max(runs.mask.shape))
    is_thin = (heights <= np.maximum(4, 0.1 * spans)) & (sizes <= thickest * spans)
    thin = np.flatnonzero(is_thin)[:MAX_LINES]
    same = _in_line(parts[thin], parts[thin]) * spans[thin]
    is_long = (same.sum(1) >= MIN_SPAN * width) & (same.max(1, initial=0) >= width / 5)
    return _chosen(labels, thin[is_long])


def _underlines(across: _Runs) -> Mask:
    """Find short horizontal lines on which digits stand, and what continues them."""
    mask = across.mask
    parts = _parts(mask)[1]
    heights, spans = parts[:, 2:].T
    is_flat = (spans >= MIN_SIDE) & (spans >= MIN_FLAT * heights)
    under = [part for part in parts[is_flat][:MAX_LINES].tolist() if _is_under_ink(mask, *part)]
    if not under:
        return np.zeros_like(mask)
    labels, lines = _parts(across.of(MIN_SIDE))
    flat = np.flatnonzero(lines[:, 3] >= MIN_FLAT / 2 * lines[:, 2])[:MAX_LINES]
    same = _in_line(lines[flat], np.array(under))
    same &= lines[flat, 3:] >= 0.6 * np.array(under)[:, 3]
    return _chosen(labels, flat[same.any(1)])


def _is_under_ink(mask: Mask, y: int, x: int, h: int, w: int) -> bool:
    """Return whether there is ink above a line, and none below."""
    columns = slice(x, x + w)
    return bool(
        mask[max(0, y - w) : y, columns].any() and not mask[y + h : y + h + w, columns].any()
    )


def _boxes(across: _Runs, down: _Runs) -> list[_Box]:
    """Find boxes: two vertical lines, and two horizontal ones from the one to the other.

    What is written may touch the lines or cross them, and so may other lines.
    """
    mask, level = across.mask, across.of(MIN_SIDE)
    parts = _parts(down.of(MIN_SIDE).T)[1]
    sides = parts[parts[:, 3] <= np.maximum(4, parts[:, 2] / 6)]
    sides = sides[np.argsort(sides[:, 1], kind="stable")][:MAX_LINES]
    boxes: list[_Box] = []
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


def _with_sides(
    across: _Runs, down: _Runs, level: Mask, upright: Mask, boxes: list[_Box],
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
    labels, parts = _parts(level)
    sizes = np.bincount(labels.ravel())[1:]
    along = np.flatnonzero(
        np.bincount(labels[near], minlength=len(sizes) + 1)[1:] >= MIN_NEAR * sizes
    )
    breadths = sizes[along] / parts[along, 3]
    usual = np.median(breadths) if len(along) else 0
    return _chosen(labels, along[breadths <= MAX_BREADTH * (usual + 1)])


def _edges(boxes: list[_Box], shape: tuple[int, ...]) -> Mask:
    """Return where the upper and lower sides of boxes are."""
    edges = np.zeros(shape, np.bool_)
    for y, x, h, w in boxes:
        reach = _reach(min(h, w))
        for side in (y, y + h):
            rows = slice(max(0, side - reach), side + reach)
            edges[rows, max(0, x - reach) : x + w + reach] = True
    return edges


def _turned(box: _Box) -> _Box:
    y, x, h, w = box
    return x, y, w, h


def _joining(level: Mask, upright: Mask) -> Mask:
    """Return the vertical lines whose both ends are at horizontal lines: other boxes' sides."""
    grown = ndimage.maximum_filter(level, 5)
    labels, parts = _parts(upright)
    sizes = np.bincount(labels.ravel())[1:]
    thickest = MAX_BREADTH * (_thickness(level) + 1)
    joining = [
        number
        for number, (y, x, h, w) in enumerate(parts.tolist())
        if sizes[number] <= thickest * h
        and grown[y : y + 4, x : x + w].any()
        and grown[y + h - 4 : y + h, x : x + w].any()
    ]
    return _chosen(labels, np.array(joining, np.intp))


def _combs(across: _Runs, down: _Runs) -> tuple[Mask, Mask]:
    """Find combs: a horizontal line on which equal vertical ones stand, equally far apart."""
    bases, lines = _parts(across.of(2 * MIN_SIDE))
    labels, parts = _parts(down.of(MIN_TOOTH).T)
    grown = ndimage.maximum_filter(bases, 3)
    standing: dict[int, list[int]] = {}
    for number, (y, x, h, w) in enumerate(parts.tolist()):
        base = int(grown[y + h - 3 : y + h + 2, x : x + w].max())
        if base and w <= h / 2 and lines[base - 1, 2] <= lines[base - 1, 3] / 8:
            standing.setdefault(base - 1, []).append(number)
    upright, chosen = np.zeros_like(bases, np.bool_), []
    for base, numbers in standing.items():
        heights = parts[numbers, 2]
        usual = np.median(heights)
        equal = np.array(numbers)[np.abs(heights - usual) <= np.maximum(2, 0.1 * usual)]
        if _are_even(parts[equal, 1]) and _are_low(across.mask, parts[equal]):
            chosen.append(base)
            upright |= _chosen(labels, equal)
            for y, x, h, w in _between(parts[equal]):
                upright[y : y + h, x : x + w] |= across.mask[y : y + h, x : x + w]
    return _chosen(bases, np.array(chosen, np.intp)), upright


def _between(teeth: Numbers) -> Iterator[list[int]]:
    """Yield where teeth are missing between others, since digits touch them: y, x, h, w."""
    teeth = teeth[np.argsort(teeth[:, 1])]
    gaps = np.diff(teeth[:, 1])
    for tooth, following, times in zip(teeth, teeth[1:], np.rint(gaps / gaps.min()), strict=False):
        for step in range(1, int(times)):
            yield np.rint(tooth + (following - tooth) * step / times).astype(np.intp).tolist()


def _are_even(places: Numbers) -> bool:
    """Return whether there are three or more, equally far apart; of more some may be missing."""
    gaps = np.diff(np.sort(places))
    if len(gaps) < 2 or gaps.min() < MIN_SIDE:
        return False
    times = np.rint(gaps / gaps.min()) if len(gaps) > 2 else np.ones(len(gaps))
    return bool((np.abs(gaps / times - gaps.min()) <= np.maximum(2, 0.06 * gaps.min())).all())


def _are_low(mask: Mask, teeth: Numbers) -> bool:
    """Return whether teeth are far apart, or digits between them are higher: they are no ones."""
    top, height = int(np.median(teeth[:, 0])), int(np.median(teeth[:, 2]))
    left, right = int(teeth[:, 1].min()), int(teeth[:, 1].max())
    if right - left >= 2.5 * height * (len(teeth) - 1):
        return True
    above = mask[max(0, top - height // 2) : max(0, top - height // 4), left:right]
    return bool(above.any())


def _remains(rest: Mask, near: Mask) -> Mask:
    """Return the parts that lie where the sides of boxes are, such as round corners."""
    labels, count = ndimage.label(rest, np.ones((3, 3)))
    is_outside = np.zeros(count + 1, np.bool_)
    is_outside[labels[~near]] = True
    return np.asarray(rest & ~is_outside[labels])


def _reach(side: int) -> int:
    """Return how far from a box's edge its sides may be."""
    return max(2, round(0.06 * side))
