from typing import Any

import pytest

from serving.tensors import DIGITS, Signature
from tests.serving.model.templates import LETTERS


def test_sizes_are_those_of_its_images_and_rows():
    assert (DIGITS.image_bytes, DIGITS.row_bytes) == (784, 40)
    assert (LETTERS.image_bytes, LETTERS.row_bytes) == (1024, 104)
    assert Signature((8, 8, 3), 2).image_bytes == 192
    assert str(LETTERS) == "32 x 32 uint8 -> 26 classes"


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
