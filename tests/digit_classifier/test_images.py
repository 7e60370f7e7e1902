"""Images in, predictions out, and the signature of both."""

import json
import pickle
from typing import Any

import numpy as np
import pytest

from digit_classifier import Predictions
from digit_classifier.predictions import DIGITS, as_images
from serving.batching.layout import Layout, Piece
from serving.errors import InvalidRequest
from serving.tensors import Signature
from tests.serving.model.templates import LETTERS
from tests.support.fakes import images_of, probabilities_of


def test_rows_and_pictures_become_rows():
    rows = np.arange(2 * 784).astype(np.uint8).reshape(2, 784)
    for shape in ((2, 784), (2, 28, 28)):
        images = as_images(rows.reshape(shape), DIGITS)
        np.testing.assert_array_equal(images, rows)
        assert np.shares_memory(images, rows)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((32, 32), "(N, 1024) or (N, 32, 32)"),
        ((8, 8, 3), "(N, 192) or (N, 8, 8, 3)"),
        ((17,), "(N, 17)"),
    ],
)
def test_images_have_the_shape_of_the_model(shape, expected):
    signature = Signature(shape, 5)
    images = np.zeros((3, *shape), np.uint8)
    assert as_images(images, signature).shape == (3, signature.image_bytes)
    for bad in (np.zeros((3, 784), np.uint8), images[0], images[..., :-1]):
        with pytest.raises(InvalidRequest) as caught:
            as_images(bad, signature)
        assert str(caught.value) == f"expected images of shape {expected}, got {bad.shape}"


class Hostile:
    def __array__(self, *_, **__):
        raise KeyError("two\nlines")


RECURSIVE: list[object] = []
RECURSIVE.append(RECURSIVE)


@pytest.mark.parametrize(
    "bad",
    [
        [[0] * 784, [0] * 783],
        [np.zeros(784, np.uint8), np.zeros(5, np.uint8)],
        RECURSIVE,
        Hostile(),
        np.ma.masked_less(np.zeros((1, 784), np.uint8), 1),
        None,
        object(),
        "seven.png",
        b"bytes",
        {"images": 1},
        5,
        2**100,
        [[2**100] * 784],
        [],
        np.zeros((1, 784), ">u2"),
        np.zeros((1, 784), object),
        np.zeros((1, 784), bool),
        np.zeros((1, 784), "datetime64[s]"),
        np.zeros(3, [("a" * 500, "u1")]),
        np.zeros((2**30, 0), np.uint8),
    ],
    ids=lambda bad: type(bad).__name__,
)
def test_what_is_no_array_of_images_is_refused_in_one_line(bad):
    with pytest.raises(InvalidRequest, match="expected") as caught:
        as_images(bad, DIGITS)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 250


BASE = np.arange(3 * 784).astype(np.uint8).reshape(3, 784)


@pytest.mark.parametrize(
    "images",
    [
        BASE[::-1],
        BASE[:, ::-1],
        BASE[:1, ::-1],
        np.asfortranarray(BASE),
        BASE.reshape(3, 28, 28).transpose(0, 2, 1),
        np.broadcast_to(BASE[0], (3, 784)),
        BASE.astype(">u1"),
        np.ma.masked_array(BASE),
        list(BASE),
    ],
)
def test_any_layout_of_pixels_becomes_contiguous_rows(images):
    rows = as_images(images, DIGITS)
    np.testing.assert_array_equal(rows, np.asarray(images).reshape(len(images), 784))
    assert rows.data.cast("B").nbytes == len(images) * 784


def test_too_many_images_are_refused_with_the_limit():
    with pytest.raises(InvalidRequest, match="at most 2 images in a request, got 3"):
        as_images(np.zeros((3, 784), np.uint8), DIGITS, max_images=2)


def test_sizes_are_those_of_its_images_and_rows():
    assert (DIGITS.image_bytes, DIGITS.row_bytes) == (784, 40)
    assert (LETTERS.image_bytes, LETTERS.row_bytes) == (1024, 104)
    assert Signature((8, 8, 3), 2).image_bytes == 192
    assert str(LETTERS) == "32 x 32 uint8 -> 26 classes"


def test_messages_that_are_not_of_their_layout_are_refused():
    layout = Layout((Piece(0, 2, np.dtype(np.bool_), (1, 2)),), ((2, b"ab"),))
    (joined,) = layout.arrays([b"\0\1ab", b"\1\1ab"])
    assert joined.tolist() == [[False, True], [True, True]]
    for bad, text in ((b"\0\2ab", "bytes of 0 or 1"), (b"\0\1ax", "sizes that their shapes have")):
        with pytest.raises(InvalidRequest, match=text):
            layout.arrays([b"\0\1ab", bad])


BAD: dict[str, dict[str, Any]] = {
    "other pixels": {"dtype": "float32"},
    "no pixels": {"input_shape": []},
    "empty": {"input_shape": [28, 0]},
    "negative": {"input_shape": [-28, -28]},
    "no sizes": {"input_shape": 784},
    "sizes as text": {"input_shape": ["28", "28"]},
    "halves": {"input_shape": [28, 0.5]},
    "no class": {"classes": 0},
    "classes as truth": {"classes": True},
    "too few labels": {"labels": ["a"]},
    "label of two lines": {"labels": ["a\nb"] * 10},
    "empty label": {"labels": [""] * 10},
    "number as label": {"labels": list(range(10))},
    "long label": {"labels": ["a" * 1000] * 10},
    "no labels but a number": {"labels": 10},
}


@pytest.mark.parametrize("kind", BAD)
def test_what_is_no_signature_is_refused(kind):
    document: dict[str, Any] = DIGITS.document() | BAD[kind]
    with pytest.raises((TypeError, ValueError)):
        Signature.of(document)


@pytest.mark.parametrize("name", ["dtype", "input_shape", "classes"])
def test_signature_without_a_field_is_refused(name):
    document = DIGITS.document()
    del document[name]
    with pytest.raises(KeyError):
        Signature.of(document)


def test_numbers_are_the_labels_of_a_model_without_labels():
    named = Signature((28, 28), 10, tuple("0123456789"))
    assert named == DIGITS
    assert Signature((28, 28), 10, tuple("1234567890")) != DIGITS


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
