"""Pages to read numbers on: composed strings, forms with boxes, and pages without any digit."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter

from experiments.synthetic.drawing import FONTS, curve, font_glyph, stroke_glyph
from experiments.synthetic.papers import PAPERS, lay
from experiments.synthetic.strings import Composed, Levels, compose, owner
from training.data.mnist import Examples

OTHER_FONTS = [
    Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    for name in ("DejaVuSans-Oblique", "DejaVuSans-BoldOblique", "DejaVuSansMono-Bold",
                 "DejaVuSerif-Bold", "DejaVuSerif-Italic", "STIXGeneralBolIta", "cmb10")
]  # fmt: skip
"""Fonts to fit on; those of FONTS are for evaluation."""
FIELDS = ("boxes", "round boxes", "lines", "combs")
"""The lines of forms around or under each digit."""
LETTERS = "ABCDEFGHJKLMNPQRTUVWXYabcdefghijkmnprstuvwxy"
"""Without those that are digits, too, where nothing stands beside them: I, O, S, Z, l, o, q, z."""


def written(rng: np.random.Generator, fonts: Sequence[Path], lowest: float = 2) -> Composed:
    """Write 2 to 8 digits by pen strokes or set them in one font, with gaps of `lowest` to 10."""
    text = "".join(map(str, rng.integers(0, 10, rng.integers(2, 9))))
    if rng.random() < 0.5:
        glyphs = [np.asarray(stroke_glyph(int(digit), 80, rng)) for digit in text]
    else:
        font = [fonts[int(rng.integers(len(fonts)))]]
        glyphs = [np.asarray(font_glyph(digit, 80, rng, font)) for digit in text]
    gaps = rng.uniform(lowest, 10, len(text) - 1).tolist()
    return compose(text, glyphs, gaps, rng, unit=80)


def form(digits: Examples, rng: np.random.Generator, field: str = "boxes") -> Composed:
    """Write MNIST's digits into a form's field; some reach over its lines.

    Args:
        digits: to choose from.
        rng: draws the digits and the rest.
        field: one of FIELDS: a row of boxes, of short lines, or a line with teeth between digits.
    """
    chosen = rng.integers(len(digits.labels), size=rng.integers(2, 9))
    side = int(rng.integers(34, 80))
    gap = max(0, int(rng.integers(-side, side // 2)))
    pitch = side if field == "combs" else side + gap
    height = int(side * rng.uniform(1, 1.3))
    margin = rng.integers(10, 80, 4)
    num_boxes = len(chosen) + int(rng.integers(0, 3))
    shape = (height + margin[0] + margin[1], pitch * num_boxes + margin[2] + margin[3])
    owners, ink = np.zeros(shape, np.uint32), np.zeros(shape, np.uint8)
    for index, image in enumerate(digits.images[chosen]):
        scale = side * rng.uniform(0.55, 0.85) / 20
        size = round(28 * scale)
        glyph = np.asarray(Image.fromarray(image.reshape(28, 28)).resize((size, size), 3))
        y = margin[0] + (height - size) // 2 + int(rng.normal(0, 0.04 * side))
        x = margin[2] + index * pitch + (side - size) // 2 + int(rng.normal(0, 0.04 * side))
        window = slice(max(0, y), y + size), slice(max(0, x), x + size)
        crop = glyph[max(0, -y) :, max(0, -x) :][
            : shape[0] - window[0].start, : shape[1] - window[1].start
        ]
        owners[window] |= owner(crop, index)
        ink[window] = np.maximum(ink[window], crop)
    pen, weight = int(rng.integers(1, 4)), int(rng.integers(90, 256))
    sheet = Image.new("L", shape[::-1])
    draw = ImageDraw.Draw(sheet)
    for index in range(num_boxes):
        x, y = margin[2] + index * pitch, margin[0]
        draw_field(draw, field, (x, y, x + side, y + height), weight, pen)
    turn = rng.uniform(-1.5, 1.5)
    lines = np.asarray(sheet.rotate(turn, Image.Resampling.BILINEAR))
    return Composed(
        "".join(map(str, digits.labels[chosen].tolist())), np.maximum(ink, lines), owners
    )


def draw_field(
    draw: ImageDraw.ImageDraw, field: str, box: tuple[int, int, int, int], weight: int, pen: int
) -> None:
    """Draw the lines around one digit."""
    left, top, right, bottom = box
    if field == "boxes":
        draw.rectangle(box, outline=weight, width=pen)
    elif field == "round boxes":
        draw.rounded_rectangle(box, (right - left) // 6, outline=weight, width=pen)
    else:
        draw.line((left, bottom, right, bottom), weight, pen)
    if field == "combs":
        for x in (left, right):
            draw.line((x, bottom - (bottom - top) // 3, x, bottom), weight, pen)


def letters(rng: np.random.Generator, fonts: Sequence[Path]) -> Levels:
    """Set a few words of LETTERS in one font."""
    font = [fonts[int(rng.integers(len(fonts)))]]
    lines = []
    for _ in range(rng.integers(1, 5)):
        words = [
            "".join(rng.choice(list(LETTERS), rng.integers(3, 9)))
            for _ in range(rng.integers(1, 4))
        ]
        height = int(rng.integers(20, 50))
        lines.append(np.asarray(font_glyph(" ".join(words), height, rng, font, turn_deg=0)))
    width = max(line.shape[1] for line in lines)
    return np.vstack([np.pad(line, ((0, 0), (0, width - line.shape[1]))) for line in lines])[
        :1000, :1000
    ]


def scribble(rng: np.random.Generator) -> Levels:
    """Draw smooth strokes of a pen without meaning, dots, dashes and smears."""
    height, width = int(rng.integers(80, 400)), int(rng.integers(120, 700))
    image = Image.new("L", (width, height))
    pen = ImageDraw.Draw(image)
    for _ in range(rng.integers(1, 12)):
        size = rng.uniform(8, 60)
        at = rng.uniform(0, [width, height])
        radius = size * rng.uniform(0.03, 0.12) + 0.5
        points = at + rng.normal(0, size / 2, (rng.integers(2, 9), 2))
        if rng.random() < 0.3:  # a line or a dot
            points = at + np.outer([0, 1], rng.normal(0, size * rng.choice([0.02, 1]), 2))
        for x, y in curve(points, radius / 2):
            pen.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    if rng.random() < 0.3:
        image = image.filter(ImageFilter.GaussianBlur(rng.uniform(1, 6)))
    return np.asarray(image)


def photograph(rng: np.random.Generator) -> Levels:
    """Render a photo of things: overlapping shapes with shading, texture and blur."""
    height, width = int(rng.integers(150, 700)), int(rng.integers(150, 900))
    y, x = np.mgrid[:height, :width]
    scene = rng.uniform(60, 200) + 40 * np.sin(x / rng.uniform(30, 200) + rng.uniform(0, 6))
    for _ in range(rng.integers(3, 25)):
        cy, cx = rng.uniform(0, height), rng.uniform(0, width)
        ry, rx = rng.uniform(5, height / 2), rng.uniform(5, width / 2)
        down, across = np.abs(y - cy) / ry, np.abs(x - cx) / rx
        is_round = rng.random() < 0.5
        inside = down**2 + across**2 < 1 if is_round else (down < 1) & (across < 1)
        shade = rng.uniform(0, 255) + rng.uniform(-60, 60) * (x - cx) / width
        scene = np.where(inside, shade, scene)
    scene += rng.normal(0, rng.uniform(0, 10), scene.shape)
    image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
    return np.asarray(image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 3))))


def blank(rng: np.random.Generator) -> Levels:
    """Leave a page of some size empty."""
    return np.zeros((int(rng.integers(60, 700)), int(rng.integers(60, 900))), np.uint8)


def any_paper(ink: Levels, rng: np.random.Generator) -> Levels:
    """Lay ink on one of the five kinds of paper."""
    return lay(ink, str(rng.choice([*PAPERS])), rng)


def without_digits(kind: str, rng: np.random.Generator, fonts: Sequence[Path] = FONTS) -> Levels:
    """Make the grey levels of a page without any digit, of a kind of EMPTY."""
    match kind:
        case "blank":
            return lay(blank(rng), str(rng.choice(["white", "uneven", "grainy", "board"])), rng)
        case "ruled":
            return lay(blank(rng), "ruled", rng)
        case "letters":
            return any_paper(letters(rng, fonts), rng)
        case "scribbles":
            return any_paper(scribble(rng), rng)
    return photograph(rng)


EMPTY = ("blank", "ruled", "letters", "scribbles", "photographs")
