"""The clients' tests run on our HTTP/2; `client_transport` repeats one on grpcio."""

import numpy as np
import pytest


@pytest.fixture(scope="session")
def transport():
    """The server's."""
    return "h2"


@pytest.fixture(scope="session")
def image():
    return np.zeros((1, 784), np.uint8)
