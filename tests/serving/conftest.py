"""Fixtures of the server's tests."""

import grpc
import numpy as np
import pytest

from digit_classifier import Classifier
from tests.serving.model import templates
from tests.support.raw import Peer, Raw


@pytest.fixture
def peer(server):
    with grpc.insecure_channel(server.address) as channel:
        yield Peer(channel)


@pytest.fixture
def raw(server):
    return Raw(server.address)


@pytest.fixture(scope="session")
def other_models(tmp_path_factory):
    """A repository of models that are not digits'. Shared: copy it before you change it."""
    folder = tmp_path_factory.mktemp("others")
    templates.publish(folder, "letters", templates.LETTERS)
    templates.publish(folder, "glyphs", templates.GLYPHS)
    return folder


@pytest.fixture(autouse=True)
def still_answers(request):
    """After each test, whatever it did, the shared server still answers correctly."""
    if "server" not in request.fixturenames:  # `raw`, `client` and `peer` bring it too
        yield
        return
    values = (request.getfixturevalue(name) for name in ("server", "images", "classifier"))
    server, images, classifier = values
    yield
    with Classifier.connect(server.address) as client:
        answer = client.classify(images[:3])
    np.testing.assert_array_equal(answer.digits, classifier.classify(images[:3]).digits)
