"""Everything in this folder is slow: `make test-reliability` runs it, `make test` does not."""

import os
from pathlib import Path

import pytest

from tests.conftest import SEED

_HERE = Path(__file__).parent


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if _HERE in item.path.parents:
            item.add_marker(pytest.mark.reliability)


def pytest_report_header() -> str:
    return f"reliability: TEST_SEED={SEED}, soak {soak_s()} s and more"


def soak_s() -> float:
    """Seconds that the soak lasts: SOAK_S, or what is short enough for every change."""
    return float(os.environ.get("SOAK_S", "60"))
