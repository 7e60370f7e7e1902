"""Turns grey levels into an image as MNIST's were made: find the digit, scale it, centre it.

    grey levels ─▶ ink over paper ─▶ the digit's pixels ─▶ pen width ─▶ 20 x 20 ─▶ 28 x 28

The last two steps are MNIST's: the longer side exactly 20 pixels, antialiased, aspect kept, then
moved by whole pixels until the centre of mass is at pixel 14 (± 0.5) both ways. The others turn a
photo into the clean black and white that NIST started from. Each constant was chosen by the
accuracy on drawn pictures (tests/support/pictures/drawing.py), on a plateau.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from digit_classifier.predictions import DIGITS
from serving.errors import InvalidRequest

MAX_COMPONENTS = 100
"""If there are more, most are grain; the time grows with the square of their number."""

Levels = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]
Numbers = npt.NDArray[np.intp]
Labels = npt.NDArray[np.int32]
MIN_GAP = 0.06
"""Blank between two digits, in heights; pieces of a broken digit are closer."""
MIN_GAP_STACKED = 0.3
"""The same for components above each other, such as the halves of a broken 3."""
MAX_ASPECT = 2.0
"""The largest width / height of a digit: 6 of MNIST's 60,000 are wider, as are three that touch."""
MAX_DIGITS = 8
"""More in a row are found only if no ink comes from the edges."""
HEIGHT, WIDTH = DIGITS.input_shape
BOX = 20
"""Pixels of the digit's longer side in an image."""
PEN_WIDTHS = (2.0, 3.0)
"""Pixels; other strokes are thickened or thinned to these. Half of MNIST's have 2.0 to 2.8."""
MIN_CONTRAST = 16
"""Levels of 255 by which ink must differ from the paper; less is taken for grain."""
FINE = 8
"""The pen is adjusted at this many times the final resolution."""


@dataclass(frozen=True)
class Components:
    """The connected components of a picture's ink, apart from specks."""

    labels: Labels
    """(H, W): the component of each pixel, 1 to N, or 0."""
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
        """(N, 4): whether a component touches the picture's top, left, bottom, right."""
        return np.asarray(self.boxes == [0, 0, *self.labels.shape])

    def only(self, kept: Mask) -> "Components":
        """Keep only some components: (N,) of bool."""
        number = np.append(0, np.cumsum(kept) * kept).astype(np.int32)
        return Components(number[self.labels], self.sizes[kept], self.boxes[kept])


def labelled(mask: Mask) -> tuple[Labels, Numbers]:
    """Return (H, W) numbers of a mask's 8-connected components, from 1, and their boxes."""
    labels, _ = ndimage.label(mask, np.ones((3, 3)))
    return labels, boxes_of(labels)


def boxes_of(labels: Labels) -> Numbers:
    """Return the (N, 4) top, left, bottom, right of numbered components."""
    boxes = [(y.start, x.start, y.stop, x.stop) for y, x in ndimage.find_objects(labels)]
    return np.array(boxes, np.intp).reshape(-1, 4)


def find_components(mask: Mask, least: int = 0, most: int = MAX_COMPONENTS) -> Components:
    """Find the largest components of a mask, without specks: of fewer pixels than `least`.

    If `least` is 0, a speck has less than a 200th of the largest component.
    """
    labels, boxes = labelled(mask)
    sizes = np.bincount(labels.ravel())[1:]
    kept = sizes >= (least or sizes.max(initial=0) / 200)
    kept[np.argsort(-sizes, kind="stable")[most:]] = False
    return Components(labels, sizes, boxes).only(kept)


def without_frames(components: Components) -> Components:
    """Leave out frames around a component of some size: the box of a form's field, a circle.

    A frame may be partly outside the picture.
    """
    boxes, ends = components.boxes, components.at_edges
    sides = np.maximum(components.heights, components.widths)
    is_frame: Mask = np.zeros(len(boxes), np.bool_)
    for i in np.flatnonzero(sides >= sides.max(initial=0) / 4):
        starts = (boxes[:, :2] > boxes[i, :2]) | ends[i, :2]
        stops = (boxes[:, 2:] < boxes[i, 2:]) | ends[i, 2:]
        is_inside = np.asarray((starts & stops).all(1) & ~ends.any(1))
        is_inside[i] = False
        height, width = components.heights[i], components.widths[i]
        share = 0.3 if width > 0.8 * height else 0.5  # the dot in a zero is not a digit in a frame
        is_frame[i] = (sides[is_inside] >= share * min(height, width)).any()
    return components.only(~is_frame)


