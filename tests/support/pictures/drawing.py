"""Pictures of digits drawn by code, with their labels: to test `from_picture` on.

Fonts and pen strokes of many sizes, rotated and slanted, on clean white or on paper with uneven
light, shadows, ruled lines and grain, dark on light or the reverse; and scikit-learn's 8 x 8 digits
(UCI optdigits), enlarged.
"""

import io
from collections.abc import Sequence
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from digit_classifier import Classifier
from digit_classifier.pictures import from_picture

Picture = tuple[int, bytes]
"""The digit, and the file's content."""

POPULATIONS = ("fonts", "strokes", "optdigits")
FONTS = [
    Path(matplotlib.get_data_path()) / "fonts" / "ttf" / f"{name}.ttf"
    for name in ("DejaVuSans", "DejaVuSans-Bold", "DejaVuSansMono", "DejaVuSerif", "STIXGeneral",
                 "STIXGeneralItalic", "STIXGeneralBol", "cmr10", "cmss10", "cmtt10")
]  # fmt: skip
# Two ways to write each digit, as points x,y in a box of 6 x 10; a curve goes through them.
STROKES = [
    ["3,0 1,2 0,5 1,8 3,10 5,8 6,5 5,2 3,0", "4,0 2,1 1,5 2,9 3,10 5,8 5,4 4,1 3,0"],
    ["3,0 3,10", "1,3 4,0 4,0 4,10"],
    ["0,3 1,1 3,0 5,1 5,4 3,7 0,10 0,10 6,10", "0,2 2,0 5,1 5,4 3,7 1,9 0,9 1,8 3,9 6,10"],
    ["0,1 3,0 5,1 5,3 3,5 3,5 5,6 6,8 4,10 1,10 0,9", "0,0 5,0 5,0 2,4 2,4 5,5 6,8 3,10 0,9"],
    ["1,0 0,6 0,6 6,6|4,3 4,10", "4,10 4,0 4,0 0,7 0,7 6,7"],
    ["5,0 1,0 1,0 1,4 1,4 4,4 6,7 4,10 0,9", "1,0 1,4 1,4 4,4 5,7 3,10 0,9|1,0 6,0"],
    ["5,0 2,2 0,6 1,9 3,10 5,9 5,6 3,5 1,7", "3,0 1,4 0,8 2,10 4,9 5,7 3,6 1,7"],
    ["0,0 6,0 6,0 2,10", "0,0 6,0 6,0 3,10|1,5 5,5"],
    ["5,2 3,0 1,2 2,4 4,6 5,8 3,10 1,8 2,6 4,4 5,2",
     "3,0 1,1 1,3 3,5 5,3 5,1 3,0|3,5 1,6 0,8 3,10 6,8 5,6 3,5"],
    ["5,2 3,0 1,1 1,4 3,5 5,3 5,1 5,1 5,10", "5,2 3,0 1,2 1,4 3,5 5,3 5,2 5,6 4,9 1,10"],
]  # fmt: skip


def draw(population: str, number: int, seed: int, *, on_paper: bool) -> list[Picture]:
    """Draw `number` pictures of a population, every digit equally often."""
    rng = np.random.default_rng(seed)
    glyph = {"fonts": font_glyph, "strokes": stroke_glyph, "optdigits": optdigits_glyph}[population]
    pictures = []
    for digit in np.resize(np.arange(10), number):
        height = int(np.exp(rng.uniform(np.log(30), np.log(400))))
        ink = glyph(int(digit), height, rng)
        pictures.append((int(digit), paper(ink, rng) if on_paper else png(255 - np.asarray(ink))))
    return pictures


def font_glyph(
    digit: int | str,
    height: int,
    rng: np.random.Generator,
    fonts: Sequence[Path] = FONTS,
    turn_deg: float = 15,
) -> Image.Image:
    """Set a digit, or any text, in some font, turned by up to some degrees: ink is 255."""
    font = ImageFont.truetype(str(fonts[int(rng.integers(len(fonts)))]), height * 1.4)
    left, top, right, bottom = font.getbbox(str(digit))
    margin = height // 2
    size = (int(right - left) + 2 * margin, int(bottom - top) + 2 * margin)
    image = Image.new("L", size)
    ImageDraw.Draw(image).text((margin - left, margin - top), str(digit), 255, font)
    angle = rng.uniform(-turn_deg, turn_deg) if turn_deg else 0
    return image.rotate(angle, Image.Resampling.BICUBIC)


