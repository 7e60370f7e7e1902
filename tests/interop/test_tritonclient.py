"""NVIDIA's client and load generator for the inference protocol, unchanged, against our server.

tritonclient wants an older protobuf than TensorFlow's newest takes, so it has a venv of its own;
which proves us on the protobuf 6 line too.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from serving import Classifier
from serving.images import Images
from tests.support.servers import RunningServer, running_server

pytestmark = [pytest.mark.interop, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]
PACKAGES = (
    "tritonclient[grpc,http]==2.73.0",
    "perf-analyzer==2.60.0",
    "grpcio>=1.81.1",
    "grpcio-health-checking==1.81.1",
    "protobuf>=6.33.5,<7",
    "numpy>=2.0",
    "onnxruntime>=1.20",
)


class Venv:
    """An environment that has tritonclient, perf_analyzer and what our server needs."""

    def __init__(self, folder: Path) -> None:
        self._bin = folder / "bin"

    def run(self, program: str, *arguments: str | Path) -> str:
        """Run one of its programs from the repository; return what it printed."""
        result = subprocess.run(
            [self._bin / program, *arguments],
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        assert result.returncode == 0, result.stdout
        return result.stdout


@pytest.fixture(scope="session")
def venv(tmp_path_factory: pytest.TempPathFactory) -> Venv:
    folder = tmp_path_factory.mktemp("interop") / "venv"
    subprocess.run([sys.executable, "-m", "venv", folder], check=True)
    pip = (folder / "bin" / "pip", "--disable-pip-version-check", "install", "-q")
    result = subprocess.run([*pip, *PACKAGES], capture_output=True, text=True)
    if result.returncode:
        if "CI" in os.environ:
            pytest.fail(result.stderr)
        pytest.skip("tritonclient can't be installed here")
    return Venv(folder)


@pytest.fixture(scope="session")
def samples(
    tmp_path_factory: pytest.TempPathFactory, classifier: Classifier, images: Images
) -> Path:
    """Images and what is expected for them, as a file for the other environment."""
    path = tmp_path_factory.mktemp("samples") / "samples.npz"
    probabilities = classifier.classify(images).probabilities
    np.savez(path, images=images, probabilities=probabilities)
    return path


def test_tritonclient_works_unchanged(venv: Venv, server: RunningServer, samples: Path) -> None:
    venv.run("python", "-m", "tests.interop.triton_calls", server.address, samples)


def test_tritonclient_works_unchanged_over_http(venv: Venv, models: Path, samples: Path) -> None:
    with running_server(models, "--http-port", "0") as server:
        address = server.facts["http"].removeprefix("http://")
        venv.run("python", "-m", "tests.interop.triton_http_calls", address, samples)


@pytest.mark.parametrize("first", ["ours", "theirs"])
def test_server_and_tritonclient_share_a_process(
    venv: Venv, models: Path, samples: Path, first: str
) -> None:
    venv.run("python", "-m", "tests.interop.shared_process", models, samples, first)


@pytest.mark.parametrize("options", [(), ("-b", "128"), ("--streaming", "--async")])
def test_perf_analyzer_runs_to_its_end(
    venv: Venv, server: RunningServer, options: tuple[str, ...]
) -> None:
    levels = ("--concurrency-range", "1:4:3", "--measurement-interval", "500")
    unstable = ("--stability-percentage", "999")  # a busy machine is no failure of ours
    report = venv.run("perf_analyzer", "-i", "grpc", "-u", server.address, "-m", "digits",
                      *levels, *unstable, *options)  # fmt: skip
    rates = re.findall(r"^Concurrency: (\d), throughput: ([\d.]+) infer/sec", report, re.MULTILINE)
    assert [concurrency for concurrency, _ in rates] == ["1", "4"]
    assert all(float(rate) > 0 for _, rate in rates)
    assert "compute infer" in report  # the server's own breakdown, from ModelStatistics
