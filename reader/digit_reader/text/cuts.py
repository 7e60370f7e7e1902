"""Cuts a row's ink into pieces: connected parts, and those cut where strokes are thin.

A cut is the path from the top to the bottom that crosses least ink; it bends around strokes, as
water that falls along them. There are more pieces than digits: see `digit_reader.text.path`.
Where digits overlap, the ink around a cut is part of both.
"""

import math
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from digit_classifier.normalizer import Mask, Numbers, boxes_of
from digit_reader.ink.rows import Row
from serving.errors import InvalidRequest

MIN_SIZE = 0.004
"""Share of the height squared: smaller parts are specks."""
MIN_PIECE = 0.012
"""Share of the height squared: a smaller piece stays with its neighbour."""
MIN_CUT_WIDTH = 0.36
"""Share of the height: a narrower part is one digit, or a piece of one."""
BAND = 0.16
"""Share of the height by which a cut may bend to each side."""
MAX_CUT = 0.7
"""Share of the height: the most ink that a cut crosses."""
MIN_CUT_DISTANCE = 0.15
"""Share of the height that is between a cut and every better one, on average."""
SLANTS = (-0.3, 0.0, 0.3)
"""Slants of the lines that cuts bend around, in columns for a row."""
MAX_PIECES = 200
"""The most pieces of a row."""
SHARED = 0.65
"""Share of the pen's width: how far from where a cut crosses ink both sides may own it."""
CUT_WORK = 15
"""What looking for cuts costs, in candidates."""
_NO_CUT = 0.02
"""Share of the height: a cut that crosses less ink went around the part."""
_SLOPE = 0.02
"""The cost of a step to the side, in ink: of two cuts, the straighter one."""
_STEPS = np.array([0, -1, 1])


class Work:
    """What a page may cost: a candidate for a digit is one."""

    def __init__(self, most: float = math.inf) -> None:
        self._most = self.left = most

    def spend(self, number: int) -> None:
        """Take some of it.

        Raises:
            InvalidRequest: it is not left.
        """
        self.left -= number
        if self.left < 0:
            raise InvalidRequest(f"more than {self._most:g} marks that may be digits")


class Pieces(NamedTuple):
    """A row's pieces from the left to the right."""

    labels: npt.NDArray[np.int32]
    """(H, W): the piece of each pixel, 1 to N, or 0."""
    boxes: Numbers
    """(N, 4) top, left, bottom, right; the last two are exclusive."""
    parts: Numbers
    """(N,): the number of the connected part that a piece was cut from."""
    costs: npt.NDArray[np.float32]
    """(N,): ink crossed by the cut on a piece's left, in heights; 0 where a part begins."""
    shared: npt.NDArray[np.int32]
    """(H, W): ink around what a cut crosses, which both sides may own: the piece on the right of
    the cut, or 0."""