def bounding_box(mask: Mask) -> tuple[slice, slice]:
    """Return the rows and columns of a mask's bounding box; the mask is not empty."""
    box: tuple[slice, slice] = ndimage.find_objects(mask.view(np.int8))[0]
    return box


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
    lowest_components = without_frames(find_components(ink > lowest))
    num_levels = 0 if fills_picture(lowest_components) else 5
    for level in np.linspace(lowest, top, num_levels, endpoint=False):
        components = lowest_components
        if level != lowest:
            components = without_frames(find_components(ink > level))
        # A low level connects the digit with ruled lines and shadows, which come from the edges.
        is_out = components.at_edges.any(1) | (components.widths > MAX_ASPECT * components.heights)
        inner = np.where(is_out, 0, components.sizes)
        if np.sort(inner)[-MAX_DIGITS:].sum() > components.sizes.sum() / 5:
            return only_digit(ink, components, int(inner.argmax()))
    return only_digit(ink, lowest_components, int(lowest_components.sizes.argmax()))


def fills_picture(components: Components) -> bool:
    """Return whether this is a row of digits that was cut out without a margin."""
    is_large = components.sizes > components.sizes.sum() / 10
    heights, ends = components.heights[is_large], components.at_edges[is_large]
    is_across = ends[:, 1] & ends[:, 3]
    return len(heights) > 1 and bool(
        (heights > 0.6 * len(components.labels)).all() & ~is_across.any()
    )


def only_digit(ink: Levels, components: Components, main: int) -> Mask:
    """Return the main component and those that belong to it; no other may look like a digit.

    Raises:
        InvalidRequest: several digits.
    """
    large = digit_like(ink, components, main)
    groups = grouped(components, large)
    digit = groups[large == main][0]
    if groups.max() > 0:
        raise InvalidRequest(f"expected one digit, found {_places(components, large, groups)}")
    mask = np.isin(components.labels, large[groups == digit] + 1)
    height, width = mask[bounding_box(mask)].shape
    if width > MAX_ASPECT * height:
        raise InvalidRequest(
            f"expected one digit, found something {width / height:.1f} times as wide as high: "
            "several digits that touch, or no digit"
        )
    return with_neighbours(mask, components)


def digit_like(ink: Levels, components: Components, main: int) -> Numbers:
    """Select components about as high and as strong as the main one, except lines at the edges."""
    heights = components.heights
    strengths = ndimage.mean(ink, components.labels, np.arange(1, len(heights) + 1))
    ends = components.at_edges
    is_narrow = components.widths < 0.3 * heights
    is_line = (ends[:, :2] & ends[:, 2:]).any(1) & is_narrow & (heights > 1.3 * heights[main])
    if not ends[main].any():  # then components of a frame in the picture are not digits
        margin = heights[main] / 10
        is_above = components.boxes[:, 0] < components.boxes[main, 0] - margin
        is_below = components.boxes[:, 2] > components.boxes[main, 2] + margin
        is_line |= ends.any(1) & (is_narrow | (ends.sum(1) > 1) | (is_above & is_below))
    is_like = (
        (heights >= heights[main] / 2)
        & (heights <= heights[main] * 2)
        & (components.widths <= heights * MAX_ASPECT)
        & (components.sizes >= components.sizes[main] / 8)
        & (strengths >= strengths[main] / 2)
        & ~is_line
    )
    is_like[main] = True
    return np.flatnonzero(is_like)


def grouped(components: Components, large: Numbers) -> Numbers:
    """Return the number of each large component's digit, from 0; a small gap makes one of two."""
    groups = np.arange(len(large))
    for i, component in enumerate(large[:-1]):
        distances = ndimage.distance_transform_edt(components.labels != component + 1)
        nearest = ndimage.minimum(distances, components.labels, large[i + 1 :] + 1)
        for j, distance in enumerate(nearest, i + 1):
            if distance - 1 < smallest_gap(components, component, large[j]):
                groups[groups == groups[j]] = groups[i]
    return np.unique(groups, return_inverse=True)[1]


def smallest_gap(components: Components, one: int, other: int) -> float:
    """Return the blank, in pixels, from which two components are two digits."""
    left, right = components.boxes[[one, other], 1].max(), components.boxes[[one, other], 3].min()
    is_stacked = right - left > components.widths[[one, other]].min() / 2
    share = MIN_GAP_STACKED if is_stacked else MIN_GAP
    return float(share * components.heights[[one, other]].max())


