import json
import pickle

import numpy as np
import pytest

from serving import Predictions
from tests.support.fakes import images_of, probabilities_of


@pytest.fixture
def predictions():
    return Predictions.of(probabilities_of(images_of(7, 0, 9)), "3")


def test_one_prediction_is_in_pythons_own_types(predictions):
    last = predictions[-1]
    assert (type(last.digit), type(last.probability)) == (int, float)
    assert last.digit == 9
    assert last.probability == pytest.approx(0.91)
    with pytest.raises(IndexError):
        predictions[3]


def test_predictions_are_a_sequence(predictions):
    assert len(predictions) == 3
    assert [prediction.digit for prediction in predictions] == [7, 0, 9]
    assert list(predictions) == [predictions[0], predictions[1], predictions[2]]
    tail = predictions[1:]
    assert isinstance(tail, Predictions)
    assert tail.digits.tolist() == [0, 9]
    assert tail.probabilities.shape == (2, 10)
    assert tail.model_version == "3"
    assert list(predictions[3:]) == []


def test_dicts_are_json(predictions):
    read = json.loads(json.dumps(predictions.to_dicts()))
    assert [each["digit"] for each in read] == [7, 0, 9]
    assert [each["probability"] for each in read] == pytest.approx([0.91] * 3)


def test_repr_shows_the_answers_and_how_many_more():
    few = Predictions.of(probabilities_of(images_of(7, 0)), "3")
    assert repr(few) == "<Predictions of version 3: 7 (91.0%), 0 (91.0%)>"
    many = Predictions.of(probabilities_of(images_of(*range(100))), "3")
    assert repr(many).endswith("7 (91.0%), ... 92 more>")
    assert repr(few[0]).startswith("Prediction(digit=7, probability=0.9")


def test_predictions_can_be_pickled(predictions):
    again = pickle.loads(pickle.dumps(predictions))
    np.testing.assert_array_equal(again.probabilities, predictions.probabilities)
    assert again.to_dicts() == predictions.to_dicts()
