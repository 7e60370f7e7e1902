"""Every test of the clients runs on each of their transports."""

import pytest


@pytest.fixture(autouse=True)
def on_both(client_transport: str) -> None:
    """Use it everywhere."""
