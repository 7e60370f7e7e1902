"""Cuts a row's ink into pieces: connected parts, and those cut where strokes are thin.

A cut is the path from the top to the bottom that crosses least ink; it bends around strokes, as
water that falls along them. There are more pieces than digits: see `serving.pictures.path`.
"""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from serving.pictures.parts import Mask, Numbers
from serving.pictures.rows import Row

MIN_SIZE = 0.004
"""Of the height squared: smaller parts are specks."""
MIN_PIECE = 0.012
"""Of the height squared: what a cut leaves smaller stays with its neighbour."""
MIN_CUT_WIDTH = 0.36
"""Of the height: a narrower part is one digit, or a piece of one."""
BAND = 0.16
"""Of the height: how far a cut may bend to each side."""
MAX_CUT = 0.45
"""Of the height: the most ink that a cut crosses."""
MIN_CUT_DISTANCE = 0.13
"""Of the height, between neighbouring cuts."""
MAX_PIECES = 200
"""Of a row."""
_NO_CUT = 0.02
"""Of the height: what crosses less ink went around the part."""
_SLOPE = 0.02
"""The cost of a step to the side, in ink: of two cuts, the straighter one."""


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


def cut(row: Row) -> Pieces:
    """Cut the ink of a row into pieces."""
    parts, count = ndimage.label(row.mask, np.ones((3, 3)))
    sizes = np.bincount(parts.ravel(), minlength=count + 1)
    labels = np.zeros(parts.shape, np.int32)
    found: list[tuple[float, int, int, float]] = []
    for part, window in enumerate(ndimage.find_objects(parts), 1):
        if sizes[part] < max(4, MIN_SIZE * row.height**2):
            continue
        mask = parts[window] == part
        pieces, costs = _pieces_of(row.levels[window] * mask, mask, row.height)
        for number, cost in enumerate(costs, 1):
            own = pieces == number
            columns = np.flatnonzero(own.any(0))
            middle = window[1].start + (columns[0] + columns[-1]) / 2
            found.append((middle, len(found) + 1, part, cost))
            labels[window][own] = len(found)
    found = sorted(found)[:MAX_PIECES]
    order = np.zeros(labels.max() + 1, np.int32)
    order[[old for _, old, _, _ in found]] = np.arange(1, len(found) + 1)
    labels = order[labels]
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    return Pieces(
        labels,
        np.array(boxes, np.intp).reshape(-1, 4),
        np.array([part for _, _, part, _ in found], np.intp),
        np.array([cost for _, _, _, cost in found], np.float32),
    )


def _pieces_of(
    levels: npt.NDArray[np.float32], mask: Mask, height: float
) -> tuple[npt.NDArray[np.int32], list[float]]:
    """Cut one part; returns its pixels' pieces, 1 to N, and the cost of each one's left cut."""
    if mask.shape[1] < MIN_CUT_WIDTH * height or len(mask) < 3:
        return mask.astype(np.int32), [0.0]
    cuts, costs = _cuts(levels, height)
    columns = np.arange(mask.shape[1])
    pieces = np.zeros(mask.shape, np.int32)
    for each in np.sort(cuts, axis=0):  # cuts do not cross
        pieces += columns >= each[:, None]
    sizes = np.bincount(pieces[mask], minlength=len(costs) + 1)
    number, kept, size = np.empty(len(sizes), np.int32), [0.0], 0
    for index, cost in enumerate([0.0, *costs]):  # what is small stays with its left neighbour
        if size >= MIN_PIECE * height**2 and sizes[index:].sum() >= MIN_PIECE * height**2:
            kept.append(cost)
            size = 0
        number[index] = len(kept)
        size += sizes[index]
    return number[pieces] * mask, kept


def _cuts(
    levels: npt.NDArray[np.float32], height: float
) -> tuple[npt.NDArray[np.intp], list[float]]:
    """Return (N, H) columns at which cuts begin their right side, and the ink of each."""
    rows, width = levels.shape
    reach = max(1, round(BAND * height))
    starts = np.arange(2, width - 1)
    ink = np.pad(np.clip(levels, 0, 1), ((0, 0), (reach, reach)))
    bands = np.lib.stride_tricks.sliding_window_view(ink, 2 * reach + 1, axis=1)[:, starts]
    total, steps = bands[0].astype(np.float64), np.empty(bands.shape, np.int8)
    for y in range(1, rows):
        sides = np.pad(total, ((0, 0), (1, 1)), constant_values=np.inf)
        options = np.stack([total, sides[:, :-2] + _SLOPE, sides[:, 2:] + _SLOPE])
        steps[y] = options.argmin(0)
        total = options.min(0) + bands[y]
    ends = total.argmin(1)
    costs = total[np.arange(len(starts)), ends] / height
    chosen = _thinnest(costs, round(MIN_CUT_DISTANCE * height))
    cuts = np.empty((len(chosen), rows), np.intp)
    for number, index in enumerate(chosen):
        at = int(ends[index])
        for y in range(rows - 1, -1, -1):
            cuts[number, y] = starts[index] + at - reach
            if y:
                at += (0, -1, 1)[steps[y, index, at]]
    return cuts, [float(costs[index]) for index in chosen]


def _thinnest(costs: npt.NDArray[np.float64], distance: int) -> list[int]:
    """Choose the cuts of least ink, none within `distance` of a better one, left to right."""
    chosen: list[int] = []
    smooth = costs + 1e-6 * np.arange(len(costs))
    for index in np.argsort(smooth, kind="stable"):
        if costs[index] > MAX_CUT:
            break
        if costs[index] > _NO_CUT and all(
            abs(index - other) >= max(2, distance) for other in chosen
        ):
            chosen.append(int(index))
    return sorted(chosen)
