import json
import shutil
import time
import urllib.request
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from digit_classifier import Classifier
from digit_classifier.wire import encode_request
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
from tests.support import published
from tests.support.fakes import image_with
from tests.support.locks import KeptLock, handed_in, waits
from tests.support.pages import cells
from tests.support.raw import CLASSIFY
from tests.support.servers import on_both, paced_server, running_server, wait_until


def scrape(server):
    """Every sample by its name and labels, as Prometheus would read it."""
    with urllib.request.urlopen(f"http://{server.facts['metrics']}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples, sample, **labels):
    return samples[sample, frozenset(labels.items())]


def of_digits(samples, sample, **labels):
    """A value of the only model's only version."""
    return value(samples, sample, model="digits", version="1", **labels)


@pytest.fixture
def fresh(models, transport):
    """A server that has counted nothing yet."""
    with running_server(models, "--transport", transport, "--self-test-interval", "0") as server:
        yield server


@on_both
def test_calls_rows_runs_and_answers_are_counted(fresh, images, classifier):
    images = images[:300]
    with (
        Classifier.connect(fresh.address) as client,
        grpc.insecure_channel(fresh.address) as channel,
    ):
        for first in range(100):
            client.classify(images[first : first + 1])
        client.classify(images[100:])
        future = channel.unary_unary(CLASSIFY).future(encode_request(b"bad"))
        assert future.code() is grpc.StatusCode.INVALID_ARGUMENT
    samples = scrape(fresh)
    assert of_digits(samples, "serving_requests_total", method="Classify", status="OK") == 101
    refused = {"method": "Classify", "status": "INVALID_ARGUMENT"}
    assert of_digits(samples, "serving_requests_total", **refused) == 1
    of_none = {"model": "", "version": "", "method": "GetModel", "status": "OK"}
    assert value(samples, "serving_requests_total", **of_none) == 1
    assert of_digits(samples, "serving_queue_rows") == 0
    for name in ("rows_total", "batch_rows_sum", "confidence_count"):
        assert of_digits(samples, f"serving_{name}") == len(images)
    assert of_digits(samples, "serving_batch_rows_bucket", le="1") == 100
    num_runs = of_digits(samples, "serving_batch_rows_bucket", le="+Inf")
    assert num_runs in (101, 102)  # one runner takes those together, two share them
    assert of_digits(samples, "serving_run_seconds_count") == num_runs
    for name in ("queue", "request"):
        assert of_digits(samples, f"serving_{name}_seconds_count") == 101
    assert 0 < of_digits(samples, "serving_request_seconds_sum") < 10
    predictions = classifier.classify(images)
    for digit in range(10):
        number = np.count_nonzero(predictions.digits == digit)
        assert of_digits(samples, "serving_answers_total", **{"class": str(digit)}) == number
    certainty = predictions.probabilities.max(axis=1)
    assert of_digits(samples, "serving_confidence_sum") == pytest.approx(certainty.sum(), rel=1e-5)
    for bound in ("0.5", "0.9", "0.99"):
        number = np.count_nonzero(certainty <= float(bound))
        assert of_digits(samples, "serving_confidence_bucket", le=bound) == number


@on_both
def test_canary_has_counts_of_its_own(models, transport, images, tmp_path):
    root = tmp_path / "models"
    shutil.copytree(models, root)
    published.good(root / "digits", "2")
    labels = {"stable": "1", "canary": {"version": "2", "share": 0.5}}
    (root / "digits" / "labels.json").write_text(json.dumps(labels))
    with running_server(root, "--transport", transport) as server:
        with Classifier.connect(server.address) as client:
            for _ in range(60):
                client.classify(images[:2])
        samples = scrape(server)
    roles = {dict(labels)["version"]: dict(labels)["role"]
             for name, labels in samples if name == "serving_model_info"}  # fmt: skip
    assert roles == {"1": "default", "2": "canary"}
    for name, each in (("serving_rows_total", 2), ("serving_queue_seconds_count", 1)):
        numbers = [value(samples, name, model="digits", version=v) for v in "12"]
        assert sum(numbers) >= 60 * each  # the self-test's, too
        assert min(numbers) > 10 * each
    ended = {"model": "digits", "method": "Classify", "status": "OK"}
    assert sum(value(samples, "serving_requests_total", **ended, version=v) for v in "12") == 60


@on_both
def test_unknown_methods_are_counted_and_their_names_are_not_labels(server):
    labels = {"model": "", "version": "", "method": "other", "status": "UNIMPLEMENTED"}
    counter = "serving_requests_total", frozenset(labels.items())
    before = scrape(server).get(counter, 0)
    with grpc.insecure_channel(server.address) as channel:
        for path in ("/digits.v1.DigitClassifier/Nope", "/nobody.knows/It", "/x/y"):
            future = channel.unary_unary(path).future(b"")
            assert future.code() is grpc.StatusCode.UNIMPLEMENTED
    assert scrape(server)[counter] == before + 3


def test_calls_in_flight_and_the_queue_are_shown():
    # The other transport reads no more calls while its own thread runs some.
    with paced_server("grpcio", queue_capacity=100) as server:
        server.tell("hold")
        with grpc.insecure_channel(server.address) as channel:
            call = channel.unary_unary(CLASSIFY)
            first = call.future(encode_request(image_with(1).tobytes()))
            wait_until(lambda: server.num_begun() == 1)
            rest = [call.future(encode_request(image_with(n).tobytes())) for n in range(4)]
            wait_until(lambda: of_digits(scrape(server), "serving_queue_rows") == 4)
            samples = scrape(server)
            assert of_digits(samples, "serving_queue_capacity_rows") == 100
            assert value(samples, "serving_calls_in_flight") == 5
            assert value(samples, "serving_ready") == 1
            server.tell("release")
            assert {future.code() for future in (first, *rest)} == {grpc.StatusCode.OK}
        assert value(scrape(server), "serving_calls_in_flight") == 0


def test_process_is_shown_by_the_usual_names(server):
    samples = scrape(server)
    pid = server.process.pid
    status = Path(f"/proc/{pid}/status").read_text()
    resident = int(status.partition("VmRSS:")[2].split()[0]) * 1024
    assert value(samples, "process_resident_memory_bytes") == pytest.approx(resident, rel=0.3)
    assert value(samples, "process_virtual_memory_bytes") > resident
    num_files = len(list(Path(f"/proc/{pid}/fd").iterdir()))
    assert value(samples, "process_open_fds") == pytest.approx(num_files, abs=5)
    assert value(samples, "process_max_fds") > num_files
    assert 0 < value(samples, "process_cpu_seconds_total") < 1000
    now_s = time.time()
    assert now_s - 1000 < value(samples, "process_start_time_seconds") < now_s


def test_model_is_told(server):
    facts = server.facts
    labels = {name: facts[name] for name in ("version", "device", "precision", "transport")}
    labels |= {"model": "digits", "role": "default"}
    assert value(scrape(server), "serving_model_info", **labels) == 1


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
