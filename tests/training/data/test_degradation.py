import numpy as np
import pytest

from training.data import augmentation
from training.data.augmentation import WAYS, degrade


@pytest.fixture
def images(mnist_sample):
    return mnist_sample.train_images[:700]


def rng():
    return np.random.default_rng(3)


def test_every_image_is_degraded_and_can_still_be_told(images):
    degraded = degrade(images, rng())
    assert degraded.shape == images.shape
    assert degraded.dtype == np.uint8
    assert (degraded != images).any(axis=1).mean() > 0.95  # a bar may lie on background
    for before, after in zip(images, degraded, strict=True):
        assert np.corrcoef(before, after)[0, 1] > 0.2


def test_the_same_generator_degrades_in_the_same_way(images):
    assert np.array_equal(degrade(images, rng()), degrade(images, rng()))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_images_differ_in_how_far_they_are_degraded(images, way):
    same = np.repeat(images[:1], 130, axis=0).reshape(-1, 28, 28).astype(np.float32)
    degraded = way(same, rng())
    assert degraded.shape == same.shape
    assert len(np.unique(degraded.reshape(130, -1), axis=0)) > 1


def test_noise_is_added_to_all_pixels_alike():
    grey = np.full((4000, 28, 28), 100, np.float32)
    noise = augmentation.gaussian_noise(grey, rng()) - grey
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert noise.std(axis=(1, 2)).min() > 3
    assert noise.std(axis=(1, 2)).max() < 80


def test_paler_ink_stays_lighter_than_the_paper(images):
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    changed = augmentation.contrast(pixels, rng())
    brightest, darkest = changed.max(axis=(1, 2)), changed.min(axis=(1, 2))
    assert (brightest - darkest > 50).all()
    assert (darkest > 20).any()
