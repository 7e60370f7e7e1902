import numpy as np

from training.data.augmentation import outliers


def test_outliers_are_images_unlike_the_digits_they_are_made_from(mnist_sample):
    images = mnist_sample.train_images[:700]
    made = outliers(images, np.random.default_rng(3))
    assert made.shape == images.shape
    assert made.dtype == np.uint8
    assert not np.array_equal(made, images)
    known = {image.tobytes() for image in images}
    assert np.mean([image.tobytes() in known for image in made]) < 0.02
    assert np.array_equal(made, outliers(images, np.random.default_rng(3)))


def test_the_images_given_stay_as_they_are(mnist_sample):
    before = mnist_sample.train_images[:70].copy()
    outliers(before, np.random.default_rng(3))
    assert np.array_equal(before, mnist_sample.train_images[:70])
