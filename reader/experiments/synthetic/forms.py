"""Pages of forms by other printers: dashed boxes, rows and tables of boxes, circled digits."""

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from experiments.synthetic.drawing import FONTS
from experiments.synthetic.hands import Writers, digit_glyph
from experiments.synthetic.strings import Composed, owner
from experiments.synthetic.texts import Make

Point = tuple[float, float]

FINE = 3
"""Lines are drawn at this many times the final resolution."""
STYLES = (
    "adjoining", "apart", "double", "rounded", "missing side", "table", "touching", "shaded",
    "label", "half-height",
)  # fmt: skip


class _Sheet:
    """A page with its lines and its digits."""

    def __init__(
        self, width: float, height: float, writers: Writers, rng: np.random.Generator
    ) -> None:
        self.rng, self.size = rng, (int(width) * FINE, int(height) * FINE)
        self.weight, self.pen = int(rng.integers(80, 256)), rng.uniform(1, 4)
        self.lines = Image.new("L", self.size)
        self.draw = ImageDraw.Draw(self.lines)
        self.ink = np.zeros((int(height), int(width)), np.uint8)
        self.owners = np.zeros(self.ink.shape, np.uint32)
        self.mnist, self.count = writers.mnist, 0
        self.hand = str(rng.choice(["mnist", "mnist", "mnist", *writers.others]))

    def line(self, points: list[Point], dash: float = 0, gap: float = 0) -> None:
        """Draw a line through points, solid or dashed; dots if a dash is shorter than the pen."""
        steps = np.array(points) * FINE
        lengths = np.append(0, np.cumsum(np.hypot(*np.diff(steps, axis=0).T)))
        radius, at = self.pen * FINE / 2, 0.0
        while at < lengths[-1]:
            end = min(lengths[-1], at + dash * FINE) if gap else lengths[-1]
            for where in np.arange(at, end + 0.5, max(1, radius / 2)):
                x, y = (np.interp(where, lengths, steps[:, axis]) for axis in (0, 1))
                self.draw.ellipse((x - radius, y - radius, x + radius, y + radius), self.weight)
            at = end + (gap + self.pen) * FINE

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        without: int = 9,
        dash: float = 0,
        gap: float = 0,
    ) -> None:
        """Draw a box's sides, apart from one."""
        corners = [(left, top), (right, top), (right, bottom), (left, bottom), (left, top)]
        for side in range(4):
            if side != without:
                self.line(corners[side : side + 2], dash, gap)

    def digit(self, digit: int, x: float, y: float, height: float) -> None:
        """Write the next digit around a point."""
        glyph = digit_glyph(digit, self.hand, self.mnist, self.rng)
        scale = height / max(len(glyph), 0.75 * glyph.shape[1])
        size = max(2, round(glyph.shape[1] * scale)), max(2, round(len(glyph) * scale))
        glyph = np.asarray(Image.fromarray(glyph).resize(size, 3))
        top, left = max(0, round(y - size[1] / 2)), max(0, round(x - size[0] / 2))
        window = slice(top, top + size[1]), slice(left, left + size[0])
        inside = self.ink[window]
        glyph = glyph[: inside.shape[0], : inside.shape[1]]
        np.maximum(inside, glyph, out=inside)
        self.owners[window] |= owner(glyph, self.count)
        self.count += 1

    def made(self, text: str) -> Composed:
        """Return the page, turned by up to 3 degrees."""
        ink = np.maximum(self.ink, np.asarray(self.lines.reduce(FINE)))
        turn = float(self.rng.choice([0, self.rng.uniform(-3, 3)]))
        ink = np.asarray(Image.fromarray(ink).rotate(turn, Image.Resampling.BICUBIC))
        owners = Image.fromarray(self.owners.view(np.int32)).rotate(turn)
        return Composed(text, ink, np.asarray(owners).view(np.uint32))


def _number(rng: np.random.Generator, low: int, high: int) -> str:
    return "".join(map(str, rng.integers(0, 10, rng.integers(low, high + 1))))


def dashed_boxes(writers: Writers, rng: np.random.Generator) -> Composed:
    """Write one digit or a row of digits into boxes with dashed or dotted sides."""
    text = _number(rng, 1, 1) if rng.random() < 0.25 else _number(rng, 2, 8)
    side = rng.uniform(34, 80)
    pitch = side + rng.choice([0, rng.uniform(0.1, 0.5)]) * side
    margin = rng.uniform(12, 60, 4)
    page = _Sheet(
        pitch * len(text) + margin[0] + margin[1], 1.3 * side + margin[2] + margin[3], writers, rng
    )
    dots_or_dashes = (0.1, rng.uniform(2, 6)), (rng.uniform(3, 12), rng.uniform(2, 8))
    dash, gap = dots_or_dashes[rng.integers(2)]
    height = side * rng.uniform(1, 1.25)
    for index, digit in enumerate(text):
        left, top = margin[0] + index * pitch, margin[2]
        page.box(left, top, left + side, top + height, dash=dash, gap=gap)
        x, y = rng.normal((left + side / 2, top + height / 2), 0.04 * side)
        page.digit(int(digit), x, y, side * rng.uniform(0.55, 0.8))
    return page.made(text)