def with_neighbours(digit: Mask, components: Components) -> Mask:
    """Add components that are close, such as the bar of a 5, but none from outside the picture."""
    own = np.unique(components.labels[digit]) - 1
    ends = np.asarray(components.at_edges.any(1))
    others = np.asarray((components.sizes >= digit.sum() / 50) & (~ends | ends[own].any()))
    others[own] = False
    if not others.any():
        return digit
    reach = max(digit[bounding_box(digit)].shape) // 8 + 1
    reached = ndimage.maximum_filter(digit, 2 * reach + 1)
    near = np.unique(components.labels[reached & np.append(False, others)[components.labels]])
    return digit | np.isin(components.labels, near)


def _places(components: Components, large: Numbers, groups: Numbers) -> str:
    """Describe how many digits there are and where."""
    height, width = components.labels.shape
    centres = []
    for group in range(groups.max() + 1):
        boxes = components.boxes[large[groups == group]]
        top, left = boxes[:, :2].min(0)
        bottom, right = boxes[:, 2:].max(0)
        centres.append(((left + right) / 2 / width, (top + bottom) / 2 / height))
    if len(centres) > MAX_DIGITS:
        return f"{len(centres)} that look like one"
    centres_text = ", ".join(f"{x:.0%} {y:.0%}" for x, y in sorted(centres))
    return f"{len(centres)}, at {centres_text} of the width and height"


def to_images(grey: Levels) -> npt.NDArray[np.uint8]:
    """Make an image of (H, W) grey levels, or two if ink reaches edges that lie opposite.

    Such ink may be lines and shadows, which the first image is without, or the digit itself, if the
    picture was cut out along it; then the last image is right.

    Returns:
        (1, 28, 28) or (2, 28, 28), 0 = background, 255 = ink.

    Raises:
        InvalidRequest: no ink differs from the paper, or there are several digits.
    """
    if grey.shape == (HEIGHT, WIDTH):
        image = np.rint(grey if grey[0, 0] < 128 else 255 - grey)
        if is_made_as_mnist(image):
            return image.astype(np.uint8)[None]
    images, failures = [], []
    for levels in _ways(grey):
        try:
            image, is_apart = _image(levels)
        except InvalidRequest as err:
            failures.append(err)
            continue
        images.append(image)
        if is_apart:
            break
    if not images:
        raise failures[0]
    return np.stack(images)


