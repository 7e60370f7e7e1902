"""Joins neighbouring pieces of a row to candidates for digits, and makes an image of each."""

from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_classifier.normalizer import (
    BOX,
    HEIGHT,
    PEN_WIDTHS,
    Levels,
    Mask,
    Numbers,
    within,
)
from digit_reader.ink.rows import Row
from digit_reader.text.cuts import Pieces, Work, nearest, pen_width
from serving.tensors import Images

MAX_JOINED = 8
"""Pieces of a candidate."""
MAX_WIDTH = 1.5
"""Share of the row's height."""
MAX_BLANK = 0.3
"""Share of the row's height: blank columns within a candidate."""
NUM_MEASURES = 8
"""Numbers that describe a candidate's place in its row."""
MAX_PARTS, MIN_PART = 12, 0.6
"""Connected parts of a row that are shown whole, and the least longer side, of the row's height."""


class Candidates(NamedTuple):
    """A row's candidates: N pieces next to each other."""

    spans: Numbers
    """(N, 2): the first piece, from 0, and the one after the last."""
    boxes: Numbers
    """(N, 4) top, left, bottom, right in the row."""
    images: Images
    """(N, 784) uint8, as MNIST's."""
    surroundings: Images
    """(N, 784) uint8: all the ink of the row, at the same scale and place."""
    measures: npt.NDArray[np.float32]
    """(N, NUM_MEASURES): see `_measures`."""
    is_wide: Mask
    """(N,): whether it has the ink that its cuts share with the neighbours, too."""
    parts: Images
    """(K, 784) uint8: some connected parts, whole."""


def join(row: Row, pieces: Pieces, work: Work | None = None) -> Candidates:
    """Make all candidates of a row: runs of pieces; where they are cut, with shared ink, too.

    It takes their number of `work`.
    """
    spans, boxes = _spans(row, pieces)
    measures = _measures(row, pieces, spans, boxes)
    is_cut = np.append(pieces.costs > 0, False)
    widened = np.flatnonzero(is_cut[spans].any(1))
    chosen = np.append(np.arange(len(spans)), widened)
    (work or Work()).spend(len(chosen))
    is_wide = np.arange(len(chosen)) >= len(spans)
    spans, boxes, measures = spans[chosen], boxes[chosen], measures[chosen]
    pen = pen_width(row)
    levels, radius = _with_usual_pen(row, pen)
    own, shared = nearest(pieces.labels, radius), nearest(pieces.shared, radius)
    margin = round(2 * row.height)
    page = Image.fromarray(np.pad(levels, margin))
    images = np.zeros((len(spans), HEIGHT, HEIGHT), np.uint8)
    around = np.empty(images.shape, np.float32)
    for number, ((first, last), box) in enumerate(zip(spans, boxes, strict=True)):
        reach = radius + is_wide[number] * round(pen)
        top, left, bottom, right = np.maximum(box + np.array([-1, -1, 1, 1]) * reach, 0).tolist()
        window = slice(top, bottom), slice(left, right)
        alone = (own[window] > first) & (own[window] <= last)
        if is_wide[number]:
            alone |= (shared[window] == first + 1) | (shared[window] == last + 1)
        y, x, step = _place(levels[window] * alone, images[number])
        around[number] = _frame(page, y + top + margin, x + left + margin, step)
    flat, seen = (len(spans), HEIGHT * HEIGHT), np.rint(around * 255).astype(np.uint8)
    return Candidates(
        spans,
        boxes,
        images.reshape(flat),
        seen.reshape(flat),
        measures,
        is_wide,
        _parts(levels, own, pieces, row.height),
    )


def _parts(levels: Levels, own: npt.NDArray[np.int32], pieces: Pieces, height: float) -> Images:
    """Make images of some connected parts, of any width: (K, 784)."""
    images: list[Images] = []
    for part in np.unique(pieces.parts):
        members = np.flatnonzero(pieces.parts == part)
        top, left = pieces.boxes[members, :2].min(0)
        bottom, right = pieces.boxes[members, 2:].max(0)
        if max(bottom - top, right - left) >= MIN_PART * height and len(images) < MAX_PARTS:
            window = slice(top, bottom), slice(left, right)
            images.append(np.zeros((HEIGHT, HEIGHT), np.uint8))
            _place(levels[window] * np.isin(own[window], members + 1), images[-1])
    return np.array(images, np.uint8).reshape(-1, HEIGHT * HEIGHT)


