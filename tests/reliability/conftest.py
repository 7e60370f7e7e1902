"""Everything in this folder is slow: `make test-reliability` runs it, `make test` does not."""

import os
import random
from pathlib import Path

import pytest

SEED = int(os.environ.get("RELIABILITY_SEED", "20261124"))
"""Of all that is drawn here."""

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.reliability)


def pytest_report_header() -> str:
    return f"reliability: RELIABILITY_SEED={SEED}, soak {soak_s('h2')} s and more"


def soak_s(transport: str) -> float:
    """Seconds that the soak lasts: SOAK_S, or what is short enough for every change."""
    return float(os.environ.get("SOAK_S", {"h2": 60, "grpcio": 30}[transport]))


@pytest.fixture
def generator(request: pytest.FixtureRequest) -> random.Random:
    """Seeded by the run's seed and the test's name."""
    print(f"RELIABILITY_SEED={SEED}")
    return random.Random(f"{SEED}:{request.node.name}")
