"""The connected parts of a picture's ink, without specks and frames."""

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from serving.errors import InvalidRequest

MAX_PARTS = 100
"""If there are more, most are grain; the time grows with the square of their number."""

Levels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]
Labels = npt.NDArray[np.int32]


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


@dataclass(frozen=True)
class Parts:
    """The connected parts of a picture's ink, apart from specks."""

    labels: Labels
    """(H, W): the part of each pixel, 1 to N, or 0."""
    sizes: Numbers
    """(N,) pixels."""
    boxes: Numbers
    """(N, 4) top, left, bottom, right; the last two are exclusive."""

    @property
    def heights(self) -> Numbers:
        """(N,) pixels."""
        return self.boxes[:, 2] - self.boxes[:, 0]

    @property
    def widths(self) -> Numbers:
        """(N,) pixels."""
        return self.boxes[:, 3] - self.boxes[:, 1]

    @property
    def at_edges(self) -> Mask:
        """(N, 4): whether a part touches the picture's top, left, bottom, right."""
        return np.asarray(self.boxes == [0, 0, *self.labels.shape])

    def only(self, kept: Mask) -> "Parts":
        """Keep only some parts: (N,) of bool."""
        number = np.append(0, np.cumsum(kept) * kept).astype(np.int32)
        return Parts(number[self.labels], self.sizes[kept], self.boxes[kept])


def labelled(mask: Mask) -> tuple[Labels, Numbers]:
    """Return (H, W) numbers of a mask's 8-connected parts, from 1, and their boxes: see Parts."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return labels, boxes_of(labels)


def boxes_of(labels: Labels) -> Numbers:
    """Return the (N, 4) top, left, bottom, right of numbered parts."""
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(boxes, np.intp).reshape(-1, 4)


def find_parts(mask: Mask, least: int = 0, most: int = MAX_PARTS) -> Parts:
    """Find the largest parts of a mask, without specks: of fewer pixels than `least`.

    If `least` is 0, a speck has less than a 200th of the largest part.
    """
    labels, boxes = labelled(mask)
    sizes = np.bincount(labels.ravel())[1:]
    kept = sizes >= (least or sizes.max(initial=0) / 200)
    kept[np.argsort(-sizes, kind="stable")[most:]] = False
    return Parts(labels, sizes, boxes).only(kept)


def without_frames(parts: Parts) -> Parts:
    """Leave out frames around a part of some size: the box of a form's field, a circle.

    A frame may be partly outside the picture.
    """
    boxes, ends = parts.boxes, parts.at_edges
    sides = np.maximum(parts.heights, parts.widths)
    is_frame: Mask = np.zeros(len(boxes), np.bool_)
    for i in np.flatnonzero(sides >= sides.max(initial=0) / 4):
        starts = (boxes[:, :2] > boxes[i, :2]) | ends[i, :2]
        stops = (boxes[:, 2:] < boxes[i, 2:]) | ends[i, 2:]
        is_inside = np.asarray((starts & stops).all(1) & ~ends.any(1))
        is_inside[i] = False
        height, width = parts.heights[i], parts.widths[i]
        share = 0.3 if width > 0.8 * height else 0.5  # the dot in a zero is not a digit in a frame
        is_frame[i] = (sides[is_inside] >= share * min(height, width)).any()
    return parts.only(~is_frame)


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's bounding box; the mask is not empty."""
    box: tuple[slice, slice] = ndimage.find_objects(mask.view(np.int8))[0]
    return box
