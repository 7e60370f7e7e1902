import dataclasses
import math

import numpy as np
import pytest

from training.config import DEFORMATION
from training.data import augmentation
from training.data.augmentation import thicken, warp
from training.data.mnist import Examples

FAR = dataclasses.replace(DEFORMATION, shift_px=9)
MAX_ROUNDING = 1  # grey level: float32 against float64, just where a value rounds up or down


@pytest.fixture
def examples(mnist_sample):
    return Examples(mnist_sample.train_images, mnist_sample.train_labels)


def pixel(image, row, column):
    return int(image[row * 28 + column]) if 0 <= row < 28 and 0 <= column < 28 else 0


def slow_warp(image, field):
    """Read the same pixels one at a time, as the paper has it."""
    warped = []
    for row, column in field.reshape(2, -1).T.tolist():
        top, left = math.floor(row), math.floor(column)
        value = sum(
            keys(row - y) * keys(column - x) * pixel(image, y, x)
            for y in range(top - 1, top + 3)
            for x in range(left - 1, left + 3)
        )
        warped.append(min(max(value, 0), 255))
    return warped


def keys(distance):
    """Weigh a pixel by its distance: Keys's equation 4, with his parameter a."""
    a, s = augmentation.SLOPE, abs(distance)
    if s < 1:
        return (a + 2) * s**3 - (a + 3) * s**2 + 1
    return a * s**3 - 5 * a * s**2 + 8 * a * s - 4 * a if s < 2 else 0


def test_warp_equals_the_slow_reference(examples):
    images = examples.images[:3]
    field = augmentation.fields(1, FAR, np.random.default_rng(7))[0]
    expected = [slow_warp(image, field) for image in images]
    assert np.abs(warp(images, field) - np.array(expected)).max() <= MAX_ROUNDING


@pytest.mark.parametrize(
    ("growth", "expected"),
    [
        (1, [[0, 8, 0], [8, 8, 8], [0, 8, 0]]),
        (0.5, [[0, 5, 0], [5, 8, 5], [0, 5, 0]]),  # halfway the kernel at -1 gives 5/8
        (-0.5, [[0, 0, 0], [0, 5, 0], [0, 0, 0]]),
        (-1, [[0, 0, 0], [0, 0, 0], [0, 0, 0]]),
    ],
)
def test_strokes_grow_and_shrink_by_a_share_of_a_pixel(growth, expected):
    images = np.zeros((5, 5, 1), np.float32)
    images[2, 2] = 8
    assert np.clip(thicken(images, growth), 0, 8)[1:-1, 1:-1, 0].tolist() == expected
