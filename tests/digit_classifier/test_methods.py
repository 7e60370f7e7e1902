"""digits.v1's methods without a transport: which model answers, and what GetModel says of it."""

from array import array
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from digit_classifier import methods
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from serving.config import BatchingConfig
from serving.errors import ModelNotFound
from serving.protocols.framing import frame
from serving.tensors import Signature

LETTERS = Signature((32, 32), 2, ("a", "b"))


def router_of(**signatures):
    """A router of models with these signatures, by name; None for others than classifiers."""
    routes = {
        name: SimpleNamespace(
            name=name, signature=signature, label=(name, "3"), model=SimpleNamespace(
                image_signature=signature, describe=lambda batching: described(batching)
            ),
        )
        for name, signature in signatures.items()
    }  # fmt: skip
    found: Any = SimpleNamespace(routes=routes, batching=BatchingConfig(max_request_rows=99))
    return found


def described(batching):
    assert batching.max_request_rows == 99
    return SimpleNamespace(
        version="3", device="cuda", precision="int8", max_batch_size=17, test_accuracy=0.875
    )


@pytest.mark.parametrize(
    ("models", "name"),
    [
        ({"digits": DIGITS}, "digits"),
        ({"letters": LETTERS, "digits": DIGITS}, "digits"),
        ({"letters": LETTERS, "iris": None}, "letters"),
        ({"digits": None, "letters": LETTERS}, "letters"),
        ({"letters": LETTERS, "more": LETTERS}, None),
        ({"iris": None}, None),
        ({}, None),
    ],
)
def test_model_is_the_one_called_digits_or_the_only_classifier(models, name):
    router = router_of(**models)
    assert methods.model_name(router) == (name or "")
    if name is None:
        assert methods.route_of(router) is None
        with pytest.raises(ModelNotFound, match=r"^no classifier of images is served$"):
            methods.find_classifier(router)
    else:
        assert methods.find_classifier(router) is methods.route_of(router) is router.routes[name]


def test_model_is_described_whole():
    found = methods.methods(router_of(letters=LETTERS), "h2")
    assert [(type(each).__name__, each.path, each.name) for each in found] == [
        ("BatchedUnary", "/digits.v1.DigitClassifier/Classify", "Classify"),
        ("BatchedStream", "/digits.v1.DigitClassifier/ClassifyStream", "ClassifyStream"),
        ("Unary", "/digits.v1.DigitClassifier/GetModel", "GetModel"),
    ]
    get_model: Any = found[2]
    signature = digits_pb2.Signature(
        input_shape=[32, 32], dtype="uint8", classes=2, labels=["a", "b"]
    )
    assert digits_pb2.GetModelResponse.FromString(get_model.answer(b"")) == (
        digits_pb2.GetModelResponse(
            name="letters", version="3", device="cuda", precision="int8", transport="h2",
            max_request_images=99, max_batch_size=17, test_accuracy=0.875, signature=signature,
        )
    )  # fmt: skip


@pytest.mark.parametrize("num_classes", [1, 2, 9, 10, 11, 25, 100, 1001])
def test_answer_to_one_image_is_that_of_protobuf_for_any_number_of_classes(num_classes):
    """It is copied between bytes that were written once for each class and version."""
    rows = np.arange(3 * num_classes, dtype="<f4").reshape(3, num_classes)
    classes = array("I", [0, num_classes - 1, num_classes // 2])
    encoder = methods._ClassEncoder(SimpleNamespace(), "Classify", 1)
    for version in ("3", "a version with a name", "3"):
        result = SimpleNamespace(
            classes=classes, rows=rows.tobytes(), version=version, num_rows=3
        )  # fmt: skip
        found = encoder.encode(result, 1, 2)
        for number, each in enumerate(found, 1):
            expected = digits_pb2.ClassifyResponse(
                digits=[classes[number]], probabilities=rows[number].tolist(),
                model_version=version,
            )  # fmt: skip
            assert each == frame(expected.SerializeToString())
        assert len(found) == 2