def cut(row: Row, work: Work | None = None) -> Pieces:
    """Cut the ink of a row into pieces; takes of `work` what that costs."""
    work = work or Work()
    parts, count = ndimage.label(row.mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    labels, shared = np.zeros(parts.shape, np.int32), np.zeros(parts.shape, np.int32)
    reach = SHARED * pen_width(row)
    found: list[tuple[float, int, int, float]] = []
    for part, window in enumerate(ndimage.find_objects(parts), 1):
        if sizes[part] < max(4, MIN_SIZE * row.height**2):
            continue
        mask = parts[window] == part
        work.spend(CUT_WORK * _may_be_cut(mask, row.height))
        pieces, around, costs = _pieces_of(row.levels[window] * mask, mask, row.height, reach)
        shared[window] += np.where(around > 0, around + len(found), 0).astype(np.int32)
        for number, cost in enumerate(costs, 1):
            own = pieces == number
            columns = np.flatnonzero(own.any(0))
            middle = window[1].start + (columns[0] + columns[-1]) / 2
            found.append((middle, len(found) + 1, part, cost))
            labels[window][own] = len(found)
    found = sorted(found)[:MAX_PIECES]
    order = np.zeros(labels.max() + 1, np.int32)
    order[[old for _, old, _, _ in found]] = np.arange(1, len(found) + 1)
    labels, shared = order[labels], order[shared]
    return Pieces(
        labels,
        boxes_of(labels),
        np.array([part for _, _, part, _ in found], np.intp),
        np.array([cost for _, _, _, cost in found], np.float32),
        shared,
    )


def pen_width(row: Row) -> float:
    """Return the usual width of a row's strokes, in its pixels."""
    levels = np.clip(row.levels, 0, 1)
    edge = np.hypot(np.diff(levels, axis=0)[:, 1:], np.diff(levels, axis=1)[1:]).sum()
    return float(2 * levels.sum() / max(edge, 1e-6))


class _Cut(NamedTuple):
    """The pieces of one connected part."""

    labels: npt.NDArray[np.int32]
    """(H, W): the piece of each pixel, 1 to N, or 0."""
    shared: npt.NDArray[np.int32]
    """(H, W): see `Pieces`."""
    costs: list[float]
    """Costs of each piece's left cut."""


def _pieces_of(levels: npt.NDArray[np.float32], mask: Mask, height: float, reach: float) -> _Cut:
    """Cut one part; ink within `reach` of where a cut crosses ink is shared."""
    if not _may_be_cut(mask, height):
        return _Cut(mask.astype(np.int32), np.zeros(mask.shape, np.int32), [0.0])
    cuts, costs = _cuts(levels, height)
    cuts = np.sort(cuts, axis=0)  # cuts do not cross
    columns = np.arange(mask.shape[1])
    pieces = (columns >= cuts[..., None]).sum(0)
    sizes = np.bincount(pieces[mask], minlength=len(costs) + 1)
    number, kept, size = np.empty(len(sizes), np.int32), [0.0], 0
    crossed = np.zeros(mask.shape, np.int32)
    for index, cost in enumerate([0.0, *costs]):  # what is small stays with its left neighbour
        if size >= MIN_PIECE * height**2 and sizes[index:].sum() >= MIN_PIECE * height**2:
            kept.append(cost)
            crossed[np.arange(len(mask)), np.clip(cuts[index - 1], 0, columns[-1])] = len(kept)
            size = 0
        number[index] = len(kept)
        size += sizes[index]
    crossed *= mask
    return _Cut(number[pieces] * mask, mask * nearest(crossed, reach), kept)


def _may_be_cut(mask: Mask, height: float) -> bool:
    return mask.shape[1] >= MIN_CUT_WIDTH * height and len(mask) >= 3


def nearest(labels: npt.NDArray[np.int32], reach: float) -> npt.NDArray[np.int32]:
    """Return each pixel's label, or the nearest label within `reach`; 0 elsewhere."""
    if not labels.any():
        return labels
    distances, (y, x) = ndimage.distance_transform_edt(labels == 0, return_indices=True)
    return np.where(distances <= reach, labels[y, x], 0).astype(np.int32)


def _cuts(
    levels: npt.NDArray[np.float32], height: float
) -> tuple[npt.NDArray[np.intp], list[float]]:
    """Return (N, H) columns at which cuts begin their right side, and the ink of each."""
    reach = max(1, round(BAND * height))
    paths, costs = _falls(np.clip(levels, 0, 1), reach)
    costs /= height
    is_open = (costs > _NO_CUT) & (costs <= MAX_CUT)
    chosen = []
    while is_open.any():  # the cut of least ink, and none too near to it
        best = int(np.where(is_open, costs, np.inf).argmin())
        chosen.append(best)
        is_open &= np.abs(paths - paths[best]).mean(1) >= MIN_CUT_DISTANCE * height
        is_open[best] = False
    chosen.sort(key=lambda index: float(paths[index].mean()))
    return paths[chosen], costs[chosen].tolist()


def _falls(
    ink: npt.NDArray[np.float32], reach: int
) -> tuple[npt.NDArray[np.intp], npt.NDArray[np.float64]]:
    """Find the path of least ink around each slanted line: (N, H) columns, and (N,) ink."""
    rows, width = ink.shape
    slants = np.array(SLANTS)[:, None]
    shifts = np.rint(slants * (np.arange(rows) - rows / 2)).astype(np.intp)  # (S, H)
    margin = reach + int(np.abs(shifts).max())
    columns = margin - reach + shifts[..., None] + np.arange(width + 2 * reach)
    padded = np.pad(ink, ((0, 0), (margin, margin)))
    sheared = padded[np.arange(rows)[:, None], columns]
    bands = np.lib.stride_tricks.sliding_window_view(sheared, 2 * reach + 1, axis=2)[:, :, 2:-1]
    bands = np.moveaxis(bands, 1, 0)  # (H, S, N, B)
    total, steps = bands[0], np.zeros(bands.shape, np.int8)
    options = np.full((3, *total.shape), np.inf, np.float32)  # straight on, left, right
    for y in range(1, rows):
        options[0] = total
        np.add(total[..., :-1], _SLOPE, out=options[1, ..., 1:])
        np.add(total[..., 1:], _SLOPE, out=options[2, ..., :-1])
        steps[y] = options.argmin(0)
        total = options.min(0)
        total += bands[y]
    at, (slant, lines) = total.argmin(2), np.indices(bands.shape[1:3])
    paths = np.empty((*at.shape, rows), np.intp)
    costs = np.take_along_axis(total, at[..., None], 2).astype(np.float64)
    for y in range(rows - 1, -1, -1):
        paths[..., y] = lines + 2 + at - reach + shifts[:, y, None]
        at = at + _STEPS[steps[y, slant, lines, at]] if y else at
    return paths.reshape(-1, rows), costs.ravel()
