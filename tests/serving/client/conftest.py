"""The clients' tests run on our HTTP/2; `client_transport` repeats one on grpcio."""

import numpy as np
import pytest

from serving.client.h2.threads import Http2Connection
from tests.support.guards import Guarded, fixtures


@pytest.fixture(scope="session")
def transport():
    """The server's."""
    return "h2"


@pytest.fixture(scope="session")
def image():
    return np.zeros((1, 784), np.uint8)


uses_without_locks, locks_are_held = fixtures(
    Guarded(
        Http2Connection, "_lock",
        ("_waiting", "_take", "_take_more", "take_message", "wake", "_end"),
        writes=("_reader", "_writer", "_is_lost"),
    ),
)  # fmt: skip
