"""Outliers: images of no digit, made from images of digits, to be answered with equal shares.

A network that has seen digits alone is as sure of a letter as of a digit. Hendrycks, Mazeika and
Dietterich, "Deep anomaly detection with outlier exposure", 2019.
"""

import numpy as np

from training.data.mnist import SIDE, Images


def outliers(images: Images, rng: np.random.Generator) -> Images:
    """Make an outlier of every image: pieces shuffled, parts of two, lines, noise or a blank."""
    made = images.reshape(-1, SIDE, SIDE).copy()
    ways = (_shuffle, _shuffle, _halves, _strokes, _strokes, _texture, _blank)
    for way, part in zip(ways, np.array_split(made, len(ways)), strict=True):
        if len(part):
            part[:] = np.clip(way(part, rng), 0, 255)
    return made.reshape(images.shape)


def _shuffle(images: Images, rng: np.random.Generator) -> Images:
    """Shuffle the quarters of each image, and mirror them."""
    half = SIDE // 2
    quarters = images.reshape(-1, 2, half, 2, half).swapaxes(2, 3).reshape(-1, 4, half, half)
    order = np.array([[3, 2, 1, 0], [1, 0, 3, 2], [2, 3, 0, 1], [1, 3, 0, 2]])
    drawn = order[rng.integers(0, len(order), len(images))]
    shuffled = quarters[np.arange(len(images))[:, None], drawn]
    shuffled = np.where(rng.random((len(images), 1, 1, 1)) < 0.5, shuffled[..., ::-1], shuffled)
    whole: Images = shuffled.reshape(-1, 2, 2, half, half).swapaxes(2, 3).reshape(images.shape)
    return whole


def _halves(images: Images, rng: np.random.Generator) -> Images:
    """Put the upper half of one image on the lower half of another that is turned by a quarter."""
    mixed = images.copy()
    mixed[:, SIDE // 2 :] = np.roll(images, 1, axis=0).swapaxes(1, 2)[:, SIDE // 2 :]
    return mixed


def _strokes(images: Images, rng: np.random.Generator) -> Images:
    """Draw 3 or 4 straight strokes of a pen between random points, as in many letters."""
    num = len(images)
    grid = np.indices((SIDE, SIDE), np.float32)[:, None]  # (2, 1, 28, 28)
    drawn = np.zeros(images.shape, np.float32)
    width = rng.uniform(0.9, 1.9, (num, 1, 1)).astype(np.float32)
    end = rng.uniform(4, SIDE - 5, (2, num, 1, 1)).astype(np.float32)
    for stroke in range(4):
        is_joined = rng.random((num, 1, 1)) < 0.6
        start = np.where(is_joined, end, rng.uniform(4, SIDE - 5, (2, num, 1, 1)))
        end = rng.uniform(4, SIDE - 5, (2, num, 1, 1)).astype(np.float32)
        way = end - start
        share = ((grid - start) * way).sum(axis=0) / ((way**2).sum(axis=0) + 1e-3)
        nearest = start + np.clip(share, 0, 1) * way
        distance = np.sqrt(((grid - nearest) ** 2).sum(axis=0))
        ink = np.clip(width - distance + 0.5, 0, 1)
        is_drawn = (stroke < 3) | (rng.random((num, 1, 1)) < 0.6)
        drawn = np.maximum(drawn, np.where(is_drawn, ink, 0))
    return (255 * drawn).astype(np.uint8)


def _texture(images: Images, rng: np.random.Generator) -> Images:
    """Fill the image with noise: of single pixels, or of blocks of 2, 4 or 7."""
    side = int(rng.choice((1, 2, 4, 7)))
    blocks = rng.uniform(0, 256, (len(images), SIDE // side, SIDE // side))
    blocks *= rng.random((len(images), 1, 1)) < 0.8
    sparse = rng.random((len(images), 1, 1)) * 0.9
    blocks *= rng.random(blocks.shape) > sparse
    return blocks.repeat(side, axis=1).repeat(side, axis=2).astype(np.uint8)


def _blank(images: Images, rng: np.random.Generator) -> Images:
    """Leave nothing but an even grey, or a few specks."""
    grey = rng.uniform(0, 256, (len(images), 1, 1)) * (rng.random((len(images), 1, 1)) < 0.5)
    specks = (rng.random(images.shape) < rng.uniform(0, 0.03, (len(images), 1, 1))) * 255
    blank: Images = np.maximum(specks, np.broadcast_to(grey, images.shape)).astype(np.uint8)
    return blank
