"""The clients' tests run on our HTTP/2; `client_transport` repeats one on grpcio."""

import numpy as np
import pytest

from serving.predictions import Images


@pytest.fixture(scope="session")
def transport() -> str:
    """The server's."""
    return "h2"


@pytest.fixture(scope="session")
def image() -> Images:
    return np.zeros((1, 784), np.uint8)
