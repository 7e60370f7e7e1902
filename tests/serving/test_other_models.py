"""Models of other shapes: each way to ask one gives its classifier's answers."""

from typing import NamedTuple

import grpc
import numpy as np
import pytest

from digit_classifier import AsyncClassifier, Classifier
from serving.config import Precision
from serving.tensors import Signature
from tests.serving.model import templates
from tests.support.raw import Peer, probabilities_in, raw_request, typed_request
from tests.support.servers import running_server


class Model(NamedTuple):
    name: str
    signature: Signature
    precision: Precision


MODELS = (Model("letters", templates.LETTERS, "int8"), Model("glyphs", templates.GLYPHS, "fp32"))


@pytest.fixture(scope="module", params=MODELS, ids=lambda model: f"{model.name}-{model.precision}")
def model(request):
    model: Model = request.param
    return model


@pytest.fixture(scope="module")
def images(model):
    return templates.images_of(model.signature, 500)[0]


@pytest.fixture(scope="module")
def classifier(other_models, model):
    with Classifier.load(other_models / model.name, precision=model.precision) as classifier:
        yield classifier


@pytest.fixture(scope="module")
def server(other_models, model):
    options = ["--model", model.name, "--precision", model.precision]
    options += ["--self-test-interval", "0"]
    with running_server(other_models, *options) as server:
        yield server


@pytest.fixture
def peer(server):
    with grpc.insecure_channel(server.address) as channel:
        yield Peer(channel)


def test_answers_are_right_and_have_their_labels(client, model):
    images, classes = templates.images_of(model.signature, 1000)
    answer = client.classify(images.reshape(-1, *model.signature.input_shape))
    np.testing.assert_array_equal(answer.digits, classes)
    names = model.signature.labels or tuple(map(str, range(300)))
    assert answer.labels == [names[number] for number in classes]
    assert (client.signature, client.describe().test_accuracy) == (model.signature, None)


async def test_each_client_and_protocol_answers_as_the_classifier_does(
    server, client, peer, classifier, images
):
    local = classifier.classify(images)
    pictures = images.reshape(-1, *classifier.signature.input_shape)
    async with AsyncClassifier.connect(server.address) as awaited:
        answers = [client.classify(images), await awaited.classify(images)]
    answers += [either.classify(pictures) for either in (client, classifier)]
    for answer in answers:
        np.testing.assert_array_equal(answer.probabilities, local.probabilities)
        np.testing.assert_array_equal(answer.digits, local.digits)
        assert answer.digits.dtype == (
            np.uint8 if local.probabilities.shape[1] <= 256 else np.uint16
        )
        assert (answer.labels, answer.model_version) == (local.labels, "1")
    assert local.digits.tolist() == [classifier.classify(each[None]).digits[0] for each in images]
    for request in (raw_request(images[:3]), typed_request(images[:3])):
        found = probabilities_in(peer.infer(request))
        np.testing.assert_array_equal(found, local.probabilities[:3])
