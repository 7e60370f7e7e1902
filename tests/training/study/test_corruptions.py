import numpy as np
import pytest

from training.data.mnist import Mnist
from training.study.corruptions import CORRUPTIONS, corrupt


def test_corruptions_change_the_images_the_same_every_time(mnist_sample: Mnist) -> None:
    once, again = corrupt(mnist_sample.test_images), corrupt(mnist_sample.test_images)
    assert list(once) == list(CORRUPTIONS)
    for kind, images in once.items():
        assert images.shape == mnist_sample.test_images.shape
        assert images.dtype == np.uint8
        assert (images == again[kind]).all()
        assert (images != mnist_sample.test_images).any(axis=1).mean() > 0.9


def test_blur_spreads_the_ink_and_keeps_it() -> None:
    image = np.zeros((28, 28), np.uint8)
    image[14, 14] = 255
    blurred = CORRUPTIONS["blur"](image.reshape(1, 784), rng=np.random.default_rng(0))
    assert blurred.max() < 255 / 2
    assert int(blurred.sum()) == pytest.approx(255, rel=0.1)  # rounded to whole grey levels


def test_noise_has_the_deviation_that_it_says() -> None:
    grey = np.full((1, 784), 128, np.uint8)
    noisy = CORRUPTIONS["noise"](grey, rng=np.random.default_rng(0))
    assert noisy.std() == pytest.approx(60, rel=0.15)  # of 784 pixels, some clipped
    white = np.full((1, 784), 255, np.uint8)
    assert CORRUPTIONS["noise"](white, rng=np.random.default_rng(0)).min() > 0  # none wraps around
