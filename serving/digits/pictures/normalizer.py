"""Turns grey levels into an image as MNIST's were made: find the digit, scale it, centre it.

    grey levels ─▶ ink over paper ─▶ the digit's pixels ─▶ pen width ─▶ 20 x 20 ─▶ 28 x 28

The last two steps are MNIST's: the longer side exactly 20 pixels, antialiased, aspect kept, then
moved by whole pixels until the centre of mass is at pixel 14 (± 0.5) both ways. The others turn a
photo into the clean black and white that NIST started from. Each constant was chosen by the
accuracy on drawn pictures (lab.made.drawing), on a plateau.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from serving.digits.pictures.parts import Levels, bounding_box
from serving.digits.pictures.segments import find_digit
from serving.errors import InvalidRequest
from serving.tensors import DIGITS

HEIGHT, WIDTH = DIGITS.input_shape
BOX = 20
"""Pixels of the digit's longer side in an image."""
PEN_WIDTHS = (2.0, 3.0)
"""Pixels; other strokes are thickened or thinned to these. Half of MNIST's have 2.0 to 2.8."""
MIN_CONTRAST = 16
"""Levels of 255 by which ink must differ from the paper; less is taken for grain."""
FINE = 8
"""The pen is adjusted at this many times the final resolution."""


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
    counts, edges = np.histogram(levels, 256)
    centres = (edges[:-1] + edges[1:]) / 2
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
