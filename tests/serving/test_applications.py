"""Applications of other distributions: those of the page that explains how to write one."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from google.protobuf import wrappers_pb2
from grpc_health.v1 import health_pb2

from digit_classifier import PRETRAINED
from serving import Client
from serving.__main__ import main
from serving.errors import Unsupported
from tests.serving.http.peer import HttpPeer
from tests.support.servers import running_server

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "applications.md").read_text("utf-8")


@pytest.fixture
def shout(tmp_path, monkeypatch):
    """The page's distribution, on the path of programs that are started."""
    command, http, grpc = re.findall(r"(?s)```python\n(.*?)```", PAGE)
    (toml,) = re.findall(r"(?s)```toml\n(.*?)```", PAGE)
    (tmp_path / "shout" / "files").mkdir(parents=True)
    (tmp_path / "shout" / "command.py").write_text(command)
    (tmp_path / "shout" / "http.py").write_text(http)
    (tmp_path / "shout" / "grpc.py").write_text(grpc)
    info = tmp_path / "shout-1.dist-info"
    info.mkdir()
    text = re.sub(r'\[project\.entry-points\."(.*)"\]', r"[\1]", toml).replace('"', "")
    (info / "entry_points.txt").write_text(text)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: shout\nVersion: 1\n")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join((str(tmp_path), str(ROOT))))
    return tmp_path


def run(*words):
    command = [sys.executable, "-m", "serving", *words]
    return subprocess.run(command, capture_output=True, text=True, cwd=ROOT)


def test_command_of_another_distribution_runs_and_has_its_help(shout):
    assert run("shout", "hello").stdout == "HELLO\n"
    assert re.search(r"(?m)^ {4}shout +print a text in capitals$", run("--help").stdout)
    assert "digit-serving shout hello" in run("shout", "--help").stdout


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        ("import nothing_of_this_name", "shout.command, of digit_serving.commands, can't be used"),
        ("raise RuntimeError('a\\nb\\x1b[2J')", r"can't be used: RuntimeError: a b\x1b[2J"),
        ("if", "can't be used: SyntaxError: "),
        ("HELP = 'a command without a part'", "the command shout can't be used: AttributeError"),
    ],
)
def test_broken_application_is_one_line(module, reason, shout):
    (shout / "shout" / "command.py").write_text(module)
    result = run("shout", "hello")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert reason in result.stderr


def test_two_applications_of_one_name_are_one_line(shout):
    other = shout / "other-1.dist-info"
    other.mkdir()
    text = "[digit_serving.commands]\nshout = json\n"
    (other / "entry_points.txt").write_text(text)
    (other / "METADATA").write_text("Metadata-Version: 2.1\nName: other\nVersion: 1\n")
    result = run("--help")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "json" in result.stderr
    assert "shout.command" in result.stderr
    (other / "entry_points.txt").write_text(text.replace("shout", "serve"))
    result = run("--help")
    assert (result.returncode, result.stderr.count("\n")) == (2, 1)
    assert "the command serve can't be used" in result.stderr


def test_paths_of_another_distribution_answer_and_are_described(shout):
    with running_server(PRETRAINED, "--http-port", "0") as server:
        peer = HttpPeer(server.facts["http"])
        assert peer.post("/v1/shout", b"hello").json == {"text": "HELLO"}
        assert peer.post("/v1/shout", b"x" * 1001).status == 413
        paths = peer.get("/openapi.json").json["paths"]
        assert {"/v1/shout", "/v1/digits", "/v2/models/digits/infer"} <= {*paths}


@pytest.mark.parametrize("transport", ["h2", "grpcio"])
def test_grpc_service_of_another_distribution_answers_and_has_its_health(shout, transport):
    options = ("--transport", transport, "--reflection")
    with running_server(PRETRAINED, *options) as server, Client(server.address) as client:
        message = wrappers_pb2.StringValue(value="hello").SerializeToString()
        answer = client.call("/shout.v1.Shout/Shout", message)
        assert wrappers_pb2.StringValue.FromString(answer).value == "HELLO"
        asked = health_pb2.HealthCheckRequest(service="shout.v1.Shout").SerializeToString()
        assert client.call("/grpc.health.v1.Health/Check", asked) == b"\x08\x01"
        with pytest.raises(Unsupported):
            client.call("/shout.v1.Shout/Whisper", message)


def test_entry_point_whose_package_is_not_there_is_passed_over(shout):
    shutil.rmtree(shout / "shout")
    done = run("--help")
    assert (done.returncode, done.stderr) == (0, "")
    assert "shout" not in done.stdout
    with running_server(PRETRAINED, "--http-port", "0") as server:
        assert HttpPeer(server.facts["http"]).post("/v1/shout", b"hello").status == 404


def test_digit_is_classified_in_process(capsys):
    picture = str(ROOT / "docs" / "pictures" / "seven.png")
    assert main(["classify", picture, "--models", str(PRETRAINED), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["digit"] == 7
