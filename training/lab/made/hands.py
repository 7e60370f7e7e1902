"""Texts of digits and marks as they are written by hands other than those that fits are made of."""

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from training.data.mnist import Examples
from training.lab.made.drawing import FONTS, optdigits_glyph, stroke_glyph
from training.lab.made.pages import OTHER_FONTS

Levels = npt.NDArray[np.uint8]
HANDS = ("mnist", "mnist", "optdigits", "strokes", "fonts")
MACHINE_FONTS = sorted(Path("/usr/share/fonts/truetype/liberation").glob("*.ttf")) or OTHER_FONTS


def set_in_font(text: str, height: float, rng: np.random.Generator) -> Levels:
    """Set a text in one font, its digits about `height` pixels high."""
    fonts = [*FONTS, *MACHINE_FONTS]
    font = ImageFont.truetype(str(fonts[rng.integers(len(fonts))]), height * 1.37)
    left, top, right, bottom = font.getbbox(text)
    image = Image.new("L", (int(right - left) + 2, int(bottom - top) + 2))
    ImageDraw.Draw(image).text((1 - left, 1 - top), text, 255, font)
    return np.asarray(image)


def write(
    text: str,
    digits: Examples,
    rng: np.random.Generator,
    blank: tuple[float, float],
    hand: str = "",
) -> Levels:
    """Write a text in a hand, or any, with `blank` heights between characters: ink is 255."""
    hand, height = hand or str(rng.choice(HANDS)), rng.uniform(26, 64)
    if hand == "fonts" and blank[1] < 0.5:
        ink = set_in_font(text, height, rng)
    else:
        ink = _by_pen(text, hand, digits, height, blank, rng)
    margin = rng.integers(int(0.4 * height), int(1.6 * height), 4)
    return np.pad(ink, (tuple(margin[:2]), tuple(margin[2:])))


def _by_pen(
    text: str, hand: str, digits: Examples, height: float, blank: tuple[float, float],
    rng: np.random.Generator,
) -> Levels:  # fmt: skip
    glyphs, pen = [], height * rng.uniform(0.06, 0.13)
    for character in text:
        if character.isdigit():
            glyph = digit_glyph(int(character), hand, digits, rng)
            scale = height * rng.uniform(0.88, 1.12) / len(glyph)
            size = max(2, round(glyph.shape[1] * scale)), round(len(glyph) * scale)
            glyphs.append((np.asarray(Image.fromarray(glyph).resize(size, 3)), 1.0))
        else:
            glyphs.append((_mark(character, height, pen, rng), 1.5))
    width = sum(glyph.shape[1] for glyph, _ in glyphs) + int(2.3 * height * len(glyphs))
    page, x = np.zeros((int(2.8 * height), width), np.uint8), 2.0
    for glyph, base in glyphs:
        y = int(height * (0.7 + base + rng.uniform(-0.05, 0.05))) - len(glyph)
        window = page[y : y + len(glyph), int(x) : int(x) + glyph.shape[1]]
        np.maximum(window, glyph, out=window)
        x += glyph.shape[1] + height * rng.uniform(*blank)
    return page[:, : int(x) + 2]


def digit_glyph(digit: int, hand: str, digits: Examples, rng: np.random.Generator) -> Levels:
    """Choose or draw a digit in one of HANDS, but fonts: its ink is 255, without margins."""
    if hand == "optdigits":
        glyph = np.asarray(optdigits_glyph(digit, 60, rng))
    elif hand == "mnist":
        glyph = rng.choice(digits.images[digits.labels == digit]).reshape(28, 28)
    else:
        glyph = np.asarray(stroke_glyph(digit, 60, rng))
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
