"""Counts and histograms without a server."""

import time
from collections import Counter
from types import SimpleNamespace

import numpy as np
import pytest

from serving.config import BatchingConfig
from serving.system.usage import Usage
from serving.telemetry.exposition import encode
from serving.telemetry.metrics import (
    NO_MODEL,
    Counts,
    Histogram,
    Metrics,
    ModelCounts,
    OwnCounts,
    Readiness,
    Report,
    total,
)
from tests.support.locks import KeptLock, handed_in, waits
from tests.support.pages import cells


def test_histogram_counts_a_value_on_a_bound_below_it():
    histogram = Histogram((1, 10))
    for number in (0.5, 1, 2, 10, 11):
        histogram.add(number)
    histogram.add(1, times=2)
    assert histogram.cumulative() == [("1", 4), ("10", 6), ("+Inf", 7)]
    assert histogram.sum == 26.5


def observe(metrics, started_s, finished_s, num_rows, requests, classified, model):
    """Count a run as the batcher does."""
    classes, rows = classified or (None, b"")
    run = SimpleNamespace(started_s=started_s, finished_s=finished_s, num_rows=num_rows,
                          classes=classes, rows=rows)  # fmt: skip
    groups = [
        SimpleNamespace(
            arrived_s=at_s, streams=range(times), encoder=SimpleNamespace(method=method)
        )
        for at_s, method, times in requests
    ]
    metrics.observe_run(run, groups, model)


def test_sums_over_many_runs_are_exact():
    """Runs of all sizes are counted in between and at the end, beside plain sums."""
    generator, metrics = np.random.default_rng(0), Metrics()
    rows, answers, calls, certainties = 0, [0] * 10, 0, []
    for number in range(1, 701):
        num_rows = int(generator.choice((1, 3, 500)))
        table = generator.random((num_rows, 10)).astype(np.float32)
        classes = table.argmax(1).astype(np.uint8).tobytes()
        requests = [(0.5, "ModelInfer", num_rows), (0.75, None, 1)]
        classified = classes, table.tobytes()
        observe(metrics, 1.0, 1.25, num_rows, requests, classified, ("m", "1"))
        rows, calls = rows + num_rows, calls + num_rows
        certainties += table.max(1).tolist()
        for each in classes:
            answers[each] += 1
        if number in (1, 350, 700):
            counts = metrics.snapshot().models["m", "1"]
            assert (counts.num_rows, counts.num_answered) == (rows, calls + number)
            assert counts.requests == {("ModelInfer", "OK"): calls}
            assert counts.runs.total() == number
            assert counts.runs[500] == counts.batch_rows.counts[9]
            assert (counts.batch_rows.sum, metrics.num_rows) == (rows, rows)
            assert [counts.classes[digit] for digit in range(10)] == answers
            assert counts.confidence.sum == pytest.approx(sum(certainties), rel=1e-9)
            assert counts.queue_s.sum == 0.5 * calls + 0.25 * number
            assert counts.request_s.sum == 0.75 * calls + 0.5 * number
            assert counts.calls_run_s == 0.25 * (calls + number)
            assert counts.runs_ns.total() == 250_000_000 * number


def test_times_of_a_run_count_for_each_of_its_calls(monkeypatch):
    """Calls that share a run have each waited for all of it, and for its answers."""
    metrics = Metrics()
    monkeypatch.setattr(time, "monotonic", lambda: 2.0)
    observe(metrics, 1.0, 1.5, 5, [(0.5, "ModelInfer", 3), (0.75, "Classify", 2)], None, ("m", "1"))
    counts = metrics.snapshot().models["m", "1"]
    assert (counts.calls_run_s, counts.calls_output_s) == (5 * 0.5, 5 * 0.5)
    assert (counts.queue_s.sum, counts.request_s.sum) == (3 * 0.5 + 2 * 0.25, 3 * 1.0 + 2 * 0.75)
    assert (sum(counts.queue_s.counts), sum(counts.request_s.counts)) == (5, 5)


def test_versions_that_have_rested_longest_make_room():
    """Each reload brings a version: their series must not grow without end, as the page says."""
    metrics, most = Metrics(), 500
    metrics.count("GetModel", "OK")
    for number in range(most + 10):
        observe(metrics, 0, 1, 1, [(0, "ModelInfer", 1)], None, ("m", str(number)))
        metrics.last_ms["m", str(number)] = number or 10**15  # version 0 is always in use
    kept = metrics.snapshot().models.keys()
    assert len(kept) == most
    assert kept >= {NO_MODEL, ("m", "0"), ("m", str(most + 9))}
    assert len(metrics.last_ms) == most - 1


