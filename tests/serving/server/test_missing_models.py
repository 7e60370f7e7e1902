"""A server that lacks a model that it was asked for: it ends, or says what is missing."""

import os
import shutil
import signal
import urllib.request

import pytest

from digit_classifier import PRETRAINED
from serving import Client
from tests.support.servers import children, ended, running_server, serve_command


@pytest.fixture
def root(tmp_path):
    """A good model, and one whose labels were cut short."""
    for name in ("good", "risk"):
        (tmp_path / name / "1").mkdir(parents=True)
        shutil.copy(PRETRAINED / "digits" / "1" / "model.onnx", tmp_path / name / "1")
    (tmp_path / "risk" / "labels.json").write_text('{"stable": ')
    return tmp_path


@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_ends_by_the_reason_of_a_named_model(root, workers):
    options = ["--model", "risk", "good", "--workers", workers]
    process = ended(serve_command(root, *options))
    assert process.returncode == 2
    line = process.stderr.splitlines()[-1]
    assert "can't be served, although named: risk (can't use labels.json: " in line
    assert "--allow-missing" in line
    assert "serving model=" not in process.stdout


@pytest.mark.parametrize("workers", ["1", "2"])
def test_server_that_may_lack_a_model_names_it(root, workers):
    options = ["--model", "risk", "good", "--workers", workers, "--allow-missing"]
    with running_server(root, *options) as server:
        assert server.facts["missing"] == "risk"
        assert server.facts["model"] == "good"
        with urllib.request.urlopen(f"http://{server.facts['metrics']}/readyz") as answer:
            first, second = answer.read().decode().splitlines()
            assert first == "SERVING"
            assert second.startswith("NOT_SERVING model risk: can't use labels.json: ")
        health = ended([*serve_command(None)[:3], "health", "--target", server.address])
        assert (health.returncode, health.stdout) == (0, f"{server.address}: SERVING\n")
        of_model = ended(
            [*serve_command(None)[:3], "health", "--target", server.address, "--model", "risk"]
        )
        assert of_model.returncode == 1
        assert "model risk: NOT_SERVING" in of_model.stderr
        with Client(server.address) as client:
            assert client.models() == ["good"]


def test_worker_that_starts_again_keeps_to_what_there_is(root):
    """A file that breaks later ends no server: the worker serves the rest, and says so."""
    (root / "risk" / "labels.json").unlink()
    with running_server(root, "--model", "risk", "good", "--workers", "2") as server:
        assert "missing" not in server.facts
        (root / "risk" / "labels.json").write_text('{"stable": ')
        os.kill(children(server.process.pid)[0], signal.SIGKILL)
        lines = iter(server.process.stderr.readline, "")
        assert any("worker restarted, 2 serving" in line for line in lines)
        with Client(server.address) as client:
            assert "good" in client.models()
