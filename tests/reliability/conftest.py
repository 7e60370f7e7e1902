"""Everything in this folder is slow: `make test-reliability` runs it, `make test` does not."""

import os

from tests.conftest import SEED


def pytest_report_header():
    return f"reliability: TEST_SEED={SEED}, soak {soak_s()} s and more"


def soak_s():
    """Seconds that the soak lasts: SOAK_S, or a time short enough for every change."""
    return float(os.environ.get("SOAK_S", "60"))
