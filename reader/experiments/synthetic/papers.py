"""Five kinds of paper that ink is laid on: white, lit unevenly, ruled, grainy, a chalk board."""

import io
from collections.abc import Callable

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageFilter

from experiments.synthetic.drawing import png

Levels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float64]


def white(ink: Floats, rng: np.random.Generator) -> Floats:
    """Black or blue on white."""
    return 255 - ink * rng.uniform(160, 255)


def uneven(ink: Floats, rng: np.random.Generator) -> Floats:
    """A photo: light that falls off, the edge of a soft shadow, a little grain."""
    slope, radius = _slope(ink.shape, rng)
    lit = 1 + rng.uniform(0, 0.25) * slope - rng.uniform(0, 0.2) * radius
    lit = lit * (1 - rng.uniform(0.1, 0.35) / (1 + np.exp(-slope / rng.uniform(0.08, 0.3))))
    page = (rng.uniform(190, 235) * (1 - ink) + rng.uniform(20, 80) * ink) * lit
    return np.asarray(page + rng.normal(0, 3, ink.shape))


def ruled(ink: Floats, rng: np.random.Generator) -> Floats:
    """Lines of a notebook, fainter than the ink, some with a little skew."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    pitch, width = rng.uniform(30, 80), rng.uniform(1, 2.5)
    rows = (y + x * rng.uniform(-0.02, 0.02) + rng.uniform(0, pitch)) % pitch
    lines = np.clip(width - rows, 0, 1) * rng.uniform(0.2, 0.6)
    page = 245 - 205 * np.maximum(ink * rng.uniform(0.9, 1), lines)
    return np.asarray(page + rng.normal(0, 2, ink.shape))


def squared(ink: Floats, rng: np.random.Generator) -> Floats:
    """Squared paper of a school's exercise book: a digit is one to three squares high."""
    y, x = np.mgrid[: ink.shape[0], : ink.shape[1]]
    pitch, width, skew = rng.uniform(18, 45), rng.uniform(1, 2.5), rng.uniform(-0.015, 0.015)
    across, down = (y + x * skew) + rng.uniform(0, pitch), (x - y * skew) + rng.uniform(0, pitch)
    lines = np.maximum(*(np.clip(width - at % pitch, 0, 1) for at in (across, down)))
    page = 245 - 205 * np.maximum(ink * rng.uniform(0.9, 1), lines * rng.uniform(0.2, 0.6))
    return np.asarray(page + rng.normal(0, 2, ink.shape))


def grainy(ink: Floats, rng: np.random.Generator) -> Floats:
    """Recycled paper, pencil: coarse grain, weak ink."""
    blocks = rng.normal(0, 1, (ink.shape[0] // 3 + 1, ink.shape[1] // 3 + 1))
    coarse = np.kron(blocks, np.ones((3, 3)))[: ink.shape[0], : ink.shape[1]]
    page = 205 - ink * rng.uniform(90, 150)
    return page + coarse * rng.uniform(2, 6) + rng.normal(0, rng.uniform(3, 9), ink.shape)


def board(ink: Floats, rng: np.random.Generator) -> Floats:
    """White chalk on a dark board that was wiped."""
    slope, radius = _slope(ink.shape, rng)
    wiped = rng.uniform(35, 60) + rng.uniform(0, 12) * slope - 8 * radius
    chalk = ink * rng.uniform(0.75, 1, ink.shape)
    return wiped + chalk * rng.uniform(120, 180) + rng.normal(0, 4, ink.shape)


PAPERS: dict[str, Callable[[Floats, np.random.Generator], Floats]] = {
    "white": white, "uneven": uneven, "ruled": ruled, "grainy": grainy, "board": board,
}  # fmt: skip


def lay(ink: Levels, paper: str, rng: np.random.Generator) -> Levels:
    """Lay ink on a kind of paper."""
    return on_paper(ink, PAPERS[paper], rng)


def on_paper(
    ink: Levels, paper: Callable[[Floats, np.random.Generator], Floats], rng: np.random.Generator
) -> Levels:
    """Lay ink on a paper of these functions."""
    return np.clip(paper(ink / 255.0, rng), 0, 255).astype(np.uint8)


def worn(levels: Levels, rng: np.random.Generator) -> Levels:
    """Blur a page, and save it as a JPEG file of low quality."""
    image = Image.fromarray(levels).filter(ImageFilter.GaussianBlur(rng.uniform(0.3, 1.3)))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=int(rng.integers(40, 95)))
    return np.asarray(Image.open(file))


def file_of(levels: Levels) -> io.BytesIO:
    """Save grey levels as a picture file in memory."""
    return io.BytesIO(png(levels))


def _slope(shape: tuple[int, ...], rng: np.random.Generator) -> tuple[Floats, Floats]:
    """Return -1 to 1 across the page in some direction, and the squared distance to its middle."""
    y, x = np.mgrid[-1 : 1 : shape[0] * 1j, -1 : 1 : shape[1] * 1j]
    angle = rng.uniform(0, 2 * np.pi)
    return np.cos(angle) * x + np.sin(angle) * y, x * x + y * y
