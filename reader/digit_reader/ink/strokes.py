"""Straight strokes of ink: horizontal runs, their connected parts and their thickness."""

import numpy as np
from scipy import ndimage

from digit_classifier.normalizer import Labels, Mask, Numbers, labelled

MIN_SIDE = 16
"""Pixels of a box's side, or of a line under a digit."""
MAX_LINES = 1000
"""That are compared with each other."""
MAX_BREAK = 4
"""Pixels without ink in a line."""


class Runs:
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


def parts_of(mask: Mask) -> tuple[Labels, Numbers]:
    """Return (H, W) numbers of the connected parts, from 1, and their boxes: (N, 4) y, x, h, w."""
    labels, boxes = labelled(mask)
    boxes[:, 2:] -= boxes[:, :2]
    return labels, boxes


def chosen_parts(labels: Labels, chosen: Numbers) -> Mask:
    """Return where the parts of these indexes are."""
    is_chosen = np.zeros(labels.max(initial=0) + 1, np.bool_)
    is_chosen[chosen + 1] = True
    return np.asarray(is_chosen[labels])


def thickness(lines: Mask) -> int:
    """Return the mean thickness of horizontal lines, 1 or more."""
    edges = int(np.count_nonzero(np.diff(lines.astype(np.int8), axis=0)))
    return max(1, round(2 * int(np.count_nonzero(lines)) / max(edges, 1)))