def box_rows(writers: Writers, rng: np.random.Generator) -> Composed:
    """Write a number into a row of boxes, or several into a table, of one of STYLES."""
    style = str(rng.choice(STYLES))
    count = int(rng.integers(3, 9))
    texts = [
        _number(rng, count, count) for _ in range(rng.integers(2, 5) * (style == "table") or 1)
    ]
    side = rng.uniform(30, 70)
    is_apart = style in ("apart", "rounded", "missing side") or rng.random() < 0.2
    pitch = side * (rng.uniform(1.1, 1.5) if is_apart and style != "table" else 1)
    height, (left, right, top, bottom) = side * rng.uniform(1, 1.3), rng.uniform(12, 60, 4)
    label = str(rng.choice(["IBAN", "Date", "Tel.", "Name", "Konto"])) if style == "label" else ""
    is_beside = bool(label) and rng.random() < 0.5
    left += 3.2 * side * is_beside
    top += side * (bool(label) and not is_beside)
    page = _Sheet(pitch * count + left + right, height * len(texts) + top + bottom, writers, rng)
    page.pen = rng.uniform(0.8, 2) if style == "double" else float(rng.choice([1, 2, 3, 5]))
    without = int(rng.integers(4)) if style == "missing side" else 9
    share = rng.uniform(0.85, 1.05) if style == "touching" else rng.uniform(0.55, 0.8)
    for row, text in enumerate(texts):
        for index, digit in enumerate(text):
            x, y = left + index * pitch, top + row * height
            if style == "shaded" and rng.random() < 0.6:
                page.draw.rectangle(
                    tuple(np.array([x, y, x + side, y + height]) * FINE), int(rng.integers(15, 50))
                )
            if style == "half-height":
                page.line(
                    [(x, y + height / 2), (x, y + height)] if index else [(x, y), (x, y + height)]
                )
                page.line([(x, y + height), (x + pitch, y + height)])
                page.line([(x, y), (x + pitch, y)])
            elif style == "rounded":
                page.draw.rounded_rectangle(
                    tuple(np.array([x, y, x + side, y + height]) * FINE),
                    side * FINE * rng.uniform(0.1, 0.25), outline=page.weight,
                    width=round(page.pen * FINE),
                )  # fmt: skip
            else:
                page.box(x, y, x + side, y + height, without)
            if style == "double":
                inset = page.pen + 3
                page.box(x + inset, y + inset, x + side - inset, y + height - inset)
            at = rng.normal((x + side / 2, y + height / 2), 0.04 * side)
            page.digit(int(digit), at[0], at[1], side * share)
    if style == "half-height":
        page.line([(left + count * pitch, top), (left + count * pitch, top + height)])
    if label:
        font = ImageFont.truetype(
            str(FONTS[rng.integers(len(FONTS))]), side * FINE * rng.uniform(0.4, 0.7)
        )
        place = (8 * FINE, (top + 0.2 * side) * FINE) if is_beside else (left * FINE, 4 * FINE)
        page.draw.text(place, label, int(rng.integers(120, 256)), font)
    return page.made(" ".join(texts))


def circled(writers: Writers, rng: np.random.Generator) -> Composed:
    """Draw a circle around one digit, around each of several, or around a number."""
    kind = rng.integers(4)
    text = _number(rng, 1, 1) if kind < 2 else _number(rng, 2, 6)
    size = rng.uniform(26, 60)
    is_whole, is_touched = kind == 3, rng.random() < 0.25
    radius = size * (0.58 if is_touched else rng.uniform(0.75, 1.1))
    pitch = 0.9 * size if is_whole else 2 * radius * rng.uniform(1.25, 1.5)
    wide = radius * rng.uniform(0.85, 1.2)
    if is_whole:
        wide += (len(text) - 1) * pitch / 2 * 1.15
    margin = rng.uniform(0.3, 1.5, 2) * size
    page = _Sheet(
        pitch * (len(text) - 1) + 2 * wide + 2 * margin[0], 2 * radius + 2 * margin[1], writers, rng
    )
    page.pen, y = max(1.2, size * rng.uniform(0.03, 0.12)), margin[1] + radius
    is_printed = rng.random() < 0.4
    page.weight = int(rng.integers(120, 256))
    xs = margin[0] + wide + pitch * np.arange(len(text))
    centres = [(xs.mean(), y)] if is_whole else [(x, y) for x in xs]
    for x, _ in centres:
        page.line(_loop(x, y, wide, radius, rng, is_printed))
    for digit, x in zip(text, xs, strict=True):
        shift = rng.normal(0, 0.04 * size, 2)
        page.digit(int(digit), x + shift[0], y + shift[1], size * rng.uniform(0.85, 1))
    return page.made(text)


def _loop(
    x: float, y: float, wide: float, high: float, rng: np.random.Generator, is_printed: bool
) -> list[Point]:
    """Return the points of an ellipse; by hand it is uneven, and may end before or after."""
    start, turns = rng.uniform(0, 2 * np.pi), 1.0
    uneven = np.zeros(120)
    if not is_printed:
        turns = rng.uniform(0.88, 1.12)
    angles = np.linspace(0, 2 * np.pi * turns, 120)
    if not is_printed:
        for order in (1, 2, 3):
            uneven += rng.normal(0, 0.035 / order) * np.cos(order * angles + rng.uniform(0, 6))
        uneven += np.linspace(0, rng.normal(0, 0.05), 120)
    shape = 1 + uneven
    return list(
        zip(
            x + wide * shape * np.cos(angles + start),
            y + high * shape * np.sin(angles + start),
            strict=True,
        )
    )


FORMS: dict[str, Make] = {
    "dashed boxes": dashed_boxes,
    "box rows": box_rows,
    "circled digits": circled,
}
"""The kinds of pages."""