def test_version_that_is_gone_keeps_its_counts_on_the_page():
    counts = ModelCounts(classes=Counter({9: 3}))
    for name, seconds in (("queue", 1), ("run", 2), ("request", 4)):
        getattr(counts, f"{name}_s").add(seconds)
    report = Report((), BatchingConfig(), {}, 0, True, Usage(), Counts({("m", "1"): counts}))
    page = encode(report, "")[1].decode()
    assert 'serving_answers_total{class="9",model="m",version="1"} 3.0' in page
    for name, seconds in (("queue", 1), ("run", 2), ("request", 4)):
        line = f'serving_{name}_seconds_sum{{model="m",version="1"}} {seconds}.0'
        assert line in page


@pytest.mark.parametrize("states", [(True, True), (True, False), (False, True), (False, False)])
def test_workers_serve_if_all_of_them_do(states):
    reports = [
        Report((), BatchingConfig(), {}, number, is_serving, Usage(), Counts(),
               frozenset({f"stuck {number}"}), waiting={"a/2": "why"},
               missing={f"b{number}": "why"})
        for number, is_serving in enumerate(states, 1)
    ]  # fmt: skip
    summed = total(reports, Counts())
    assert summed.is_serving is all(states)
    assert summed.num_calls == 3
    assert summed.stuck_models == {"stuck 1", "stuck 2"}
    assert (summed.waiting, summed.missing) == ({"a/2": "why"}, {"b1": "why", "b2": "why"})


def test_nothing_is_ready_before_it_says_so():
    ready = Readiness()
    assert (ready.is_serving, ready.stuck_models, dict(ready.reasons)) == (False, frozenset(), {})


RUN = SimpleNamespace(num_rows=1, started_s=1.0, finished_s=2.0, classes=None, rows=b"")


MODEL = "m", "1"


@pytest.mark.parametrize(
    "count",
    [
        lambda metrics: metrics.observe_run(RUN, [], MODEL),
        lambda metrics: metrics.observe_calls(RUN, [], MODEL),
        lambda metrics: metrics.observe_answers(SimpleNamespace(kept=lambda _: {}), [], MODEL),
        lambda metrics: metrics.observe_step(MODEL, "preprocess", 1.0),
        lambda metrics: metrics.observe_part(MODEL, 1.0, is_first=True),
        lambda metrics: metrics.count_own(MODEL, OwnCounts()),
        lambda metrics: metrics.count("m", "OK"),
        lambda metrics: metrics.count_failure(MODEL, 1.0, 1),
        lambda metrics: metrics.count_mismatch(MODEL),
        lambda metrics: metrics.count_reload("loaded"),
        lambda metrics: metrics.snapshot(),
        lambda metrics: metrics.num_rows,
    ],
    ids=lambda count: count.__code__.co_names[-1],
)
def test_threads_that_count_wait_for_one_another(count):
    lock = KeptLock()
    with handed_in(lock):
        metrics = Metrics()
    assert waits(lock, lambda: count(metrics))
    counts = metrics.snapshot()
    assert (counts.models, counts.reloads) == ({}, Counter())


def test_many_answers_are_counted_before_they_take_memory():
    """However small they are, and however few, as soon as they take 64 KiB."""

    class Answers:
        def __init__(self, num_bytes):
            self.counted_runs, self.num_bytes = [], num_bytes

        def kept(self, outputs):
            return {"classes": np.zeros(self.num_bytes, np.uint8)}

        def counted(self, runs):
            self.counted_runs.append(len(runs))
            return {"a": len(runs)}, []

    for num_bytes, expected in (1, [256] * 2), (32 << 10, [3] * 170):
        metrics, answers = Metrics(), Answers(num_bytes)
        for _ in range(512):
            metrics.observe_answers(answers, [], MODEL)
        assert answers.counted_runs == expected


def steps(lowest, highest):
    """1, 2.5 and 5 times each power of ten between two."""
    return [
        float(f"{mantissa}e{power}") for power in range(lowest, highest + 1)
        for mantissa in (1, 2.5, 5)
    ]  # fmt: skip


def test_bounds_of_histograms_are_those_of_the_page():
    counts, own = ModelCounts(), OwnCounts()
    own.observe("length", (), 1.0)
    (length,) = own.values.values()
    assert cells("metrics.md", "seconds")[1].endswith("from 0.00001 to 1")
    for name in ("queue_s", "run_s", "request_s", "preprocess_s", "postprocess_s", "first_part_s",
                 "part_gap_s"):  # fmt: skip
        assert list(getattr(counts, name).bounds) == pytest.approx(steps(-5, 0)), name
    assert cells("metrics.md", "a handler's own values")[1].endswith(
        "from 0.0001 to 1000, and 10000"
    )
    assert list(length.bounds) == pytest.approx([*steps(-4, 3), 10_000])
    assert cells("metrics.md", "rows in a run")[1].endswith("powers of two from 1 to 4096")
    assert list(counts.batch_rows.bounds) == [2**power for power in range(13)]
    confidences = cells("metrics.md", "probabilities")
    assert [*map(float, confidences[1].split(", "))] == list(counts.confidence.bounds)
