"""Corruptions that move, blur or trace the strokes: seven of those in `corruptions.py`.

Each function takes (N, 28, 28) float32 pictures, 0 to 255, and a generator, and returns pictures of
the same kind; `corruptions.py` rounds and clips them.
"""

import numpy as np
import numpy.typing as npt
from scipy import ndimage, signal

from training.data.mnist import SIDE

Pictures = npt.NDArray[np.float32]
"""(N, 28, 28), 0 = background, 255 = ink."""

SHEAR = (0.35, 0.45)
"""Slant either way, in columns per row."""

SCALE = (0.6, 0.75)
"""Height and width, as a share of what they were: smaller digits, as from farther away."""

ROTATION_DEG = (15.0, 30.0)
"""Turn either way."""

SHIFT_PX = (1.0, 2.5)
"""Shift along each axis, either way: MNIST's digits have a margin of 4 pixels."""

GLASS_BLUR_PX = 0.7
"""Sigma of the Gaussian before and after the pixels are shuffled."""
GLASS_REACH_PX = 1
"""How far away a pixel may be taken from along each axis, in each pass."""
GLASS_PASSES = 3

MOTION_PX = 8
"""Length of the path that a pixel is spread along, evenly."""
MOTION_DEG = 45.0
"""Steepest direction of the path, from horizontal."""

CANNY_SIGMA_PX = 0.5
"""Of the Gaussian that precedes the gradient."""
CANNY_LOW, CANNY_HIGH = 100.0, 200.0
"""Gradients (Sobel's, in grey levels) that continue an edge, and that begin one."""

CENTRE = (SIDE - 1) / 2


def shear(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Slant each picture to the left or to the right."""
    matrices = np.tile(np.eye(2), (len(pictures), 1, 1))
    matrices[:, 1, 0] = _either_way(SHEAR, rng, len(pictures))
    return _map(pictures, matrices, np.zeros((len(pictures), 2)))


def scale(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Make each digit smaller, in proportion."""
    factors = rng.uniform(*SCALE, (len(pictures), 1, 1))
    return _map(pictures, np.eye(2) / factors, np.zeros((len(pictures), 2)))


def rotate(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Turn each picture about its centre."""
    angles = np.deg2rad(_either_way(ROTATION_DEG, rng, len(pictures)))
    cosines, sines = np.cos(angles), np.sin(angles)
    matrices = np.stack([cosines, -sines, sines, cosines], axis=1).reshape(-1, 2, 2)
    return _map(pictures, matrices, np.zeros((len(pictures), 2)))


def translate(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Shift each picture along both axes."""
    shifts = _either_way(SHIFT_PX, rng, len(pictures), 2)
    return _map(pictures, np.tile(np.eye(2), (len(pictures), 1, 1)), shifts)


def glass_blur(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Blur, take each pixel from somewhere near, and blur again: frosted glass."""
    seen = _smooth(pictures, GLASS_BLUR_PX).reshape(len(pictures), -1)
    row, column = np.indices((SIDE, SIDE))
    for _ in range(GLASS_PASSES):
        down, right = rng.integers(
            -GLASS_REACH_PX, GLASS_REACH_PX + 1, (2, len(pictures), SIDE, SIDE)
        )
        source = np.clip(row + down, 0, SIDE - 1) * SIDE + np.clip(column + right, 0, SIDE - 1)
        seen = np.take_along_axis(seen, source.reshape(seen.shape), axis=1)
    return _smooth(seen.reshape(pictures.shape), GLASS_BLUR_PX)


def motion_blur(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Spread every pixel along a straight path: the camera moved."""
    angle = np.deg2rad(rng.uniform(-MOTION_DEG, MOTION_DEG, (len(pictures), 1)))
    way = np.arange(MOTION_PX) - (MOTION_PX - 1) / 2
    grid = np.arange(MOTION_PX) - (MOTION_PX - 1) // 2
    # Each step of the path falls between four pixels, which share it.
    rows = np.maximum(0, 1 - abs((way * np.sin(angle))[:, :, None] - grid))
    columns = np.maximum(0, 1 - abs((way * np.cos(angle))[:, :, None] - grid))
    kernels = np.einsum("nki,nkj->nij", rows, columns) / MOTION_PX
    blurred: Pictures = signal.fftconvolve(
        pictures, kernels.astype(np.float32), mode="same", axes=(1, 2)
    )
    return blurred


def canny_edges(pictures: Pictures, rng: np.random.Generator) -> Pictures:
    """Replace each picture by its outlines, one pixel wide (Canny 1986)."""
    del rng  # nothing is random here
    smooth = _smooth(pictures, CANNY_SIGMA_PX)
    # Sobel's gradient within each picture: ndimage.sobel would smooth across pictures as well.
    down, right = (
        ndimage.correlate1d(ndimage.correlate1d(smooth, (-1, 0, 1), along), (1, 2, 1), across)
        for along, across in ((1, 2), (2, 1))
    )
    strength = np.hypot(down, right)
    # The gradient's direction in eighths of a turn: along rows, a diagonal, columns, the other.
    direction = np.rint(np.arctan2(down, right) / (np.pi / 4)).astype(int) % 4
    padded = np.pad(strength, ((0, 0), (1, 1), (1, 1)))
    is_peak = np.zeros(strength.shape, bool)
    for number, (row, column) in enumerate(((0, 1), (1, 1), (1, 0), (1, -1))):
        ahead = padded[:, 1 + row : 1 + row + SIDE, 1 + column : 1 + column + SIDE]
        behind = padded[:, 1 - row : 1 - row + SIDE, 1 - column : 1 - column + SIDE]
        is_peak |= (direction == number) & (strength >= ahead) & (strength > behind)
    in_plane = np.zeros((3, 3, 3), int)
    in_plane[1] = 1  # neighbours are pixels of the same picture
    edges, num_edges = ndimage.label(is_peak & (strength > CANNY_LOW), in_plane)
    is_edge = np.zeros(num_edges + 1, bool)
    is_edge[edges[is_peak & (strength > CANNY_HIGH)]] = True
    traced: Pictures = np.where(is_edge[edges], np.float32(255), np.float32(0))
    return traced


def _either_way(
    amount: tuple[float, float], rng: np.random.Generator, *shape: int
) -> npt.NDArray[np.float64]:
    """Draw amounts within the range, half of them negative."""
    drawn: npt.NDArray[np.float64] = rng.uniform(*amount, shape) * rng.choice((-1, 1), shape)
    return drawn


def _map(
    pictures: Pictures, matrices: npt.NDArray[np.float64], shifts: npt.NDArray[np.float64]
) -> Pictures:
    """Map each picture about its centre, bilinearly as in the paper; outside is background.

    Args:
        pictures: to map.
        matrices: (N, 2, 2), from a place in the result to the place that it is read from.
        shifts: (N, 2), rows and columns, in pixels.
    """
    centre = np.full(2, CENTRE)
    mapped = np.empty_like(pictures)
    for picture, result, matrix, shift in zip(pictures, mapped, matrices, shifts, strict=True):
        offset = centre - matrix @ (centre + shift)
        ndimage.affine_transform(picture, matrix, offset, output=result, order=1)
    return mapped


def _smooth(pictures: Pictures, sigma_px: float) -> Pictures:
    """Smooth each picture with a Gaussian."""
    smooth: Pictures = ndimage.gaussian_filter(pictures, (0, sigma_px, sigma_px))
    return smooth
