"""What the command line, a manifest and a `classifier.json` say of a model's pictures."""

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from digit_classifier.predictions import DIGITS
from serving.errors import ConfigurationError
from serving.model.manifest import Manifest
from serving.model.picture_inputs import PictureInputs, described, read_labels
from serving.model.preprocessing import Preprocessing
from serving.tensors import Tensor, TensorSignature

TENSORS = TensorSignature(
    (Tensor("image", "UINT8", (-1, 4, 4)),), (Tensor("scores", "FP32", (-1, 2)),), True
)
NUMBERS = TensorSignature((Tensor("x", "INT64", (-1, 4)),), TENSORS.outputs, True)
GRAPHS = Preprocessing(size=(4, 4), layout="NHW")
"""How pictures become its input, as its graph says it."""
NAMED = replace(GRAPHS, labels=("a", "b"))
OWN = Preprocessing(size=(4, 4), layout="NHW", invert=True)
"""That of a `classifier.json`."""


def model_of(tensors=TENSORS, pictures=None, signature=None):
    found: Any = SimpleNamespace(
        tensors=tensors, pictures=pictures, manifest=SimpleNamespace(signature=signature)
    )
    return found


SAYS = {"is_image": True, "labels": ("a", "b")}


@pytest.mark.parametrize(
    ("options", "model", "expected"),
    [
        ({}, model_of(), None),
        ({}, model_of(pictures=OWN), OWN),
        ({}, model_of(NUMBERS), None),
        ({"labels": ("a", "b")}, model_of(pictures=OWN), OWN),
        ({"is_image": True}, model_of(), GRAPHS),
        (SAYS, model_of(), NAMED),
        (SAYS, model_of(pictures=OWN), replace(OWN, labels=("a", "b"))),
        (SAYS, model_of(pictures=replace(OWN, labels=("x", "y"))), replace(OWN, labels=("x", "y"))),
        (SAYS, model_of(signature=DIGITS), None),
        (SAYS, model_of(pictures=OWN, signature=DIGITS), OWN),
    ],
)
def test_pictures_are_as_the_nearest_description_says(options, model, expected):
    inputs = PictureInputs(**options)
    assert inputs.of(model) == expected
    assert inputs.find(model) == expected
    inputs.require_one({"other": model_of(NUMBERS), "m": model_of(pictures=OWN)})


def test_model_that_takes_no_pictures_is_named_only_if_all_are_to_take_some():
    inputs = PictureInputs(is_image=True)
    with pytest.raises(ValueError, match="input: one such as FP32"):
        inputs.of(model_of(NUMBERS))
    assert inputs.find(model_of(NUMBERS)) is None
    both = {"n": model_of(NUMBERS), "digits": model_of(signature=DIGITS)}
    with pytest.raises(ConfigurationError, match=r"^--input image: model n: input: one such as"):
        inputs.require_one(both)
    with pytest.raises(ConfigurationError, match=r"^--input image: no such model$"):
        inputs.require_one({"digits": model_of(pictures=OWN, signature=DIGITS)})
    many = {name: model_of(NUMBERS) for name in "abcd"}
    with pytest.raises(ConfigurationError) as caught:
        inputs.require_one(many)
    named = [name for name in many if f"model {name}: " in str(caught.value)]
    assert named == ["a", "b", "c"]
    PictureInputs().require_one(both)
    PictureInputs().require_one({})


def test_labels_are_one_a_line(tmp_path):
    file = tmp_path / "labels.txt"
    file.write_bytes("\ufeffcat\ndog\r\nä b".encode())
    assert read_labels(file) == ("cat", "dog", "ä b")
    assert read_labels(None) == ()
    file.write_bytes(b"\xff")
    with pytest.raises(ConfigurationError, match=f"^can't read {file}: "):
        read_labels(file)
    with pytest.raises(ConfigurationError, match="No such file or directory"):
        read_labels(tmp_path / "none")


def test_classifier_beside_a_manifest_of_images_is_not_used(tmp_path, caplog):
    manifest = replace(Manifest.of_graph("m", "3", {}), signature=DIGITS)
    assert described(tmp_path / "classifier.json", manifest, TENSORS) is manifest
    assert caplog.messages == [
        "model m version 3: classifier.json is not used: the manifest describes its pictures"
    ]
    (tmp_path / "classifier.json").write_text('{"labels": ["a", "b"]}')
    plain = Manifest.of_graph("m", "3", {})
    assert described(tmp_path / "classifier.json", plain, TENSORS).pictures == NAMED
