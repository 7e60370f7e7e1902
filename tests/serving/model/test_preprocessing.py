"""From a description to a classifier's input, and from its outputs to probabilities."""

import re
from typing import Any

import numpy as np
import pytest

from digit_classifier.predictions import DIGITS
from serving.errors import ConfigurationError, ModelError
from serving.model.manifest import Manifest
from serving.model.picture_inputs import described
from serving.model.preprocessing import (
    Preprocessing,
    as_probabilities,
    classes_of,
    of_graph,
    of_signature,
)
from serving.tensors import Signature, Tensor, TensorSignature


@pytest.fixture
def pixels():
    return np.random.default_rng(0).integers(0, 256, (4, 5, 3), np.uint8)


def graph(datatype, *shape, outputs=()):
    usual = (Tensor("scores", "FP32", (-1, 3)),)
    return TensorSignature((Tensor("image", datatype, shape),), outputs or usual, False)


def test_row_is_scaled_normalized_and_laid_out(pixels):
    known = Preprocessing(
        size=(4, 5), channels=3, layout="NCHW", dtype="float32", scale=1 / 255,
        mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6),
    )  # fmt: skip
    row = known.row(pixels)
    expected = (pixels / 255 - [0.1, 0.2, 0.3]) / [0.4, 0.5, 0.6]
    np.testing.assert_allclose(row[0], expected.transpose(2, 0, 1), rtol=1e-5, atol=1e-6)
    assert row.dtype == np.float32
    assert row.flags.c_contiguous


def test_row_of_bytes_is_the_pixels(pixels):
    row = Preprocessing(size=(4, 5), channels=3).row(pixels)
    np.testing.assert_array_equal(row, pixels.reshape(1, -1))


@pytest.mark.parametrize(
    ("tensors", "document", "expected"),
    [
        (graph("FP32", -1, 3, 96, 64), {}, ((96, 64), 3, "NCHW", "float32", 1 / 255)),
        (graph("FP32", 1, 96, 64, 3), {}, ((96, 64), 3, "NHWC", "float32", 1 / 255)),
        (graph("UINT8", -1, 8, 8, 1), {}, ((8, 8), 1, "NHWC", "uint8", 1)),
        (graph("UINT8", -1, 8, 8), {}, ((8, 8), 1, "NHW", "uint8", 1)),
        (graph("FP32", -1, 3, -1, -1), {"size": [7, 9]}, ((7, 9), 3, "NCHW", "float32", 1 / 255)),
        (graph("FP32", -1, 64), {"size": [8, 8], "scale": 1}, ((8, 8), 1, "flat", "float32", 1)),
        (graph("FP32", -1, 3, 5, 3), {"layout": "NHWC"}, ((3, 5), 3, "NHWC", "float32", 1 / 255)),
    ],
)
def test_graph_says_what_it_takes(tensors, document, expected):
    known = of_graph(tensors, document)
    assert (known.size, known.channels, known.layout, known.dtype, known.scale) == expected


RGB = graph("FP32", -1, 3, 96, 96)


