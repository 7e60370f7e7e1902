"""Joins dashes and dots that lie in a line, such as the sides of a dashed box."""

import numpy as np

from digit_classifier.normalizer import Labels, Mask, Numbers

MAX_DASH, MAX_PEN, MAX_GAP = 26, 7, 20
"""Pixels of a dash's length and its thickness, and of the blank between two."""
MIN_SHARE = 0.7
"""Length of a line's dashes by those of the line that crosses it there."""
MAX_GAPS = 1.5
"""Length of a gap by the smallest one beside the same dash, and as many pixels."""
MAX_DASHES = 2000
"""The most dashes of a page."""


class Dashes:
    """The dashes and dots of horizontal and vertical lines."""

    def __init__(self, labels: Labels, parts: Numbers) -> None:
        """Find them among the parts of a mask: see parts_of."""
        self._labels, self._mask = labels, labels > 0
        self._across = _Dashes(labels, parts)
        self._down = _Dashes(labels.T, parts[:, [1, 0, 3, 2]])
        nearest = np.minimum(self._across.nearest, self._down.nearest)
        self._sizes = self._across.sizes(nearest), self._down.sizes(nearest)

    def joined(self, least: int) -> Mask:
        """Fill the gaps of lines of this many dashes, their ends included if at other ink."""
        across, down = self._sizes
        joined = self._mask.copy()
        self._across.join(joined, across >= np.maximum(least, MIN_SHARE * down))
        self._down.join(joined.T, down >= np.maximum(least, MIN_SHARE * across))
        return joined

    def lines(self, least: int) -> Mask:
        """Return the lines of this many dashes, without their gaps."""
        return np.asarray(np.append(False, np.maximum(*self._sizes) >= least)[self._labels])


class _Dashes:
    """The parts that may be dashes of horizontal lines."""

    def __init__(self, labels: Labels, parts: Numbers) -> None:
        heights, widths = parts[:, 2:].T
        is_dash = (widths <= MAX_DASH) & (heights <= np.minimum(MAX_PEN, 1.3 * widths + 1))
        self._dashes = np.flatnonzero(is_dash)[:MAX_DASHES]
        self._boxes = y, x, h, w = parts[self._dashes].T
        self._right, self._after = _neighbours(labels, y + h // 2, x + w, 1)
        self._left, self._before = _neighbours(labels, y + h // 2, x - 1, -1)
        self.nearest = np.full(len(parts), MAX_GAP)
        """The smallest gap of each part; MAX_GAP if there is none."""
        self.nearest[self._dashes] = np.minimum(self._after, self._before)

    def sizes(self, nearest: Numbers) -> Numbers:
        """Return of each part how many dashes its line has; the smallest gap limits all of it."""
        own, none = np.arange(len(self._dashes)), len(self._dashes)
        longest = np.minimum(3 * self._boxes[3] + 3, MAX_GAPS * nearest[self._dashes] + 1.5)
        place = np.full(len(nearest) + 1, none)
        place[self._dashes + 1] = own
        self._has_next = (self._right > 0) & (self._after <= longest)
        self._is_first = (self._left > 0) & (self._before <= longest) & (place[self._left] == none)
        heir = np.where(self._has_next & (place[self._right] < none), place[self._right], own)
        is_last = self._has_next & (heir == own)
        for _ in range(MAX_DASHES.bit_length()):  # each finds the last of its line
            heir = heir[heir]
        sizes = np.zeros(len(nearest), np.intp)
        sizes[self._dashes] = np.bincount(heir, 1.0 + self._is_first + is_last, none)[heir]
        is_alone = np.bincount(heir, minlength=none)[heir] == 1
        sizes[self._dashes[is_alone]] = 0  # a 1 in a box is no dash
        return sizes

    def join(self, mask: Mask, is_line: Mask) -> None:
        """Fill the gaps of some parts."""
        chosen = is_line[self._dashes]
        y, x, h, w = self._boxes
        for each in np.flatnonzero(chosen & self._has_next):
            end = x[each] + w[each]
            mask[y[each] : y[each] + h[each], end : end + self._after[each]] = True
        for each in np.flatnonzero(chosen & self._is_first):
            mask[y[each] : y[each] + h[each], x[each] - self._before[each] : x[each]] = True


def _neighbours(
    labels: Labels, rows: Numbers, columns: Numbers, step: int
) -> tuple[Numbers, Numbers]:
    """Return the next part's label to the left or right, 0 if none is near, and its distance."""
    height, width = labels.shape
    at = columns[:, None] + step * np.arange(MAX_GAP)
    seen = np.maximum.reduce(
        [
            labels[np.clip(rows + dy, 0, height - 1)[:, None], np.clip(at, 0, width - 1)]
            for dy in (-1, 0, 1)
        ]
    )
    distance = (seen > 0).argmax(1)
    label = seen[np.arange(len(rows)), distance]
    return label, np.where(label > 0, distance, MAX_GAP)
