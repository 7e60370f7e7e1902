"""Texts as ink, with the digit that each pixel belongs to; strings composed from glyphs."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from PIL import Image
from scipy import ndimage

from training.data.mnist import Examples

Levels = npt.NDArray[np.uint8]

INK = 100
"""Levels of 255 from which a pixel counts as ink."""
DIGITS = "0123456789/"
"""Characters that are read as digits at first: see `digit_reader.text.marks`."""
MARK = 31
"""The bit of marks in `Composed.owners`."""
MIN_SHARED = 6
"""Pixels of a digit in a connected part, if the part is to count as that digit's, too."""


@dataclass(frozen=True, slots=True)
class Composed:
    """A text as ink on an empty page."""

    text: str
    """Digits, marks and blanks."""
    ink: Levels
    """(H, W) uint8, 255 = ink."""
    owners: npt.NDArray[np.uint32]
    """(H, W): bit N is set where digit N of `digits` has ink, MARK where a mark has some."""

    @property
    def digits(self) -> str:
        """What of the text is first read as a digit: a slash, too, as a 1."""
        return "".join("1" if each == "/" else each for each in self.text if each in DIGITS)

    def padded(self, sides: int | tuple[tuple[int, int], tuple[int, int]]) -> "Composed":
        """Add margins: above and below, left and right."""
        return Composed(self.text, np.pad(self.ink, sides), np.pad(self.owners, sides))

    def turned(self, quarters: int) -> "Composed":
        """Turn it counter-clockwise."""
        return Composed(self.text, np.rot90(self.ink, quarters), np.rot90(self.owners, quarters))

    @property
    def touches(self) -> bool:
        """Whether two digits are one connected part."""
        parts, count = ndimage.label(self.ink >= INK, np.ones((3, 3)))
        sizes = [
            np.bincount(parts.ravel(), ((self.owners >> digit) & 1).ravel(), count + 1)[1:]
            for digit in range(len(self.digits))
        ]
        return bool(((np.array(sizes) > MIN_SHARED).sum(0) > 1).any())


def compose(
    text: str,
    glyphs: Sequence[Levels],
    gaps: Sequence[float],
    rng: np.random.Generator,
    unit: float = 20,
) -> Composed:
    """Set glyphs side by side, with jittered sizes and baselines, and one slant.

    Args:
        text: the digits.
        glyphs: an image of each, ink is 255, at least as high as 20 pixels.
        gaps: the blank between two neighbours' ink, in 1/20 of a digit's height; negative: their
            boxes overlap.
        rng: draws the rest.
        unit: the height of a digit in the images; MNIST's is 20.

    Returns:
        The string with a margin of half a digit to two digits.
    """
    height = rng.uniform(24, 70)
    slant = rng.uniform(-0.25, 0.25)
    scaled = [_glyph(glyph, height / unit * rng.uniform(0.85, 1.15), slant) for glyph in glyphs]
    lefts, right = [], 0.0
    for glyph, gap in zip(scaled, [0.0, *gaps], strict=True):
        lefts.append(max(0, round(right + gap * height / 20)))
        right = max(right, lefts[-1] + glyph.shape[1])
    tops = [round(height * rng.uniform(-0.12, 0.12)) - len(glyph) // 2 for glyph in scaled]
    margins = [round(height * rng.uniform(0.5, 2)) for _ in range(4)]
    top = min(tops)
    bottom = max(start + len(glyph) for start, glyph in zip(tops, scaled, strict=True))
    shape = (bottom - top + margins[0] + margins[1], round(right) + margins[2] + margins[3])
    layers = np.zeros((len(scaled), *shape), np.uint8)
    for layer, glyph, y, x in zip(layers, scaled, tops, lefts, strict=True):
        y, x = y - top + margins[0], x + margins[2]
        layer[y : y + len(glyph), x : x + glyph.shape[1]] = glyph
    ink = layers.max(0)
    bits = [owner(layer, digit) for digit, layer in enumerate(layers)]
    return Composed(text, ink, np.bitwise_or.reduce(bits))


def owner(ink: Levels, digit: int) -> npt.NDArray[np.uint32]:
    """Set the bit of a digit where it has ink."""
    return (ink >= INK).astype(np.uint32) << np.uint32(digit)


def _glyph(glyph: Levels, scale: float, slant: float) -> Levels:
    """Crop to the ink, slant and scale."""
    rows, columns = np.flatnonzero(glyph.max(1) > 60), np.flatnonzero(glyph.max(0) > 60)
    crop = glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    crop = np.pad(crop, ((2, 2), (2 + len(crop) // 3,) * 2))
    size = (round(crop.shape[1] * scale), round(crop.shape[0] * scale))
    middle = size[1] / 2
    matrix = (1 / scale, slant / scale, -slant * middle / scale, 0, 1 / scale, 0)
    picture = Image.fromarray(crop).transform(
        size, Image.Transform.AFFINE, matrix, Image.Resampling.BICUBIC
    )
    drawn = np.asarray(picture)
    rows, columns = np.flatnonzero(drawn.max(1) > 60), np.flatnonzero(drawn.max(0) > 60)
    return drawn[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def random_string(
    digits: Examples, rng: np.random.Generator, lowest: float, highest: float
) -> Composed:
    """Compose 2 to 8 of MNIST's digits, each gap drawn from `lowest` to `highest` pixels."""
    chosen = rng.integers(len(digits.labels), size=rng.integers(2, 9))
    glyphs = [image.reshape(28, 28) for image in digits.images[chosen]]
    gaps = rng.uniform(lowest, highest, len(chosen) - 1).tolist()
    return compose("".join(map(str, digits.labels[chosen].tolist())), glyphs, gaps, rng)


def single(digits: Examples, rng: np.random.Generator) -> Composed:
    """Compose a page of one of MNIST's digits."""
    chosen = int(rng.integers(len(digits.labels)))
    return compose(str(digits.labels[chosen]), [digits.images[chosen].reshape(28, 28)], [], rng)
