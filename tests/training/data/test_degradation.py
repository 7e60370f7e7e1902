import numpy as np
import pytest
from scipy import ndimage

from serving import Classifier
from training.data import degradation
from training.data.degradation import WAYS, degrade
from training.data.mnist import Images, Mnist


@pytest.fixture
def images(mnist_sample: Mnist) -> Images:
    return mnist_sample.train_images[:700]


def rng() -> np.random.Generator:
    return np.random.default_rng(3)


def test_every_image_is_degraded_and_can_still_be_told(images: Images) -> None:
    degraded = degrade(images, rng())
    assert degraded.shape == images.shape
    assert degraded.dtype == np.uint8
    assert (degraded != images).any(axis=1).mean() > 0.95  # a bar may lie on background
    with Classifier.pretrained(device="cpu") as classifier:
        before, after = (classifier.classify(each).digits for each in (images, degraded))
    assert (before == after).mean() > 0.9


def test_the_same_generator_degrades_in_the_same_way(images: Images) -> None:
    assert np.array_equal(degrade(images, rng()), degrade(images, rng()))


@pytest.mark.parametrize("way", WAYS, ids=lambda way: way.__name__)
def test_images_differ_in_how_far_they_are_degraded(images: Images, way: object) -> None:
    same = np.repeat(images[:1], 130, axis=0).reshape(-1, 28, 28).astype(np.float32)
    degraded = way(same, rng())  # type: ignore[operator]
    assert degraded.shape == same.shape
    assert len(np.unique(degraded.reshape(130, -1), axis=0)) > 1


def test_noise_is_added_to_all_pixels_alike() -> None:
    grey = np.full((4000, 28, 28), 100, np.float32)
    noise = degradation.gaussian_noise(grey, rng()) - grey
    assert noise.mean() == pytest.approx(0, abs=0.5)
    assert noise.std(axis=(1, 2)).min() > 3
    assert noise.std(axis=(1, 2)).max() < 80


def test_paler_ink_stays_lighter_than_the_paper(images: Images) -> None:
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    changed = degradation.contrast(pixels, rng())
    brightest, darkest = changed.max(axis=(1, 2)), changed.min(axis=(1, 2))
    assert (brightest - darkest > 50).all()
    assert (darkest > 20).any()


def test_outlines_are_thin_and_around_the_ink(images: Images) -> None:
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    drawn = degradation.outlines(pixels, rng())
    assert set(np.unique(drawn)) == {0, 255}
    hollow = (drawn > 0) & (pixels == 255)
    assert hollow.sum() < 0.5 * (pixels == 255).sum()  # what was ink is no longer filled
    near = ndimage.maximum_filter(pixels, (1, 3, 3)) > 0
    assert not (drawn[~near] > 0).any()


def test_margins_are_inverted_on_either_side_only(images: Images) -> None:
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    changed = degradation.inverted_margins(pixels, rng())
    is_changed = changed != pixels
    assert np.array_equal(changed[is_changed], 255 - pixels[is_changed])
    assert not is_changed[:, 9:19, 9:19].any()
    assert is_changed.any(axis=(1, 2)).mean() > 0.9


def test_ink_beneath_clouds_is_still_brighter_than_beside_it(images: Images) -> None:
    pixels = images.reshape(-1, 28, 28).astype(np.float32)
    cloudy = degradation.clouds(pixels, rng())
    assert cloudy.min() >= 0
    assert cloudy.max() <= 255.01
    assert cloudy[pixels == 255].mean() > cloudy[pixels == 0].mean() + 50
