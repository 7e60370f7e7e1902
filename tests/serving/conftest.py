"""Fixtures of the server's tests."""

from collections.abc import Iterator

import grpc
import pytest

from tests.inference_peer import Peer
from tests.servers import RunningServer


@pytest.fixture
def peer(server: RunningServer) -> Iterator[Peer]:
    with grpc.insecure_channel(server.address) as channel:
        yield Peer(channel)
