"""Accuracy and calibration."""

import keras
import numpy as np
import pytest

from training.config import BEST
from training.data.mnist import Examples
from training.fitting import evaluation
from training.fitting.artifacts import load_model
from training.fitting.evaluation import (
    accuracy_at_coverage,
    expected_calibration_error,
    fit_temperature,
    probabilities,
)
from training.fitting.networks import build


def answers(*certainties):
    """Answer 0 with the certainties given, and 1 with the rest."""
    rows = np.zeros((len(certainties), 10), np.float32)
    rows[:, 0], rows[:, 1] = certainties, 1 - np.array(certainties)
    return rows


def test_ece_is_the_mean_gap_of_the_bins():
    # Of 15 bins, (9/15, 10/15] holds three images, of mean certainty 0.63 and accuracy 2/3;
    # (13/15, 14/15] holds one, of certainty 0.9, answered wrongly.
    error = expected_calibration_error(
        answers(0.62, 0.63, 0.64, 0.9), np.array([0, 0, 1, 1], np.uint8)
    )
    assert error == pytest.approx((3 * (2 / 3 - 0.63) + 0.9) / 4)


def test_ece_of_certain_and_right_answers_is_zero():
    assert expected_calibration_error(answers(1, 1), np.zeros(2, np.uint8)) == 0


def test_temperature_is_the_one_that_makes_certainty_accuracy():
    # Three of four are right at odds of 9: the odds of 3 that fit are sqrt(9), temperature 2.
    labels = np.array([0, 0, 0, 1], np.uint8)
    tiny = 1e-30
    rows = np.full((4, 10), tiny, np.float32)
    rows[:, :2] = 0.9, 0.1
    assert fit_temperature(rows, labels) == pytest.approx(2, rel=1e-4)


def test_temperature_of_faultless_answers_stays_finite():
    assert 0 < fit_temperature(answers(0.9, 0.9), np.zeros(2, np.uint8)) < 1


def test_calibration_keeps_digits_and_layers():
    keras.utils.set_random_seed(1)
    model = build(BEST)
    images = np.random.default_rng(1).integers(0, 256, (200, 784), np.uint8)
    before = probabilities(model, images)
    labels = before.argmax(axis=1).astype(np.uint8)
    labels[::3] = 9  # a third is wrong
    examples = Examples(images, labels)
    parameters = model.count_params()
    temperature = evaluation.calibrate(model, examples)
    after = probabilities(model, examples.images)
    assert model.count_params() == parameters
    assert (after.argmax(axis=1) == before.argmax(axis=1)).all()
    expected = before ** (1 / temperature)
    expected /= expected.sum(axis=1, keepdims=True)
    assert after == pytest.approx(expected, abs=1e-5)  # float32
    assert fit_temperature(after, examples.labels) == pytest.approx(1, abs=0.01)


def test_coverage_rejects_the_least_certain():
    labels = np.array([0, 1, 0, 0], np.uint8)
    rows = answers(0.9, 0.6, 0.8, 0.7)
    assert accuracy_at_coverage(rows, labels, 1.0) == pytest.approx((0.75, 0.6))
    assert accuracy_at_coverage(rows, labels, 0.75) == pytest.approx((1.0, 0.7))


def test_many_images_are_answered_as_few_are(artifacts, mnist_sample):
    model, images = load_model(artifacts), mnist_sample.train_images[:1_500]
    at_once = np.asarray(model(images.astype(np.float32) / 255, training=False))
    assert probabilities(model, images) == pytest.approx(at_once, abs=1e-5)  # sums of another order


def test_no_images_have_no_answers(artifacts, mnist_sample):
    assert probabilities(load_model(artifacts), mnist_sample.test_images[:0]).shape == (0, 10)
