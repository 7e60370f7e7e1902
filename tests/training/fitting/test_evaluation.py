import numpy as np
import pytest

from training.fitting.artifacts import load_model
from training.fitting.evaluation import probabilities


def test_many_images_are_answered_as_few_are(artifacts, mnist_sample):
    model, images = load_model(artifacts), mnist_sample.train_images[:1_500]
    at_once = np.asarray(model(images.astype(np.float32) / 255, training=False))
    assert probabilities(model, images) == pytest.approx(at_once, abs=1e-5)  # sums of another order


def test_no_images_have_no_answers(artifacts, mnist_sample):
    assert probabilities(load_model(artifacts), mnist_sample.test_images[:0]).shape == (0, 10)
