"""NVIDIA's client and load generator for the inference protocol, unchanged, against our server.

tritonclient wants an older protobuf than TensorFlow's newest takes, so it has a venv of its own;
which proves us on the protobuf 6 line too.
"""

import re

import pytest

import serving
from tests.interop.venv import Venv
from tests.serving.handlers.conftest import named
from tests.serving.handlers.test_served import picture_of
from tests.serving.http.peer import HttpPeer
from tests.serving.http.test_models_page import command_of
from tests.serving.model.graphs import save, two_layers
from tests.support.servers import running_server, started

pytestmark = pytest.mark.timeout(300)

PACKAGES = (
    "tritonclient[grpc,http]==2.73.0",
    "perf-analyzer==2.60.0",
    "grpcio>=1.81.1",
    "grpcio-health-checking==1.81.1",
    "protobuf>=6.33.5,<7",
    "numpy>=2.0",
    "onnxruntime>=1.20",
)


@pytest.fixture(scope="session")
def venv(tmp_path_factory):
    return Venv(tmp_path_factory.mktemp("interop") / "venv", *PACKAGES)


def test_tritonclient_works_unchanged(venv, server, samples):
    venv.run("python", "-m", "tests.interop.triton_calls", server.address, samples)


def test_tritonclient_works_unchanged_over_http(venv, models, samples):
    with running_server(models, "--http-port", "0") as server:
        address = server.facts["http"].removeprefix("http://")
        venv.run("python", "-m", "tests.interop.triton_http_calls", address, samples)


def test_tritonclient_calls_handlers(venv, tmp_path):
    (tmp_path / "red.png").write_bytes(picture_of((255, 0, 0)))
    handlers = named(model="Around", behaviours="Behaviours", facts="Facts", sizes="Sizes")
    with serving.Server(save(two_layers(), tmp_path), handler=handlers) as server:
        addresses = server.address, server.http_address
        venv.run(
            "python",
            "-m",
            "tests.interop.triton_handler_calls",
            *addresses,
            str(tmp_path / "red.png"),
        )


@pytest.mark.parametrize("transport", ["h2", "grpcio"])
def test_tritonclient_takes_answers_in_parts(venv, tmp_path, transport):
    handler = named(story="Story")
    with serving.Server(save(two_layers(), tmp_path), handler=handler, transport=transport) as told:
        venv.run("python", "-m", "tests.interop.triton_parts_calls", told.address)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_server_and_tritonclient_share_a_process(venv, models, samples, first):
    venv.run("python", "-m", "tests.interop.shared_process", models, samples, first)


@pytest.mark.parametrize("options", [(), ("-b", "128"), ("--streaming", "--async")])
def test_perf_analyzer_runs_to_its_end(venv, server, options):
    run_perf_analyzer(venv, "grpc", server.address, *options)


@pytest.mark.parametrize("options", [(), ("-b", "128"), ("--async",)])
def test_perf_analyzer_runs_to_its_end_over_http(venv, models, options):
    with running_server(models, "--http-port", "0") as server:
        address = server.facts["http"].removeprefix("http://")
        run_perf_analyzer(venv, "http", address, *options)


def run_perf_analyzer(venv, protocol, address, *options):
    levels = ("--concurrency-range", "1:4:3", "--measurement-interval", "500")
    unstable = ("--stability-percentage", "999")  # a busy machine is no failure of ours
    report = venv.run("perf_analyzer", "-i", protocol, "-u", address, "-m", "digits",
                      *levels, *unstable, *options)  # fmt: skip
    rates = re.findall(r"^Concurrency: (\d), throughput: ([\d.]+) infer/sec", report, re.MULTILINE)
    assert [concurrency for concurrency, _ in rates] == ["1", "4"]
    assert all(float(rate) > 0 for _, rate in rates)
    assert "compute infer" in report  # the server's own breakdown, from ModelStatistics


def test_lines_of_the_models_page_work_as_pasted(venv, tmp_path):
    with started(command_of(tmp_path)) as server:
        models = HttpPeer(server.facts["http"]).get("/v2/models").json["models"]
        for model in models:
            assert "array(" in venv.run("python", "-c", model["requests"]["tritonclient"])