def stroke_glyph(digit: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Write a digit with a pen of some width, slanted, turned, and a little unsteady."""
    angle, width = np.deg2rad(rng.uniform(-10, 10)), rng.uniform(0.7, 1.1)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    shape = turn @ np.array([[width, rng.uniform(-0.25, 0.1)], [0, 1]])
    pen = np.exp(rng.uniform(np.log(0.02), np.log(0.15)))
    return pen_glyph(tracks(str(rng.choice(STROKES[digit]))), height, shape, pen, rng)


def tracks(text: str) -> list[np.ndarray]:
    """Parse the lines of a digit: (N, 2) points each."""
    lines = (line.split() for line in text.split("|"))
    return [np.array([[float(v) for v in point.split(",")] for point in line]) for line in lines]


def moved(points: np.ndarray, distance: float, rng: np.random.Generator) -> np.ndarray:
    """Move (N, 2) points at random; equal ones, which make a corner, together."""
    _, same = np.unique(points, axis=0, return_inverse=True)
    result: np.ndarray = points + rng.normal(0, distance, points.shape)[same.ravel()]
    return result


def pen_glyph(
    lines: list[np.ndarray], height: int, shape: np.ndarray, pen: float, rng: np.random.Generator
) -> Image.Image:
    """Draw lines of points in a box of 6 x 10, each a little moved, with a pen: ink is 255.

    Args:
        lines: (N, 2) points each.
        height: of an upright digit, in pixels.
        shape: (2, 2), the linear map that slants and turns the points.
        pen: its width, in heights.
        rng: moves the points.
    """
    radius = height * pen  # at twice the size
    image = Image.new("L", (4 * height, 4 * height))
    draw = ImageDraw.Draw(image)
    for line in lines:
        points = moved(line, 0.25, rng) - [3, 5]
        for x, y in curve(points @ shape.T * height / 5 + 2 * height, step=radius / 3):
            draw.ellipse((x - radius, y - radius, x + radius, y + radius), 255)
    return image.reduce(2)


def curve(points: np.ndarray, step: float) -> np.ndarray:
    """Catmull-Rom spline through (N, 2) points, about `step` apart."""
    p = np.concatenate([points[:1], points, points[-1:]])
    a, b, c, d = (p[i : len(p) - 3 + i, None] for i in range(4))
    count = max(2, int(np.abs(np.diff(points, axis=0)).sum(1).max() / step))
    t = np.linspace(0, 1, count)[:, None]
    cubic = (1.5 * (b - c) + (d - a) / 2) * t + (a - 2.5 * b + 2 * c - d / 2)
    path: np.ndarray = ((cubic * t + (c - a) / 2) * t + b).reshape(-1, 2)
    return path


def optdigits_glyph(digit: int, height: int, rng: np.random.Generator) -> Image.Image:
    """Enlarge one of the UCI 8 x 8 digits smoothly."""
    with np.load(Path(__file__).parents[3] / "tests" / "data" / "optdigits.npz") as arrays:
        image = rng.choice(arrays["images"][arrays["labels"] == digit]).reshape(8, 8)
    large = Image.fromarray((image * 15.9).astype(np.uint8)).resize(
        (height, height), Image.Resampling.BICUBIC
    )
    framed = Image.new("L", (height * 3 // 2, height * 3 // 2))
    framed.paste(large, (height // 4, height // 4))
    return framed


def row(glyphs: list[np.ndarray], gap: int) -> np.ndarray:
    """Set digits side by side, `gap` blank pixels between their ink: (H, W), ink is 255."""
    height = max(len(glyph) for glyph in glyphs)
    parts = [np.zeros((height, gap), np.uint8)]
    for glyph in glyphs:
        columns = np.flatnonzero((glyph > 40).any(0))
        alone = glyph[:, columns[0] : columns[-1] + 1]
        parts += [np.pad(alone, ((0, height - len(alone)), (0, 0))), parts[0]]
    return np.hstack(parts[1:-1])


def framed(glyph: Image.Image, shape: str, rng: np.random.Generator) -> Image.Image:
    """Draw a "box" or a "circle" around a digit, or one that lies "partly outside" the picture."""
    box = glyph.getbbox()
    assert box is not None
    glyph = glyph.crop(box)
    side = max(glyph.size)
    pen, gap = max(1, int(side * rng.uniform(0.015, 0.1))), side * rng.uniform(0.15, 0.6)
    half = np.array(glyph.size) / 2 + gap
    if shape == "circle":
        half[:] = np.hypot(*glyph.size) / 2 + gap
    margin = pen + int(side * rng.uniform(0.1, 0.6))
    centre = half + margin
    image = Image.new("L", tuple(int(2 * c) for c in centre))
    at = centre - np.array(glyph.size) / 2 + gap * rng.uniform(-0.4, 0.4, 2)
    image.paste(glyph, (int(at[0]), int(at[1])))
    draw = ImageDraw.Draw(image)
    corners = (*(centre - half - pen), *(centre + half + pen))
    (draw.ellipse if shape == "circle" else draw.rectangle)(corners, outline=255, width=pen)
    if shape == "partly outside":
        image = image.crop((margin, 0, image.width, image.height - margin))
    return image


def paper(glyph: Image.Image, rng: np.random.Generator) -> bytes:
    """Lay ink on a larger sheet: colours, light, shadow, lines, grain; as PNG or JPEG."""
    height = glyph.height
    sheet = Image.new("L", [int(side * rng.uniform(1.0, 2.2)) + 1 for side in glyph.size])
    at = [int(rng.uniform(0, sheet.size[i] - glyph.size[i])) for i in (0, 1)]
    sheet.paste(glyph, (at[0], at[1]))
    ink = np.asarray(sheet, np.float32)[..., None] / 255
    light = rng.uniform(190, 255) + rng.uniform(-25, 25, 3)
    dark = rng.uniform(0, 70) + rng.uniform(0, 60, 3)
    back, fore = (light, dark) if rng.random() < 0.6 else (dark, light)
    y, x = np.mgrid[-1 : 1 : ink.shape[0] * 1j, -1 : 1 : ink.shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    slope = np.cos(angle) * x + np.sin(angle) * y
    lit = 1 + rng.uniform(0, 0.2) * slope - rng.uniform(0, 0.15) * (x * x + y * y)
    if rng.random() < 0.25:  # the edge of a shadow
        lit *= 1 - rng.uniform(0.15, 0.4) / (1 + np.exp(-slope / rng.uniform(0.02, 0.2)))
    page = np.broadcast_to(back, (*ink.shape[:2], 3)).copy()
    if rng.random() < 0.35:  # ruled
        lines = np.arange(len(page)) % (height * rng.uniform(0.15, 0.5)) < max(1, height * 0.01)
        page[lines] += (fore - back) * rng.uniform(0.1, 0.35)
    colours = (page * (1 - ink) + fore * ink) * lit[..., None]
    colours += rng.normal(0, rng.uniform(0, 8), (*ink.shape[:2], 1))
    return png(np.clip(colours, 0, 255), "JPEG" if rng.random() < 0.5 else "PNG")


def png(levels: np.ndarray, kind: str = "PNG") -> bytes:
    """Save (H, W) or (H, W, 3) levels, 0 to 255, as a file's content."""
    file = io.BytesIO()
    Image.fromarray(levels.astype(np.uint8)).save(file, kind)
    return file.getvalue()


def accuracy(classifier: Classifier, pictures: list[Picture]) -> float:
    """The share of pictures that are answered correctly, 0 to 1."""
    images = np.concatenate([from_picture(io.BytesIO(content)) for _, content in pictures])
    labels = np.array([digit for digit, _ in pictures])
    return float((classifier.classify(images).digits == labels).mean())


def print_table(classifier: Classifier, number: int, seed: int) -> None:
    """Print the accuracy on every population, as a Markdown table."""
    print("| pictures | on white | on paper |\n|---|---|---|")
    for population in POPULATIONS:
        clean, photo = (
            accuracy(classifier, draw(population, number, seed, on_paper=on_paper))
            for on_paper in (False, True)
        )
        print(f"| {population} | {clean:.1%} | {photo:.1%} |", flush=True)


if __name__ == "__main__":
    with Classifier.pretrained() as bundled:
        print_table(bundled, number=300, seed=0)
