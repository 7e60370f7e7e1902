"""Finds the digit in ink, without specks, ruled lines, frames and ink from the edges.

    ink ─▶ connected parts ─▶ without frames ─▶ grouped into digits ─▶ the only one

Each constant was chosen by the accuracy on drawn pictures (lab.made.drawing) and
by the pictures that are refused for several digits, or are not, on a plateau.
"""

import numpy as np
from scipy import ndimage

from serving.digits.pictures.parts import (
    Levels,
    Mask,
    Numbers,
    Parts,
    bounding_box,
    find_parts,
    without_frames,
)
from serving.errors import InvalidRequest

MIN_GAP = 0.06
"""Blank between two digits, in heights; pieces of a broken digit are closer."""
MIN_GAP_STACKED = 0.3
"""The same for parts above each other, such as the halves of a broken 3."""
MAX_ASPECT = 2.0
"""The largest width / height of a digit: 6 of MNIST's 60,000 are wider, as are three that touch."""
MAX_DIGITS = 8
"""More in a row are found only if no ink comes from the edges."""


def find_digit(ink: Levels, lowest: float, top: float) -> Mask:
    """Find the pixels of the one digit.

    Args:
        ink: (H, W) levels above the paper.
        lowest: the first level to try; all above it is ink.
        top: the strongest ink.

    Returns:
        (H, W).

    Raises:
        InvalidRequest: several digits.
    """
    lowest_parts = without_frames(find_parts(ink > lowest))
    for level in np.linspace(lowest, top, 0 if fills_picture(lowest_parts) else 5, endpoint=False):
        parts = without_frames(find_parts(ink > level))
        # A low level connects the digit with ruled lines and shadows, which come from the edges.
        is_out = parts.at_edges.any(1) | (parts.widths > MAX_ASPECT * parts.heights)
        inner = np.where(is_out, 0, parts.sizes)
        if np.sort(inner)[-MAX_DIGITS:].sum() > parts.sizes.sum() / 5:
            return only_digit(ink, parts, int(inner.argmax()))
    return only_digit(ink, lowest_parts, int(lowest_parts.sizes.argmax()))


def fills_picture(parts: Parts) -> bool:
    """Return whether this is a row of digits that was cut out without a margin."""
    is_large = parts.sizes > parts.sizes.sum() / 10
    heights, ends = parts.heights[is_large], parts.at_edges[is_large]
    is_across = ends[:, 1] & ends[:, 3]
    return len(heights) > 1 and bool((heights > 0.6 * len(parts.labels)).all() & ~is_across.any())


def only_digit(ink: Levels, parts: Parts, main: int) -> Mask:
    """Return the main part and the parts that belong to it; no other may look like a digit.

    Raises:
        InvalidRequest: several digits.
    """
    large = digit_like(ink, parts, main)
    groups = grouped(parts, large)
    digit = groups[large == main][0]
    if groups.max() > 0:
        raise InvalidRequest(f"expected one digit, found {_places(parts, large, groups)}")
    mask = np.isin(parts.labels, large[groups == digit] + 1)
    height, width = mask[bounding_box(mask)].shape
    if width > MAX_ASPECT * height:
        raise InvalidRequest(
            f"expected one digit, found something {width / height:.1f} times as wide as high: "
            "several digits that touch, or no digit"
        )
    return with_neighbours(mask, parts)


def digit_like(ink: Levels, parts: Parts, main: int) -> Numbers:
    """Select the parts about as high and as strong as the main one, except lines at the edges."""
    heights = parts.heights
    strengths = ndimage.mean(ink, parts.labels, np.arange(1, len(heights) + 1))
    ends = parts.at_edges
    is_narrow = parts.widths < 0.3 * heights
    is_line = (ends[:, :2] & ends[:, 2:]).any(1) & is_narrow & (heights > 1.3 * heights[main])
    if not ends[main].any():  # then parts of a frame in the picture are not digits
        margin = heights[main] / 10
        is_above = parts.boxes[:, 0] < parts.boxes[main, 0] - margin
        is_below = parts.boxes[:, 2] > parts.boxes[main, 2] + margin
        is_line |= ends.any(1) & (is_narrow | (ends.sum(1) > 1) | (is_above & is_below))
    is_like = (
        (heights >= heights[main] / 2)
        & (heights <= heights[main] * 2)
        & (parts.widths <= heights * MAX_ASPECT)
        & (parts.sizes >= parts.sizes[main] / 8)
        & (strengths >= strengths[main] / 2)
        & ~is_line
    )
    is_like[main] = True
    return np.flatnonzero(is_like)


def grouped(parts: Parts, large: Numbers) -> Numbers:
    """Return the number of each large part's digit: 0, 1, ...; parts with a small gap share one."""
    groups = np.arange(len(large))
    for i, part in enumerate(large[:-1]):
        distances = ndimage.distance_transform_edt(parts.labels != part + 1)
        nearest = ndimage.minimum(distances, parts.labels, large[i + 1 :] + 1)
        for j, distance in enumerate(nearest, i + 1):
            if distance - 1 < smallest_gap(parts, part, large[j]):
                groups[groups == groups[j]] = groups[i]
    return np.unique(groups, return_inverse=True)[1]


def smallest_gap(parts: Parts, one: int, other: int) -> float:
    """Return the blank, in pixels, from which two parts are two digits."""
    left, right = parts.boxes[[one, other], 1].max(), parts.boxes[[one, other], 3].min()
    is_stacked = right - left > parts.widths[[one, other]].min() / 2
    share = MIN_GAP_STACKED if is_stacked else MIN_GAP
    return float(share * parts.heights[[one, other]].max())


def with_neighbours(digit: Mask, parts: Parts) -> Mask:
    """Add parts that are close, such as the bar of a 5, but none from outside the picture."""
    own = np.unique(parts.labels[digit]) - 1
    ends = np.asarray(parts.at_edges.any(1))
    others = np.asarray((parts.sizes >= digit.sum() / 50) & (~ends | ends[own].any()))
    others[own] = False
    if not others.any():
        return digit
    reach = max(digit[bounding_box(digit)].shape) // 8 + 1
    reached = ndimage.maximum_filter(digit, 2 * reach + 1)
    near = np.unique(parts.labels[reached & np.append(False, others)[parts.labels]])
    return digit | np.isin(parts.labels, near)


def _places(parts: Parts, large: Numbers, groups: Numbers) -> str:
    """Describe how many digits there are and where."""
    height, width = parts.labels.shape
    centres = []
    for group in range(groups.max() + 1):
        boxes = parts.boxes[large[groups == group]]
        top, left = boxes[:, :2].min(0)
        bottom, right = boxes[:, 2:].max(0)
        centres.append(((left + right) / 2 / width, (top + bottom) / 2 / height))
    if len(centres) > MAX_DIGITS:
        return f"{len(centres)} that look like one"
    centres_text = ", ".join(f"{x:.0%} {y:.0%}" for x, y in sorted(centres))
    return f"{len(centres)}, at {centres_text} of the width and height"
