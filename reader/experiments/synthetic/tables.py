"""Photographs of a sheet on a table: perspective, light, shadows, blur and JPEG's noise."""

import io

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter
from scipy import ndimage

from digit_reader.ink.sheets import homography
from experiments.synthetic.hands import Writers, write
from experiments.synthetic.papers import Floats, Levels, lay

TABLES = ("wood", "cloth", "plain", "cluttered")


def photograph_of_sheet(writers: Writers, rng: np.random.Generator) -> tuple[io.BytesIO, str]:
    """Photograph a sheet with a number on it: a JPEG file, and its text."""
    text = "".join(map(str, rng.integers(0, 10, rng.integers(3, 8))))
    page = _sheet(text, writers, rng)
    size = np.array([(1280, 960), (960, 1280), (1000, 1000)][rng.integers(3)])
    corners = _corners(page.shape, size, rng)
    scene = _table(str(rng.choice(TABLES)), (size[1], size[0]), rng)
    sheet, alpha = (
        projected(levels, corners, size)[..., None] for levels in (page, np.full_like(page, 255))
    )
    alpha = alpha / 255
    shadow = np.roll(alpha, rng.integers(-12, 13, 2), (0, 1))
    scene *= 1 - rng.uniform(0, 0.6) * ndimage.uniform_filter(shadow, (13, 13, 1))
    tint = rng.uniform(0.92, 1, 3)
    scene = (scene * (1 - alpha) + sheet * tint * alpha) * _light(size, rng)
    image = Image.fromarray(np.clip(scene + rng.normal(0, 3, scene.shape), 0, 255).astype(np.uint8))
    image = image.filter(ImageFilter.GaussianBlur(rng.uniform(0, 1.3)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(55, 95)))
    file.seek(0)
    return file, text


def projected(
    levels: Levels, corners: Floats, size: npt.NDArray[np.int_] | tuple[int, int]
) -> Floats:
    """Show a page in a picture.

    Args:
        levels: (H, W), of the page.
        corners: (4, 2) x, y in the picture, from the top left, clockwise.
        size: the picture's width and height.

    Returns:
        Levels of the picture, 0 outside the page.
    """
    matrix = homography(np.asarray(corners), _rectangle(levels.shape))
    picture = Image.fromarray(levels).transform(
        (int(size[0]), int(size[1])), Image.Transform.PERSPECTIVE, matrix.ravel()[:8].tolist(),
        Image.Resampling.BICUBIC,
    )  # fmt: skip
    return np.asarray(picture, np.float64)


def _rectangle(shape: tuple[int, ...]) -> Floats:
    height, width = shape
    return np.array([(0, 0), (width, 0), (width, height), (0, height)], np.float64)


def _sheet(text: str, writers: Writers, rng: np.random.Generator) -> Levels:
    """Write a text somewhere on a white sheet; returns its levels."""
    ink = write(text, writers, rng, (0.12, 0.35)).ink
    ink = np.asarray(Image.fromarray(ink).resize((ink.shape[1] * 2, ink.shape[0] * 2), 3))
    width = int(ink.shape[1] * rng.uniform(1.05, 1.8))
    height = max(int(width * rng.choice([0.7, 1.0, 1.41, 0.55])), ink.shape[0] + 4)
    y, x = (int(rng.integers(0, side)) for side in (height - ink.shape[0], width - ink.shape[1]))
    page = np.zeros((height, width), np.uint8)
    page[y : y + ink.shape[0], x : x + ink.shape[1]] = ink
    return lay(page, str(rng.choice(["white", "uneven", "ruled"])), rng)


def _corners(
    shape: tuple[int, ...], size: npt.NDArray[np.int_], rng: np.random.Generator
) -> Floats:
    """Place a sheet's corners; in one of five photographs a side of it lies outside."""
    points = _rectangle(shape) - np.array(shape[::-1]) / 2
    angle = np.deg2rad(rng.uniform(-22, 22))
    turn = np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]])
    points = points @ turn
    points = points / (1 + points @ rng.uniform(-0.25, 0.25, 2) / np.abs(points).max())[:, None]
    low, high = points.min(0), points.max(0)
    scale = min((size * rng.uniform(0.6, 0.95)) / (high - low))
    points = (points - low) * scale
    free = np.maximum(size - points.max(0), 0)
    points = points + free * rng.uniform(0.05, 0.95, 2)
    if rng.random() < 0.2:  # a blank margin lies outside
        side = rng.integers(2)
        points[:, side] += rng.choice([-1, 1]) * free[side] * 0.5
        past = max(-points[:, side].min(), points[:, side].max() - size[side])
        reach = 0.04 * size[side] - past
        points[:, side] += reach if points[:, side].mean() > size[side] / 2 else -reach
    return np.asarray(points)


def _table(kind: str, shape: tuple[int, int], rng: np.random.Generator) -> Floats:
    """Paint a table: (H, W, 3)."""
    height, width = shape
    y, x = np.mgrid[:height, :width]
    colour = rng.uniform(20, 120) * rng.uniform(0.6, 1.2, 3)
    shade = np.zeros(shape)
    if kind == "wood":
        colour = rng.uniform(60, 150) * np.array([1, rng.uniform(0.6, 0.8), rng.uniform(0.3, 0.6)])
        wave = y / rng.uniform(4, 14) + 3 * np.sin(x / rng.uniform(100, 400)) + np.sin(y / 57)
        shade = rng.uniform(0.1, 0.3) * np.sin(wave + rng.normal(0, 0.4, shape))
        shade -= rng.uniform(0.2, 0.5) * (y % int(rng.uniform(120, 400)) < 4)
    elif kind == "cloth":
        shade = rng.normal(0, rng.uniform(0.05, 0.25), shape)
        shade += 0.15 * (np.sin(x * rng.uniform(0.5, 1.5)) + np.sin(y * rng.uniform(0.5, 1.5)))
    scene = colour * (1 + shade[..., None])
    if kind == "cluttered":  # a second bright object
        image = Image.fromarray(np.clip(scene, 0, 255).astype(np.uint8))
        left, top = rng.uniform(-0.2, 0.9, 2) * [width, height]
        box = (
            left,
            top,
            left + rng.uniform(0.1, 0.4) * width,
            top + rng.uniform(0.1, 0.4) * height,
        )
        draw = ImageDraw.Draw(image)
        paint = draw.ellipse if rng.random() < 0.5 else draw.rectangle
        paint(box, tuple(rng.integers(120, 256, 3).tolist()))
        scene = np.asarray(image, np.float64)
    return np.asarray(scene)


def _light(size: npt.NDArray[np.int_], rng: np.random.Generator) -> Floats:
    """Let light fall off across the picture, with a soft shadow's edge in half of them."""
    y, x = np.mgrid[-1 : 1 : size[1] * 1j, -1 : 1 : size[0] * 1j]
    angle, other = rng.uniform(0, 2 * np.pi, 2)
    lit = 1 - rng.uniform(0, 0.2) * (1 + np.cos(angle) * x + np.sin(angle) * y)
    if rng.random() < 0.5:
        slope = np.cos(other) * x + np.sin(other) * y + rng.uniform(-0.5, 0.5)
        lit = lit * (1 - rng.uniform(0.1, 0.35) / (1 + np.exp(-slope / rng.uniform(0.03, 0.2))))
    return np.asarray(lit[..., None])
