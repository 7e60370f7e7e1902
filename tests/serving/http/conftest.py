"""A server with an HTTP port, shared by this folder's tests: with the bundled model."""

import pytest

from digit_classifier import PRETRAINED, Classifier
from tests.serving.http.peer import HttpPeer
from tests.support.servers import running_server


@pytest.fixture(scope="session")
def models():
    return PRETRAINED


@pytest.fixture(scope="session")
def classifier():
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="package")
def http(models):
    with running_server(models, "--http-port", "0", "--max-request-rows", "64") as server:
        yield HttpPeer(server.facts["http"])
