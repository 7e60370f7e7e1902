"""Finds combs of forms: a horizontal line on which equal teeth stand, equally far apart."""

from collections.abc import Iterator

import numpy as np
from scipy import ndimage

from digit_classifier.normalizer import Mask, Numbers
from digit_reader.ink.boxes import Box
from digit_reader.ink.strokes import MAX_LINES, MIN_SIDE, Runs, chosen_parts, parts_of

MIN_TOOTH = 10
"""Pixels of a tooth of a comb."""
MAX_TOOTH = 0.65
"""Share of a box's height that a tooth on its lower side takes."""


def find_combs(across: Runs, down: Runs) -> tuple[Mask, Mask]:
    """Find combs: a horizontal line on which equal vertical ones stand, equally far apart."""
    bases, lines = parts_of(across.of(2 * MIN_SIDE))
    labels, parts = parts_of(down.of(MIN_TOOTH).T)
    grown = ndimage.maximum_filter(bases, 3)
    standing: dict[int, list[int]] = {}
    for number in np.flatnonzero(parts[:, 3] <= parts[:, 2] / 2).tolist():
        y, x, h, w = parts[number].tolist()
        base = int(grown[y + h - 3 : y + h + 2, x : x + w].max())
        if base and lines[base - 1, 2] <= lines[base - 1, 3] / 8:
            standing.setdefault(base - 1, []).append(number)
    upright, chosen = np.zeros_like(bases, np.bool_), []
    for base, numbers in standing.items():
        equal = _equal(np.array(numbers[:MAX_LINES]), parts[:, 2])
        if _are_even(parts[equal, 1]) and _are_low(across.mask, parts[equal]):
            chosen.append(base)
            upright |= chosen_parts(labels, equal)
            for y, x, h, w in _between(parts[equal]):
                upright[y : y + h, x : x + w] |= across.mask[y : y + h, x : x + w]
    return chosen_parts(bases, np.array(chosen, np.intp)), upright


def find_teeth(boxes: list[Box], down: Runs) -> Mask:
    """Find two or more equal teeth on the lower side of a box, which divide it evenly."""
    labels, parts = parts_of(down.of(MIN_TOOTH).T)
    y, x, h, w = parts.T
    found = np.zeros(len(parts), np.bool_)
    for top, left, height, width, rise in boxes[:MAX_LINES]:
        below = y + h - (top + height + rise * ((x - left) / width - 0.5))  # the lower side
        stands = np.abs(below - 1 - w / 2) <= 2 + w / 2
        inside = (x >= left + MIN_SIDE) & (x <= left + width - MIN_SIDE)
        is_tooth = stands & inside & (w <= h / 2) & (h <= MAX_TOOTH * height)
        equal = _equal(np.flatnonzero(is_tooth)[:MAX_LINES], h)
        right = left + width - int(w[equal].max(initial=0))
        if len(equal) > 1 and _are_even(np.append(x[equal], (left, right))):
            found[equal] = True
    return chosen_parts(labels, np.flatnonzero(found))


def _equal(numbers: Numbers, heights: Numbers) -> Numbers:
    """Return the most parts of about the same height."""
    own = heights[numbers]
    same = np.abs(own[:, None] - own) <= np.maximum(2, 0.1 * own)
    return numbers[same[:, same.sum(1).argmax()]] if len(numbers) else numbers


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
