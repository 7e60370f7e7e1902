"""Corruptions that lie over the strokes: fog, spatter, a stripe, and lines that were drawn too.

Each function takes (N, 28, 28) float32 pictures, 0 to 255, and a generator, and returns pictures of
the same kind; `corruptions.py` rounds and clips them.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage

from training.data.mnist import SIDE
from training.lab.study.distortions import Pictures

STRIPE = slice(12, 16)
"""The columns whose pixels are inverted."""

FOG = 2.0
"""Strongest fog, as a share of full ink."""
FOG_DECAY = 2.0
"""Fog is noise at 2, 4, 8 and 16 cells a side; each finer one is weaker by this factor."""

SPATTER_PX = 1.5
"""Size of the drops: sigma of the Gaussian that smooths the noise they are cut from."""
SPATTER_SHARE = 0.12
"""Share of the picture that drops cover."""

LINE_MARGIN_PX = 8
"""A line goes from the left edge to the right edge; its ends stay this far from the corners."""
LINE_WIDTH_PX = 1.5
DOTS = 10
"""Of the dotted line."""
ZIGZAGS = 5
"""Straight parts of the zigzag."""
ZIGZAG_PX = 4.0
"""How far its corners are from the line."""

Points = npt.NDArray[np.float64]
"""(N, P, 2): rows and columns, in pixels."""


def stripe(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Invert the middle columns."""
    del rng  # nothing is random here
    striped = pictures.copy()
    striped[:, :, STRIPE] = 255 - striped[:, :, STRIPE]
    return striped


def fog(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Add a cloud that is different everywhere, and leave less contrast, as fog does."""
    cloud: Pictures = np.zeros_like(pictures)
    for octave, cells in enumerate((2, 4, 8, 16)):
        spread = _interpolation(cells)
        noise = rng.uniform(-1, 1, (len(pictures), cells + 1, cells + 1)).astype(np.float32)
        cloud += spread @ noise @ spread.T * np.float32(FOG_DECAY**-octave)
    cloud -= cloud.min(axis=(1, 2), keepdims=True)
    densest = cloud.max(axis=(1, 2), keepdims=True)
    return np.asarray((pictures + 255 * FOG * cloud / densest) / (1 + FOG), np.float32)


def spatter(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Let drops of ink fall on the picture."""
    noise = rng.standard_normal(pictures.shape, np.float32)
    liquid = ndimage.gaussian_filter(noise, (0, SPATTER_PX, SPATTER_PX), mode="wrap")
    level = np.quantile(liquid, 1 - SPATTER_SHARE, axis=(1, 2), keepdims=True)
    # A drop is thin at its rim: its ink grows from there within half of the liquid's deviation.
    ink = np.clip((liquid - level) / (0.5 * liquid.std()), 0, 1)
    spattered: Pictures = np.maximum(pictures, 255 * ink)
    return spattered


def dotted_line(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Draw a straight dotted line across the picture."""
    return _draw(pictures, _line(len(pictures), np.linspace(0, 1, DOTS), rng))


def zigzag(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Draw a zigzag across the picture."""
    way = np.linspace(0, 1, 2 * SIDE)
    points = _line(len(pictures), way, rng)
    # A triangle wave, -1 to 1 and back, that begins anywhere for each picture.
    phase = ZIGZAGS / 2 * way + rng.uniform(0, 1, (len(pictures), 1))
    points[:, :, 0] += ZIGZAG_PX * (4 * abs(phase % 1 - 0.5) - 1)
    return _draw(pictures, points)


def _line(num: int, way: npt.NDArray[np.float64], rng: np.random.Generator) -> Points:
    """Place points on a line from the left edge to the right one; `way` is 0 to 1 along it."""
    ends = rng.uniform(LINE_MARGIN_PX, SIDE - 1 - LINE_MARGIN_PX, (num, 2, 1))
    rows = ends[:, 0] + (ends[:, 1] - ends[:, 0]) * way
    return np.stack([rows, np.broadcast_to((SIDE - 1) * way, rows.shape)], axis=2)


def _draw(pictures: Pictures, points: Points) -> Pictures:
    """Put a dot of ink at each point."""
    drawn: Pictures = pictures.copy()
    reach = (LINE_WIDTH_PX + 1) / 2
    pixels = np.arange(SIDE, dtype=np.float32)
    for place in points.swapaxes(0, 1).astype(np.float32):
        rows, columns = (
            np.clip(reach - abs(pixels - place[:, axis, None]), 0, 1) for axis in (0, 1)
        )
        np.maximum(drawn, 255 * rows[:, :, None] * columns[:, None, :], out=drawn)
    return drawn


def _interpolation(cells: int) -> npt.NDArray[np.float32]:
    """Return the (28, cells + 1) matrix that interpolates between a grid's corners linearly."""
    place = np.linspace(0, cells, SIDE)[:, None]
    shares: npt.NDArray[np.float32] = np.maximum(0, 1 - abs(place - np.arange(cells + 1))).astype(
        np.float32
    )
    return shares
