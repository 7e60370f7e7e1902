import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving import Client
from serving.__main__ import main
from serving.images import Images
from serving.metrics import Histogram
from serving.rpc.wire import encode_request
from tests.servers import RunningServer, running_server

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def scrape(server: RunningServer) -> Samples:
    """Every sample by its name and labels, as Prometheus would read it."""
    with urllib.request.urlopen(f"http://{server.facts['metrics']}/metrics", timeout=10) as page:
        text = page.read().decode()
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def value(samples: Samples, sample: str, **labels: str) -> float:
    return samples[sample, frozenset(labels.items())]


@pytest.fixture
def fresh(models: Path, transport: str) -> Iterator[RunningServer]:
    """A server that has counted nothing yet."""
    with running_server(models, "--transport", transport, "--self-test-interval", "0") as server:
        yield server


def test_requests_and_images_are_counted(fresh: RunningServer, images: Images) -> None:
    with Client(fresh.address) as client, grpc.insecure_channel(fresh.address) as channel:
        for _ in range(5):
            client.classify(images[:1])
        client.classify(images[:200])
        call: Any = channel.unary_unary(CLASSIFY)
        future = call.future(encode_request(b"bad"))
        assert future.code() is grpc.StatusCode.INVALID_ARGUMENT
    samples = scrape(fresh)
    assert value(samples, "digits_requests_total", method="Classify", status="OK") == 6
    refused = {"method": "Classify", "status": "INVALID_ARGUMENT"}
    assert value(samples, "digits_requests_total", **refused) == 1
    assert value(samples, "digits_requests_total", method="GetModel", status="OK") == 1
    assert value(samples, "digits_images_total") == 205
    assert value(samples, "digits_queue_images") == 0


def test_histograms_add_up(fresh: RunningServer, images: Images) -> None:
    with Client(fresh.address) as client:
        for _ in range(20):
            client.classify(images[:1])
        client.classify(images[:200])
    samples = scrape(fresh)
    assert value(samples, "digits_batch_images_sum") == 220
    assert value(samples, "digits_batch_images_bucket", le="1") == 20
    num_runs = value(samples, "digits_batch_images_bucket", le="+Inf")
    assert num_runs in (21, 22)  # one runner takes the 200, two share them
    for name in ("queue", "request"):
        assert value(samples, f"digits_{name}_seconds_count") == 21
    assert value(samples, "digits_run_seconds_count") == num_runs
    assert 0 < value(samples, "digits_request_seconds_sum") < 10


def test_model_is_told(fresh: RunningServer) -> None:
    facts = fresh.facts
    labels = {name: facts[name] for name in ("version", "device", "precision", "transport")}
    assert value(scrape(fresh), "digits_model_info", name="digits", **labels) == 1


def test_metrics_can_be_off(models: Path) -> None:
    with running_server(models, "--metrics-port", "off") as server:
        assert server.facts["metrics"] == "off"


def test_taken_metrics_port_is_one_clear_line(
    server: RunningServer, models: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    port = server.facts["metrics"].rpartition(":")[2]
    options = ["--models", str(models), "--port", "0", "--metrics-port", port]
    assert main(["serve", "--device", "cpu", *options]) == 2
    assert capsys.readouterr().err == (
        f"digits-serve: can't listen on 127.0.0.1:{port} for metrics: is the port taken?\n"
    )


def test_histogram_counts_a_value_on_a_bound_below_it() -> None:
    histogram = Histogram((1, 10))
    for number in (0.5, 1, 2, 10, 11):
        histogram.add(number)
    histogram.add(1, times=2)
    assert histogram.cumulative() == [("1", 4), ("10", 6), ("+Inf", 7)]
    assert histogram.sum == 26.5
