"""A server with an HTTP port, shared by this folder's tests: with the bundled model."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving import Classifier
from serving.model.repository import PRETRAINED
from tests.serving.http.peer import HttpPeer
from tests.support.servers import running_server


@pytest.fixture(scope="session")
def models() -> Path:
    return PRETRAINED


@pytest.fixture(scope="session")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="package")
def http(models: Path) -> Iterator[HttpPeer]:
    with running_server(models, "--http-port", "0", "--max-request-images", "64") as server:
        yield HttpPeer(server.facts["http"])