def _with_usual_pen(row: Row, pen: float) -> tuple[Levels, int]:
    """Thicken or thin a row's strokes to MNIST's widths; returns the reach, too."""
    fine = row.height / BOX
    levels = np.clip(row.levels, 0, 1)
    change = float(np.clip(pen / fine, *PEN_WIDTHS) - pen / fine)
    radius = round(abs(change) * fine / 2)
    if change < 0:
        inside = ndimage.distance_transform_edt(row.mask)
        radius = min(radius, max(0, int(np.percentile(inside[row.mask], 90)) - 1))
    if not radius:
        return levels, 1
    return within(levels, radius, np.maximum if change > 0 else np.minimum), radius + 1


def _place(alone: Levels, image: npt.NDArray[np.uint8]) -> tuple[float, float, float]:
    """Scale and centre a digit's ink in an empty image, as MNIST's.

    Returns:
        The row and the column at which the image's corner lies, and the size of its pixels.
    """
    is_ink = alone > 0.25
    rows, columns = np.flatnonzero(is_ink.any(1)), np.flatnonzero(is_ink.any(0))
    if not len(rows):
        return 0.0, 0.0, 1.0
    top, left = int(rows[0]), int(columns[0])
    crop = alone[top : rows[-1] + 1, left : columns[-1] + 1]
    step = max(crop.shape) / BOX
    height, width = max(1, round(crop.shape[0] / step)), max(1, round(crop.shape[1] / step))
    small = np.asarray(Image.fromarray(crop).resize((width, height), Image.Resampling.BOX))
    mass = small.sum()
    y = round(14 - float(small.sum(1) @ np.arange(height)) / mass)
    x = round(14 - float(small.sum(0) @ np.arange(width)) / mass)
    y, x = min(max(y, 0), HEIGHT - height), min(max(x, 0), HEIGHT - width)
    image[y : y + height, x : x + width] = np.rint(small * (255 / small.max()))
    return top - y * step, left - x * step, step


def _frame(page: Image.Image, y: float, x: float, step: float) -> Levels:
    """Show all the ink in an image's frame: (28, 28)."""
    top, left = max(0, int(y)), max(0, int(x))
    bottom, right = y + HEIGHT * step, x + HEIGHT * step
    edge = min(int(right) + 2, page.width), min(int(bottom) + 2, page.height)
    crop = page.crop((left, top, *edge))  # small coordinates are more exact
    box = (x - left, y - top, right - left, bottom - top)
    box = (max(0, box[0]), max(0, box[1]), min(crop.width, box[2]), min(crop.height, box[3]))
    return np.asarray(crop.resize((HEIGHT, HEIGHT), Image.Resampling.BOX, box))


def _spans(row: Row, pieces: Pieces) -> tuple[Numbers, Numbers]:
    """List the runs of pieces that may be one digit, with their boxes."""
    spans, boxes = [], []
    for first in range(len(pieces.boxes)):
        for last in range(first + 1, min(first + MAX_JOINED, len(pieces.boxes)) + 1):
            box = np.append(
                pieces.boxes[first:last, :2].min(0), pieces.boxes[first:last, 2:].max(0)
            )
            if last > first + 1:
                reached = pieces.boxes[first : last - 1, 3].max()
                if box[3] - box[1] > MAX_WIDTH * row.height:
                    break
                if pieces.boxes[last - 1, 1] - reached > MAX_BLANK * row.height:
                    break
            spans.append((first, last))
            boxes.append(box)
    return np.array(spans, np.intp).reshape(-1, 2), np.array(boxes, np.intp).reshape(-1, 4)


def _measures(row: Row, pieces: Pieces, spans: Numbers, boxes: Numbers) -> npt.NDArray[np.float32]:
    """Describe each candidate's place, in the row's heights.

    Height, width, how far its middle is below the row's, the ink that its left and its right cut
    cross, the blank to its left and to its right, and the number of its connected parts.
    """
    reached = np.maximum.accumulate(pieces.boxes[:, 3]) if len(pieces.boxes) else np.empty(0)
    ends = np.append(pieces.costs, 0)
    measures = np.empty((len(spans), NUM_MEASURES), np.float32)
    for number, ((first, last), (top, left, bottom, right)) in enumerate(
        zip(spans, boxes, strict=True)
    ):
        before = (left - reached[first - 1]) / row.height if first else 1
        after = (
            (pieces.boxes[last:, 1].min() - right) / row.height if last < len(pieces.boxes) else 1
        )
        measures[number] = (
            (bottom - top) / row.height,
            (right - left) / row.height,
            ((top + bottom) / 2 - row.middle) / row.height,
            4 * ends[first],
            4 * ends[last],
            np.clip(before, -1, 1),
            np.clip(after, -1, 1),
            len(np.unique(pieces.parts[first:last])) - 1,
        )
    return measures
