"""The steps beside a classifier: what a file becomes, and what its outputs become."""

import numpy as np
import pytest
from PIL import Image

from digit_classifier.handler import STEPS as DIGITS
from serving.errors import InvalidRequest, ModelError
from serving.model.preprocessing import Preprocessing
from serving.pictures import reader
from serving.pictures.classifier import STEPS, finish, steps_of
from tests.support.pictures import encoded

ABOUT = Preprocessing(size=(2, 3), channels=3, layout="NHWC", labels=("cat", "dog"))
SHARES = np.array([[0.25, 0.75], [1.0, 0.0]], np.float32)


def test_picture_becomes_the_input_as_its_description_says():
    content = encoded(Image.new("RGB", (30, 20), (1, 2, 250)), "PNG")
    inputs, state = STEPS.decode(ABOUT, content)
    assert state is None
    (row,) = inputs
    assert (row.dtype.name, row.shape) == ("uint8", (1, 2, 3, 3))
    assert (row == [1, 2, 250]).all()
    inverted = Preprocessing(size=(2, 3), invert=True)
    light = encoded(Image.new("L", (30, 20), 250), "PNG")
    (row,) = STEPS.decode(inverted, light).inputs
    assert row.tolist() == [[5] * 6]
    with pytest.raises(InvalidRequest, match="expected a picture"):
        STEPS.decode(ABOUT, b"text")


@pytest.mark.parametrize(("labels", "names"), [(("cat", "dog"), ["dog", "cat"]), ((), ["1", "0"])])
def test_outputs_become_classes_with_their_names(labels, names):
    about = Preprocessing(size=(2, 3), labels=labels)
    found = finish(about, [np.array([7, 7]), SHARES], None)
    assert {name: each.tolist() for name, each in found.items()} == {
        "class": [1, 0], "label": names, "probabilities": SHARES.tolist(),
    }  # fmt: skip
    dtypes = [found[name].dtype.name for name in ("label", "probabilities")]
    assert dtypes == ["object", "float32"]


def test_outputs_of_other_classes_are_the_models_error():
    with pytest.raises(ModelError, match="2 labels, but 3 classes"):
        finish(ABOUT, [np.ones((1, 3), np.float32)], None)


def test_application_has_steps_of_its_own():
    assert steps_of(ABOUT) is STEPS
    assert steps_of(Preprocessing(size=(28, 28), resize="digits")) is DIGITS


def test_processes_import_the_decoder_and_the_applications():
    assert {"serving.pictures.decoder", "digit_classifier.handler",
            "digit_classifier.normalizer"} <= {*reader.modules()}  # fmt: skip
    assert reader.modules()[0] == "serving.pictures.decoder"
