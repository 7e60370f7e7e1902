"""digits.v1's methods without a transport: which model answers, and what GetModel says of it."""

from types import SimpleNamespace
from typing import Any

import pytest

from digit_classifier import methods
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from serving.config import BatchingConfig
from serving.errors import ModelNotFound
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
