"""Fixtures of the whole repository that these tests use."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from digit_classifier import PRETRAINED, Classifier
from tests.conftest import images, mnist_sample, process_stays
from tests.serving.cli.conftest import run
from tests.serving.http.peer import HttpPeer
from tests.support.servers import running_server
from tests.web.conftest import browser, page, url

__all__ = ["browser", "images", "mnist_sample", "page", "process_stays", "run", "url"]


@pytest.fixture(scope="session")
def models() -> Path:
    return PRETRAINED


@pytest.fixture(scope="session")
def classifier() -> Iterator[Classifier]:
    with Classifier.pretrained(device="cpu") as classifier:
        yield classifier


@pytest.fixture(scope="session")
def http(models: Path) -> Iterator[HttpPeer]:
    with running_server(models, "--http-port", "0", "--max-request-rows", "64") as server:
        yield HttpPeer(server.facts["http"])
