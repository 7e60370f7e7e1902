"""What is counted of a run, whole, in this process."""

import time
from types import SimpleNamespace

import pytest

from serving.telemetry.metrics import Metrics

RUN = SimpleNamespace(num_rows=1, started_s=1.0, finished_s=2.0, classes=None, rows=b"")
MODEL = "m", "1"


@pytest.mark.parametrize("way", ["run", "calls"])
def test_version_has_the_time_of_its_last_answer_in_milliseconds(way, monkeypatch):
    metrics, now_ns = Metrics(), [1_700_000_000_123_999_999]
    monkeypatch.setattr(time, "time_ns", lambda: now_ns[0])
    observe_ = metrics.observe_run if way == "run" else metrics.observe_calls
    observe_(RUN, [], MODEL)
    assert metrics.last_ms == {MODEL: 1_700_000_000_123}
    now_ns[0] += 1_000_000
    observe_(RUN, [], MODEL)
    observe_(RUN, [], ("m", "2"))
    assert metrics.last_ms == {MODEL: 1_700_000_000_124, ("m", "2"): 1_700_000_000_124}
