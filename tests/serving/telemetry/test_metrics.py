"""The metrics of a server, as Prometheus reads them."""

import json
import shutil
import time
import urllib.request
from pathlib import Path

import grpc
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from digit_classifier import Classifier
from digit_classifier.wire import encode_request
from tests.support import published
from tests.support.fakes import image_with
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
