"""A client reads the model's facts from current, older and broken servers."""

import numpy as np
import pytest

from digit_classifier import Classifier, wire
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from serving.errors import InvalidRequest, Unavailable
from serving.tensors import Signature
from tests.support.servers import fake_server

PETS = Signature((28, 28), 3, ("cat", "dog", "fish"))


@pytest.fixture(scope="module", params=[1, 3])
def images(request):
    return np.zeros((request.param, 784), np.uint8)


def info(signature):
    response = digits_pb2.GetModelResponse(max_request_images=4096, signature=signature)
    return response.SerializeToString()


def answering(num_classes):
    """Answers the last class to each image."""

    def classify(request, context):
        num_images = len(digits_pb2.ClassifyRequest.FromString(request).images) // 784
        rows = np.zeros((num_images, num_classes), np.float32)
        rows[:, -1] = 1
        return wire.encode_response([num_classes - 1] * num_images, rows.tobytes(), "1")

    return classify


def test_classes_and_labels_are_those_of_the_server(images):
    with (
        fake_server(answering(3), info(PETS.document())) as address,
        Classifier.connect(address) as client,
    ):
        answer = client.classify(images)
    assert answer.labels == ["fish"] * len(images)
    assert answer.probabilities.shape == (len(images), 3)


def test_server_that_does_not_say_serves_digits(images):
    with fake_server(answering(10), info(None)) as address, Classifier.connect(address) as client:
        assert client.classify(images).labels == ["9"] * len(images)
        assert client.signature == DIGITS
        with pytest.raises(InvalidRequest, match=r"expected images of shape \(N, 784\)"):
            client.classify(np.zeros((1, 1024), np.uint8))


def test_another_model_at_the_same_address_is_an_error_and_then_known(images):
    """As after a restart: the answer that shows it can't be relied on, nor the known facts."""
    served = [answering(10)]
    infos = [info(None)]

    with (
        fake_server(lambda *call: served[-1](*call), lambda *_: infos[-1]) as address,
        Classifier.connect(address) as client,
    ):
        assert client.classify(images).labels == ["9"] * len(images)
        served.append(answering(3))
        infos.append(info(PETS.document()))
        with pytest.raises(Unavailable, match="the server is broken: it answered probabilities of"):
            client.classify(images)
        assert client.classify(images).labels == ["fish"] * len(images)


@pytest.mark.parametrize(
    "broken",
    [{"classes": 0}, {"input_shape": []}, {"labels": ["one"]}, {"dtype": "float32"}],
    ids=str,
)
def test_signature_that_is_none_is_a_broken_server(images, broken):
    signature = PETS.document() | broken
    with (
        fake_server(answering(3), info(signature)) as address,
        pytest.raises(Unavailable, match=f"{address}: the server is broken: it answered"),
        Classifier.connect(address) as client,
    ):
        client.classify(images)
