from pathlib import Path

import keras
import numpy as np
import pytest

from training.data.mnist import Mnist
from training.fitting.artifacts import load_json, load_model
from training.fitting.evaluation import probabilities
from training.lab.study.corruptions import CORRUPTIONS
from training.lab.study.measures import Measures
from training.lab.study.outliers import outliers


@pytest.fixture(scope="module")
def model(artifacts: Path) -> keras.Model:
    return load_model(artifacts)


def test_measures_agree_with_the_training(
    model: keras.Model, artifacts: Path, mnist_sample: Mnist
) -> None:
    measured, metrics = Measures(mnist_sample).of(model), load_json(artifacts, "metrics.json")
    digits = probabilities(model, mnist_sample.test_images).argmax(axis=1)
    assert len(measured["wrong"]) == metrics["errors"]["test"]
    assert (digits[measured["wrong"]] != mnist_sample.test_labels[measured["wrong"]]).all()
    assert measured["covered"]["0.99"] == metrics["calibration"]["coverage"]["accuracy"]
    assert measured["covered"]["0.98"] >= measured["covered"]["0.99"]


def test_corrupted_images_are_harder_and_outliers_counted(
    model: keras.Model, mnist_sample: Mnist
) -> None:
    measured, clean = Measures(mnist_sample).of(model), 1.0
    clean -= len(measured["wrong"]) / len(mnist_sample.test_labels)
    assert measured["corrupted"].keys() == CORRUPTIONS.keys()
    assert 0.1 < np.mean(list(measured["corrupted"].values())) < clean
    assert measured["outliers"].keys() == outliers().keys()
    assert 0 < measured["outliers"]["letters"] < 1