@pytest.mark.parametrize(
    ("document", "words"),
    [
        ({"sizes": [1, 1]}, "field: one of size, channels"),
        ({"size": [96]}, "size: height and width"),
        ({"size": [96, "96"]}, "size: height and width"),
        ({"size": [96, 10**9]}, "size: height and width, 1 to 4096 expected"),
        ({"size": [28, 28]}, "3 x 28 x 28 expected, got image FP32 [N, 3, 96, 96]"),
        ({"channels": 1}, "1 x 96 x 96 expected"),
        ({"channels": 2}, "channels: 1 or 3"),
        ({"layout": "NHWC"}, "input: one such as FP32 [N, 3, 224, 224] expected"),
        ({"layout": {}}, "input: one such as"),
        ({"dtype": "uint8"}, "dtype: float32 where levels are scaled"),
        ({"dtype": "float16"}, "dtype: one of uint8, float32"),
        ({"scale": 0}, "scale: a number above 0"),
        ({"scale": True}, "scale: a number above 0"),
        ({"scale": float("nan")}, "scale: a number above 0"),
        ({"mean": [0.5]}, "mean: a number for each channel (3)"),
        ({"mean": None}, "mean: a number for each channel (3)"),
        ({"std": [1, 0, 1]}, "std: numbers other than 0"),
        ({"std": [2, 0, 2]}, "std: numbers other than 0"),
        ({"resize": "fit"}, "resize: one of stretch, pad, crop, digits"),
        ({"resize": "digits"}, "size: that of digits, (28, 28)"),
        ({"invert": 1}, "invert: true or false"),
        ({"labels": "abc"}, "labels: texts of 1 to 100"),
        ({"labels": ["a", "b", ""]}, "labels: texts of 1 to 100"),
        ({"labels": ["a", "b"]}, "labels: 3 (one for each class) expected, got 2"),
    ],
)
def test_wrong_description_is_refused_by_its_field(document, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        of_graph(RGB, document)


MENDED: Any = [
    # What is said of a description, and what its writer then changes.
    ("field: one of size, channels", {"sizes": None}),
    ("size: [height, width] expected", {"size": [0, 1]}),
    ("size: height and width", {"size": [8, 8]}),
    ("channels: 1 or 3", {"channels": 3}),
    ("layout: one of flat", {"layout": "NHW"}),
    ("channels: 1 where the layout is NHW", {"layout": "NCHW"}),
    ("dtype: one of uint8", {"dtype": "uint8"}),
    ("scale: a number above 0", {"scale": 0.5}),
    ("mean: a number for each channel", {"mean": []}),
    ("std: a number for each channel", {"std": [1, 0, 1]}),
    ("std: numbers other than 0", {"std": []}),
    ("dtype: float32 where levels are scaled", {"scale": 1}),
    ("resize: one of stretch", {"resize": "digits"}),
    ("size: that of digits", {"size": [28, 28]}),
    ("channels: 1 expected", {"channels": 1}),
    ("invert: true or false", {"invert": False}),
    ("labels: texts of 1 to 100", {"labels": ["a"]}),
]


def test_field_that_others_rest_on_is_refused_before_them():
    document: dict[str, Any] = {
        "sizes": [8, 8], "channels": 2, "layout": "x", "dtype": "int3", "scale": 0,
        "mean": [1, 2], "std": [1, 2], "resize": "y", "invert": 3, "labels": [""],
    }  # fmt: skip
    for words, change in MENDED:
        with pytest.raises(ValueError, match=f"^{re.escape(words)}"):
            Preprocessing.of(document)
        document |= change
        if "sizes" in change:
            del document["sizes"]
    assert Preprocessing.of(document).size == (28, 28)


TEXTS = (Tensor("texts", "BYTES", (-1,)),)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        (graph("FP32", -1, 3, -1, -1), "size: [height, width]"),
        (graph("FP32", -1, 64), "size: [height, width]"),
        (graph("INT64", -1, 3, 96, 96), "input: one such as"),
        (graph("FP32", -1, 5, 96, 96), "input: one such as"),
        (graph("FP32"), "input: one such as"),
        (graph("FP32", -1, 3, 96, 96, outputs=TEXTS), "output: one of floats"),
        (TensorSignature(RGB.inputs * 2, RGB.outputs, True), "input: one such as"),
    ],
)
def test_graph_that_takes_no_pictures_is_refused(tensors, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        of_graph(tensors, {})


def test_manifest_without_a_description_stretches_pictures():
    letters = of_signature(Signature((32, 32, 1), 2, ("a", "b")))
    assert (letters.resize, letters.labels) == ("stretch", ("a", "b"))
    assert of_signature(DIGITS, {"resize": "digits"}).resize == "digits"
    assert of_signature(DIGITS, {"resize": "an application that is not here"}) is None
    assert of_signature(Signature((784,), 10)) is None
    assert of_signature(Signature((2, 2, 2), 10)) is None


@pytest.mark.parametrize(
    "document", [{"size": [28, 29]}, {"channels": 3}, {"dtype": "float32"}, {"layout": "NHW"},
                 {"labels": ["a"]}],
)  # fmt: skip
def test_description_that_is_not_of_the_signature_is_refused(document):
    with pytest.raises(ValueError, match="the signature's"):
        of_signature(DIGITS, {"resize": "stretch", **document})


def test_logits_become_probabilities_and_probabilities_stay():
    rows = np.array([[0.2, 0.5, 0.3], [2.0, 0.0, -1.0], [0.9, 0.9, 0.9], [1000, 0, 0]], np.float32)
    found = as_probabilities(rows)
    np.testing.assert_array_equal(found[0], rows[0])
    np.testing.assert_allclose(found[1], np.exp(rows[1]) / np.exp(rows[1]).sum(), rtol=1e-6)
    np.testing.assert_allclose(found[2:], np.array([[1 / 3] * 3, [1, 0, 0]]), rtol=1e-6)


def test_probabilities_in_256_steps_are_no_logits():
    """A quantised Softmax: 254 / 255 alone adds up to 0.996, and its softmax would be 0.73."""
    rows = np.array([[254 / 255, 0.0], [0.5, 0.505]], np.float32)
    found = as_probabilities(rows)
    np.testing.assert_allclose(found.sum(axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(found, rows / rows.sum(axis=1, keepdims=True), rtol=1e-6)
    logits = np.array([[0.9, 0.0]], np.float32)
    assert as_probabilities(logits)[0, 0] == pytest.approx(1 / (1 + np.exp(-0.9)))


def test_one_number_is_the_second_of_two_classes():
    np.testing.assert_allclose(as_probabilities(np.array([[0.3]])), [[0.7, 0.3]], rtol=1e-6)
    odds = as_probabilities(np.array([[[2.0]]], np.float16))
    np.testing.assert_allclose(odds, [[1 - 0.880797, 0.880797]], rtol=1e-5)


def test_answers_that_are_no_probabilities_are_errors():
    with pytest.raises(ModelError, match="NaN or infinity"):
        as_probabilities(np.array([[np.nan, 1.0]]))
    known = of_graph(graph("FP32", -1, 4, 5, outputs=(Tensor("y", "FP32", ()),)), {"labels": ["a"]})
    with pytest.raises(ModelError, match="1 labels, but 3 classes"):
        classes_of(known, [np.ones((1, 3))])


def test_smallest_and_largest_pictures_are_taken_and_no_others():
    sides = [side for side in (0, 1, 2, 4095, 4096, 4097) if is_taken(size=(side, 1))]
    assert (sides[0], sides[-1]) == (1, 4096)
    assert [number for number in range(5) if is_taken(channels=number)] == [1, 3]


def is_taken(**fields):
    try:
        Preprocessing(**{"size": (4, 4), "channels": 1, **fields})
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(("number", "names"), [(1, 2), (2, 2), (3, 3)])
def test_labels_are_one_for_each_class(number, names):
    """One number is the second of two classes."""
    tensors = graph("FP32", -1, 4, 5, outputs=(Tensor("y", "FP32", (-1, number)),))
    of_graph(tensors, {"labels": ["a", "b", "c"][:names]})
    with pytest.raises(ValueError, match=rf"labels: {names} \(one for each class\) expected"):
        of_graph(tensors, {"labels": ["a", "b", "c", "d"]})


@pytest.mark.parametrize(
    "text",
    ["", "{", "3", "null", "[]", '{"more": 1}', "[" * 100_000, f'{{"scale": 1{"0" * 400}}}',
     f'{{"mean": [1{"0" * 400}, 0, 0]}}', '{"size": null}', '{"labels": {}}'],
    ids=lambda text: text[:20],
)  # fmt: skip
def test_description_that_cannot_be_used_is_an_error_of_its_file(text, tmp_path):
    file = tmp_path / "classifier.json"
    file.write_text(text)
    manifest = Manifest(
        name="m", version="1", test_accuracy=None, digests={}, golden_probabilities={},
        golden_images=np.empty((0, 0), np.uint8),
    )  # fmt: skip
    sides = (Tensor("x", "FP32", (-1, 3, 8, 8)),), (Tensor("y", "FP32", (-1, 2)),)
    tensors = TensorSignature(*sides, is_batchable=True)
    with pytest.raises(ConfigurationError, match=re.escape(str(file))):
        described(file, manifest, tensors)
    file.write_text("{}")
    assert described(file, manifest, tensors).pictures