def _ways(grey: Levels) -> Iterator[Levels]:
    """Yield the picture as it is, then with a margin of the level that is usual at its edges."""
    yield grey
    edges = np.concatenate([*grey[[0, -1]], *grey.T[[0, -1]]])
    yield np.pad(grey, max(grey.shape) // 4, constant_values=np.median(edges))


def _image(grey: Levels) -> tuple[npt.NDArray[np.uint8], bool]:
    """Make an image, and return whether no ink reaches two opposite edges of the picture."""
    ink = lift(grey)
    if ink.max() < MIN_CONTRAST:
        raise InvalidRequest("no ink found: the picture is blank")
    lowest = max(otsu(ink), MIN_CONTRAST / 2)
    top = ndimage.uniform_filter(ink, 3, mode="nearest").max()
    digit = find_digit(ink, lowest, max(lowest, top))
    # Full ink is 1; the digit alone is kept, with its soft edge.
    alone = np.clip(ink / np.median(ink[digit]), 0, 1) * ndimage.maximum_filter(digit, 3)
    opposite = (ink[[0, -1]], ink.T[[0, -1]])
    is_apart = not any((levels > lowest).any(1).all() for levels in opposite)
    return as_mnist(alone, FINE), is_apart


def as_mnist(ink: Levels, fine: int) -> npt.NDArray[np.uint8]:
    """Make an image of a digit's ink alone.

    Args:
        ink: (H, W), 0 = paper, 1 = full ink.
        fine: the pen is adjusted at this many times the final resolution.

    Returns:
        (28, 28) uint8.
    """
    adjusted = adjust_pen(fit(cropped(ink), BOX * fine), fine)
    small = fit(cropped(adjusted), BOX)
    return np.rint(centred(small / small.max()) * 255).astype(np.uint8)


def lift(grey: Levels) -> Levels:
    """Subtract the paper with its light and shadows: ink becomes positive, dark or light.

    The paper is a morphological opening of a thumbnail: everything wider than a stroke.
    """
    thumb = fit(grey, 64)
    reach = max(thumb.shape) // 5
    size = 2 * reach + 1
    mean = ndimage.uniform_filter(thumb, size, mode="nearest")
    if ((thumb - mean) ** 3).sum() < 0:  # ink is the rarer side: the long tail of the distribution
        grey, thumb = -grey, -thumb
    # Odd reflection continues a slope of light; a flat margin would turn dark corners into ink.
    margin = [(2 * reach,) * 2] * 2
    padded = np.pad(thumb, margin, "reflect", reflect_type="odd")
    paper = ndimage.grey_opening(padded, size, mode="nearest")
    return grey - resized(paper[2 * reach : -2 * reach, 2 * reach : -2 * reach], grey.shape)


def otsu(levels: Levels) -> float:
    """Find the threshold that best separates the levels into two classes (Otsu, 1979)."""
    low, high = float(levels.min()), float(levels.max())
    step = (high - low) / 256 or 1.0
    places = np.minimum(((levels - low) / step).astype(np.intp).ravel(), 255)
    counts = np.bincount(places, minlength=256)  # a quarter of the time of np.histogram
    centres = low + step * (np.arange(256) + 0.5)
    below, sum_below = np.cumsum(counts)[:-1], np.cumsum(counts * centres)[:-1]
    above, sum_above = counts.sum() - below, (counts * centres).sum() - sum_below
    return float(centres[np.argmax(below * above * (sum_below / below - sum_above / above) ** 2)])


def adjust_pen(ink: Levels, fine: int) -> Levels:
    """Thicken or thin strokes to PEN_WIDTHS, given a digit at `fine` times its final size."""
    padded = np.pad(ink, BOX)
    edge = np.hypot(np.diff(padded, axis=0)[:, 1:], np.diff(padded, axis=1)[1:]).sum()
    width = 2 * ink.sum() / edge / fine
    change = np.clip(width, *PEN_WIDTHS) - width
    radius = round(abs(change) * fine / 2)
    if change < 0:  # a blot is kept, however small
        inside = ndimage.distance_transform_edt(padded > padded.max() / 2)
        radius = min(radius, int(inside.max()) - 1)
    return within(padded, radius, np.maximum if change > 0 else np.minimum)


def cropped(ink: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Cut off the margins."""
    return ink[bounding_box(ink > 0.25)]


def fit(levels: Levels, side: int) -> Levels:
    """Resize so that the longer side has `side` pixels, antialiased."""
    scale = side / max(levels.shape)
    height, width = (max(1, round(side * scale)) for side in levels.shape)
    return resized(levels, (height, width))


def resized(levels: Levels, shape: tuple[int, int]) -> Levels:
    """Resize to a shape: area averaging to shrink, as MNIST's, bicubic to enlarge."""
    is_smaller = shape[0] < levels.shape[0]
    resampling = Image.Resampling.BOX if is_smaller else Image.Resampling.BICUBIC
    picture = Image.fromarray(np.asarray(levels, np.float32)).resize(shape[::-1], resampling)
    # Bicubic overshoots, and a level below zero would be bright once it is uint8.
    clipped: Levels = np.clip(np.asarray(picture), levels.min(), levels.max())
    return clipped


def within(levels: Levels, radius: int, ufunc: np.ufunc) -> Levels:
    """Combine the disc of `radius` pixels around each pixel, zeros beyond the edges."""
    height, width = levels.shape
    padded = np.pad(levels, radius)
    steps = range(-radius, radius + 1)
    combined = levels.copy()
    # SciPy's filters take three times as long with a disc, six times (0.15 s) with a blot's.
    for y, x in [(y, x) for y in steps for x in steps if y * y + x * x <= (radius + 0.5) ** 2]:
        ufunc(combined, padded[radius + y :, radius + x :][:height, :width], out=combined)
    return combined


def centred(ink: Levels) -> Levels:
    """Place a digit in 28 x 28 with its centre of mass within half a pixel of 14, 14."""
    image = np.zeros((HEIGHT, WIDTH), np.float32)
    height, width = ink.shape
    y, x = ndimage.center_of_mass(ink)
    top = min(max(round(14 - y), 0), HEIGHT - height)
    left = min(max(round(14 - x), 0), WIDTH - width)
    image[top : top + height, left : left + width] = ink
    return image


def is_made_as_mnist(image: Levels) -> bool:
    """Return whether a 28 x 28 picture is scaled and centred as MNIST's are, so needs no change."""
    ink = image > 0
    if not ink.any():
        return False
    side = max(ink[bounding_box(ink)].shape)
    y, x = ndimage.center_of_mass(image)
    return bool(19 <= side <= 20 and max(abs(y - 14), abs(x - 14)) < 0.52)
