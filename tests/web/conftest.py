"""A server with the page, and Chromium; `make test-web` runs this folder, `make test` does not."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from serving.model.repository import PRETRAINED
from tests.support.servers import running_server

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(_HERE):
            item.add_marker(pytest.mark.web)


@pytest.fixture(scope="package")
def url() -> Iterator[str]:
    with running_server(PRETRAINED, "--http-port", "0") as server:
        yield server.facts["http"]
