"""Texts of digits and marks as many hands write them."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from experiments.synthetic.drawing import FONTS, font_glyph, optdigits_glyph, stroke_glyph
from experiments.synthetic.pages import OTHER_FONTS
from experiments.synthetic.strings import DIGITS, MARK, Composed, owner
from training.data.mnist import Examples

Levels = npt.NDArray[np.uint8]
MACHINE_FONTS = sorted(Path("/usr/share/fonts/truetype/liberation").glob("*.ttf")) or OTHER_FONTS


class Writers(NamedTuple):
    """Whose digits are on made pages."""

    mnist: Examples
    others: tuple[str, str] = ("optdigits", "strokes")
    """Two more hands: "optdigits", "strokes", or a font's file."""
    fonts: Sequence[Path] = (*FONTS, *MACHINE_FONTS)
    """Whole texts are set in one of them."""


def set_in_font(
    text: str, height: float, rng: np.random.Generator, fonts: Sequence[Path]
) -> Composed:
    """Set a text in one font, its digits about `height` pixels high."""
    font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), height * 1.37)
    left, top, right, bottom = font.getbbox(text)

    def drawn(some: str, x: float = 0) -> Levels:
        image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
        ImageDraw.Draw(image).text((1 - left + x, 1 - top), some, 255, font)
        return np.asarray(image)

    ink = drawn(text)
    owners = np.zeros(ink.shape, np.uint32)
    for at, bit in enumerate(_bits(text)):
        owners |= owner(np.minimum(ink, drawn(text[at], font.getlength(text[:at]))), bit)
    return Composed(text, ink, owners)


def write(
    text: str,
    writers: Writers,
    rng: np.random.Generator,
    blank: tuple[float, float],
    hand: str = "",
) -> Composed:
    """Write a text in a hand, or any of the writers', with `blank` heights between characters."""
    hands = ("mnist", "mnist", *writers.others, "fonts")
    hand, height = hand or str(rng.choice(hands)), rng.uniform(26, 64)
    if hand == "fonts" and blank[1] < 0.5:
        made = set_in_font(text, height, rng, writers.fonts)
    else:
        made = _by_pen(text, hand, writers, height, blank, rng)
    margin = rng.integers(int(0.4 * height), int(1.6 * height), 4)
    return made.padded((tuple(margin[:2]), tuple(margin[2:])))


def _by_pen(
    text: str,
    hand: str,
    writers: Writers,
    height: float,
    blank: tuple[float, float],
    rng: np.random.Generator,
) -> Composed:
    glyphs, pen = [], height * rng.uniform(0.06, 0.13)
    for character in text:
        if character.isdigit():
            glyph = digit_glyph(int(character), hand, writers.mnist, rng)
            scale = height * rng.uniform(0.88, 1.12) / len(glyph)
            size = max(2, round(glyph.shape[1] * scale)), round(len(glyph) * scale)
            glyphs.append((np.asarray(Image.fromarray(glyph).resize(size, 3)), 1.0))
        else:
            glyphs.append((_mark(character, height, pen, rng), 1.5))
    width = sum(glyph.shape[1] for glyph, _ in glyphs) + int(2.3 * height * len(glyphs))
    page, x = np.zeros((int(2.8 * height), width), np.uint8), 2.0
    owners = np.zeros(page.shape, np.uint32)
    for bit, (glyph, base) in zip(_bits(text), glyphs, strict=True):
        y = int(height * (0.7 + base + rng.uniform(-0.05, 0.05))) - len(glyph)
        window = slice(y, y + len(glyph)), slice(int(x), int(x) + glyph.shape[1])
        page[window] = np.maximum(page[window], glyph)
        owners[window] |= owner(glyph, bit)
        x += glyph.shape[1] + height * rng.uniform(*blank)
    return Composed(text, page[:, : int(x) + 2], owners[:, : int(x) + 2])


def _bits(text: str) -> list[int]:
    """Return the bit of each character in `Composed.owners`."""
    digits = itertools.count()
    return [next(digits) if character in DIGITS else MARK for character in text]


def digit_glyph(digit: int, hand: str, mnist: Examples, rng: np.random.Generator) -> Levels:
    """Choose or draw a digit: its ink is 255, without margins.

    Args:
        digit: 0 to 9.
        hand: "mnist", "optdigits", "strokes", "fonts", which is drawn as strokes, or a font's file.
        mnist: to choose from.
        rng: chooses.
    """
    if hand == "optdigits":
        glyph = np.asarray(optdigits_glyph(digit, 60, rng))
    elif hand == "mnist":
        glyph = rng.choice(mnist.images[mnist.labels == digit]).reshape(28, 28)
    elif hand in ("strokes", "fonts"):
        glyph = np.asarray(stroke_glyph(digit, 60, rng))
    else:
        glyph = np.asarray(font_glyph(digit, 60, rng, [Path(hand)], turn_deg=6))
    is_ink = glyph > 60
    rows, columns = np.flatnonzero(is_ink.any(1)), np.flatnonzero(is_ink.any(0))
    return np.ascontiguousarray(glyph[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1])


def _mark(mark: str, height: float, pen: float, rng: np.random.Generator) -> Levels:
    """Draw a mark: the lowest row is half a height under the baseline."""
    dx, dy = rng.normal(0, 0.03, (2, 4))
    x = rng.uniform(0.25, 0.5)
    lines = {
        ".": [(0.1, 0.97 + dy[0], 0.11, 0.97 + dy[0])],
        ",": [(0.2, 0.9 + dy[0], 0.1 + dx[0], 1.2 + dy[1])],
        "-": [(0.1, 0.52 + 2 * dy[0], 0.1 + x, 0.52 + 2 * dy[0] + dy[1])],
        "/": [(0.1 + x + dx[0], -0.1 + 3 * dy[0], 0.1, 1.12 + 3 * dy[1])],
        ":": [(0.1, 0.33 + dy[0], 0.1, 0.34 + dy[0]), (0.1 + dx[0], 0.85, 0.1 + dx[0], 0.86)],
        " ": [],
    }[mark]
    side, radius = 4 * height, 2 * pen * (rng.uniform(0.9, 1.4) if mark in ".:" else 1)
    width = rng.uniform(0.9, 1.2) if mark == " " else 1.0
    image = Image.new("L", (int(side * width), int(side * 2)))
    draw = ImageDraw.Draw(image)
    for line in lines:
        for share in np.linspace(0, 1, 60):
            at_x = (line[0] + share * (line[2] - line[0])) * side + radius
            at_y = (0.5 + line[1] + share * (line[3] - line[1])) * side
            draw.ellipse((at_x - radius, at_y - radius, at_x + radius, at_y + radius), 255)
    drawn = np.asarray(image.reduce(4))
    columns = np.flatnonzero(drawn.any(0))
    return drawn if mark == " " else drawn[:, columns[0] : columns[-1] + 1]
