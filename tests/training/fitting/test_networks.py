import keras
import numpy as np
import pytest

from serving import Classifier
from training.config import RECIPES, SEED, TEACHER
from training.fitting import networks
from training.fitting.evaluation import probabilities


@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES)
def test_network_has_the_same_parameters_in_every_recipe(recipe):
    assert networks.build(recipe).count_params() == 241_650


def test_network_answers_with_probabilities():
    answers = np.asarray(networks.build(SEED)(np.ones((3, 784), np.float32)))
    assert answers.shape == (3, 10)
    assert answers.sum(axis=1) == pytest.approx(1, abs=1e-6)  # float32


def test_layers_are_the_seeds():
    layers = networks.build(SEED).layers
    assert [layer.units for layer in layers if isinstance(layer, keras.layers.Dense)] == [
        256, 128, 56, 10,
    ]  # fmt: skip
    assert [layer.rate for layer in layers if isinstance(layer, keras.layers.Dropout)] == [
        0.4, 0.3, 0.2,
    ]  # fmt: skip


def test_same_seed_gives_the_same_first_weights():
    weights = []
    for seed in (1, 1, 2):
        keras.utils.set_random_seed(seed)
        weights.append(networks.build(SEED).get_weights()[0])
    assert np.array_equal(weights[0], weights[1])
    assert not np.array_equal(weights[0], weights[2])


def test_fine_tuning_begins_with_the_bundled_model(mnist_sample):
    images = mnist_sample.test_images[:100]
    with Classifier.pretrained() as classifier:
        expected = classifier.classify(images).probabilities
    answers = probabilities(networks.build(RECIPES["fine-tune"]), images)
    np.testing.assert_allclose(answers, expected, atol=1e-5)  # other orders of summation


def test_teacher_answers_with_probabilities():
    teacher = networks.build(TEACHER)
    answers = np.asarray(teacher(np.ones((3, 784), np.float32)))
    assert answers.shape == (3, 10)
    assert answers.sum(axis=1) == pytest.approx(1, abs=1e-6)  # float32
