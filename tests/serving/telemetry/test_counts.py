"""What is counted of a run, whole, in this process."""

import time
from dataclasses import fields
from types import SimpleNamespace

import numpy as np
import pytest

from serving.config import BatchingConfig
from serving.system.usage import Usage
from serving.telemetry import metrics as module
from serving.telemetry.metrics import (
    NO_MODEL,
    Counts,
    HandlerUsage,
    Histogram,
    Metrics,
    QueueUsage,
    Readiness,
    Report,
    Served,
    total,
)

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


def test_version_begins_with_nothing():
    metrics = Metrics()
    metrics.count("ModelInfer", "OK", model=MODEL)
    counts = metrics.snapshot().models[MODEL]
    found = {each.name: getattr(counts, each.name) for each in fields(counts)}
    sums = {name: each.sum for name, each in found.items() if isinstance(each, Histogram)}
    assert sums == dict.fromkeys(
        ["confidence", "queue_s", "run_s", "request_s", "preprocess_s", "postprocess_s",
         "first_part_s", "part_gap_s"], 0.0,
    )  # fmt: skip
    assert found.pop("own").is_empty
    assert {name: each for name, each in found.items() if name not in sums} == {
        "requests": {("ModelInfer", "OK"): 1}, "runs": {}, "runs_ns": {}, "num_failed": 0,
        "failed_s": 0.0, "calls_run_s": 0.0, "calls_output_s": 0.0, "classes": {}, "labels": {},
        "num_mismatches": 0,
    }  # fmt: skip
    assert (QueueUsage(), HandlerUsage()) == ((0, 0), (0, 0, 0))
    served = Served("m", "1", "cpu", "fp32", "h2", "default", 3)
    assert served[7:] == (None, 0, None)
    assert Readiness() == (False, frozenset(), {})


@pytest.mark.parametrize(
    ("seen", "gone"), [((1, 2, 3), "1"), ((9, 2, 3), "2"), ((9, 8, None), "3")]
)
def test_version_that_has_rested_longest_makes_room(seen, gone, monkeypatch):
    """One that has never answered has rested longest."""
    monkeypatch.setattr(module, "MAX_MODELS", 4)
    metrics = Metrics()
    metrics.count("GetModel", "OK")
    for number, last_ms in zip("123", seen, strict=True):
        metrics.count_mismatch(("m", number))
        if last_ms is not None:
            metrics.last_ms["m", number] = last_ms
    metrics.count_mismatch(("m", "4"))
    kept = {("m", each) for each in "1234" if each != gone}
    assert metrics.snapshot().models.keys() == {NO_MODEL, *kept}
    assert ("m", gone) not in metrics.last_ms


def test_probabilities_add_up_exactly():
    histogram = Histogram((0.5, 1.0))
    histogram.add_all(np.array([2.0**24, 1.0, 1.0, 0.5], np.float32))
    assert histogram.sum == 2.0**24 + 2.5
    assert histogram.counts == [1, 2, 1]


OTHER = "m", "2"
REPORT = Report(
    (Served(*MODEL, "cpu", "fp32", "h2", "default", 3),), BatchingConfig(max_batch_size=7),
    {MODEL: QueueUsage(1, 2)}, 3, True, Usage(4, 5, 6, 7), Counts(restarts=8, cpu_s=0.5),
    stuck_models=frozenset({"m"}), request="curl", methods=("Classify",),
    handlers={MODEL: HandlerUsage(1, 2, 3)}, waiting={"m/3": "corrupt"}, missing={"b": "none"},
)  # fmt: skip


def test_report_of_a_process_that_has_ended_has_its_models_alone():
    assert REPORT.ended() == REPORT._replace(
        queues={MODEL: QueueUsage(0, 0)}, num_calls=0, is_serving=False, usage=Usage(0, 0, 0, 0),
        counts=Counts(), handlers={MODEL: HandlerUsage(0, 0, 0)},
    )  # fmt: skip


def test_reports_of_workers_add_up_whole(monkeypatch):
    monkeypatch.setattr(Usage, "now", classmethod(lambda cls: cls(10, 20, 30, 40)))
    monkeypatch.setattr(time, "process_time", lambda: 2.0)
    second = REPORT._replace(
        queues={MODEL: QueueUsage(10, 20), OTHER: QueueUsage(5, 6)}, num_calls=30,
        handlers={MODEL: HandlerUsage(10, 20, 30)}, stuck_models=frozenset({"c"}),
        missing={"d": "gone", "b": "none"},
    )  # fmt: skip
    assert total([REPORT, second], Counts(restarts=1, cpu_s=0.25)) == REPORT._replace(
        queues={MODEL: QueueUsage(11, 22), OTHER: QueueUsage(5, 6)}, num_calls=33,
        usage=Usage(18, 30, 42, 54), counts=Counts(restarts=17, cpu_s=3.25),
        stuck_models=frozenset({"m", "c"}), handlers={MODEL: HandlerUsage(11, 22, 33)},
        missing={"b": "none", "d": "gone"},
    )  # fmt: skip
