"""The models of any server: /v2/models, its requests as they are pasted, and the pages."""

import json
import os
import shlex
import shutil
import sys
from pathlib import Path

import pytest

from serving.oip.examples import Access, Example, request_body
from serving.tensors import Tensor, TensorSignature
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.support.servers import ended, running_server, serve_command, started

ROOT = Path(__file__).parents[3]
HOSTILE = "<img src=x onerror=alert(1)>\"'`$(touch x)`\\ {0}%s"
UNPRINTABLE = "a\u200b\x07\tb\n"
TOKEN = "token-0123456789abcdef"


def write_models(folder):
    """Models of all kinds of inputs, in files."""
    tokens = [value(name, "INT64", ["batch", "tokens"]) for name in ("ids", "mask")]
    score = [
        node("Mul", ["ids", "mask"], ["kept"]),
        node("Cast", ["kept"], ["numbers"], to=1),
        node("ReduceMean", ["numbers"], ["score"], axes=[1], keepdims=0),
    ]
    pixels = [value("pixels", "FP32", ["batch", 3, 224, 224])]
    classes = [
        node("GlobalAveragePool", ["pixels"], ["means"]),
        node("Flatten", ["means"], ["rows"]),
        node("Softmax", ["rows"], ["probabilities"]),
    ]
    graphs = {
        "iris": two_layers(),
        "sentiment": model(score, tokens, [value("score", "FP32", ["batch"])]),
        "flowers": model(classes, pixels, [value("probabilities", "FP32", ["batch", 3])]),
        "texts": model(
            [node("Identity", ["text"], ["same"])],
            [value("text", "BYTES", ["N"])], [value("same", "BYTES", ["N"])],
        ),
        "words": model(
            [node("Identity", ["text"], ["same"])],
            [value("text", "BYTES", [100])], [value("same", "BYTES", [100])],
        ),
        "alone": model(
            [node("ReduceSum", ["x"], ["sum"], keepdims=0)],
            [value("x", "FP64", ["rows", 2])], [value("sum", "FP64", [])],
        ),
        "large": model(
            [node("Identity", ["x"], ["y"])],
            [value("x", "UINT8", ["N", 600, 600])], [value("y", "UINT8", ["N", 600, 600])],
        ),
        "unprintable": model(
            [node("Relu", [UNPRINTABLE], ["y"])],
            [value(UNPRINTABLE, "FP32", ["N", 2])], [value("y", "FP32", ["N", 2])],
        ),
        "hostile": model(
            [node("Relu", [HOSTILE], ["</script><b>"])],
            [value(HOSTILE, "FP32", ["<b>axis", 2])],
            [value("</script><b>", "FP32", ["<b>axis", 2])],
        ),
    }  # fmt: skip
    return [save(graph, folder, f"{name}.onnx") for name, graph in graphs.items()]


NAMES = (
    "iris", "sentiment", "flowers", "texts", "words", "alone", "large", "unprintable", "hostile",
)  # fmt: skip


def command_of(folder, *options):
    (folder / "labels.txt").write_text("rose\ntulip\ndaisy\n")
    files = map(str, write_models(folder))
    labels = ["--input", "image", "--labels", str(folder / "labels.txt")]
    return serve_command(None, *files, "--http-port", "0", *labels, *options)


@pytest.fixture(scope="module")
def peer(tmp_path_factory):
    with started(command_of(tmp_path_factory.mktemp("models"))) as server:
        yield HttpPeer(server.facts["http"])


@pytest.fixture(scope="module")
def described(peer):
    return {each["name"]: each for each in peer.get("/v2/models").json["models"]}


def test_models_have_their_graphs_own_axes_and_say_why_they_are_batched(described):
    assert tuple(described) == NAMES
    sentiment, alone = described["sentiment"], described["alone"]
    assert [each["axes"] for each in sentiment["inputs"]] == [["batch", "tokens"]] * 2
    assert sentiment["batching"].startswith("batching on: row independence proved")
    assert alone["batching"].startswith("batching off: ")
    assert "ReduceSum" in alone["batching"]
    assert described["flowers"]["takes_pictures"]
    assert described["flowers"]["classes"] == ["rose", "tulip", "daisy"]
    assert {each["state"] for each in described.values()} == {"READY"}
    assert {*map(tuple, (each["roles"] for each in described.values()))} == {("default",)}


def test_request_for_an_input_of_any_size_is_short():
    vast = Tensor("text", "BYTES", (1 << 40,)), Tensor("x", "FP64", (1 << 40,))
    tensors = TensorSignature(vast, (), is_batchable=False)
    body, num_zeros = request_body(tensors, {})
    assert num_zeros == 12 << 40
    assert len(json.dumps(body)) < 300


@pytest.mark.skipif(shutil.which("curl") is None, reason="needs curl")
@pytest.mark.parametrize("name", NAMES)
def test_curl_line_is_answered(name, described, tmp_path):
    line = described[name]["requests"]["curl"].replace("curl ", "curl -sS --fail-with-body ", 1)
    result = ended(["bash", "-c", line], cwd=tmp_path)
    assert result.returncode == 0, result.stdout + result.stderr
    if name != "large":
        outputs = json.loads(result.stdout)["outputs"]
        assert [each["name"] for each in outputs] == [
            each["name"] for each in described[name]["outputs"]
        ]
    assert [path.name for path in tmp_path.iterdir()] == ["answer.bin"] * (name == "large")


@pytest.mark.parametrize("client", ["Python", "tritonclient"])
@pytest.mark.parametrize("name", NAMES)
def test_lines_of_python_are_answered(client, name, described, tmp_path):
    if client == "tritonclient":
        pytest.importorskip("tritonclient", reason="make test-interop has it")
    code = described[name]["requests"][client]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = ended([sys.executable, "-c", code], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip()


@pytest.mark.parametrize("name", NAMES)
def test_line_of_this_program_is_answered(name, described, tmp_path):
    words = shlex.split(described[name]["requests"]["digit-serving"])
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = ended([sys.executable, "-m", "serving", *words[1:]], cwd=tmp_path, env=environment)
    assert result.returncode == 0, result.stderr


def test_requests_carry_token_and_version(tmp_path):
    (tmp_path / "tokens").write_text(TOKEN)
    with started(command_of(tmp_path, "--token-file", str(tmp_path / "tokens"))) as server:
        peer = HttpPeer(server.facts["http"])
        assert peer.get("/v2/models").status == 401
        models = peer.get("/v2/models", authorization=f"Bearer {TOKEN}").json["models"]
        requests = models[0]["requests"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TOKEN": TOKEN}
        commands = {"curl": ["bash", "-c"], "Python": [sys.executable, "-c"]}
        for client, command in commands.items():
            result = ended([*command, requests[client]], env=environment, cwd=tmp_path)
            assert result.returncode == 0
            assert "y" in result.stdout, client
    x = (Tensor("x", "FP32", (-1, 2)),)
    tensors = TensorSignature(x, x, is_batchable=True)
    access = Access("host:1", "https://host:2", "ca.pem")
    lines = Example("m", "3", tensors, {}, access).lines()
    assert "/v2/models/m/versions/3/infer" in lines["curl"]
    assert "--version 3" in lines["digit-serving"]
    assert "version='3'" in lines["Python"]
    assert all("ca.pem" in each for each in lines.values())


def test_page_has_no_name_in_its_html(peer):
    page = peer.get("/")
    assert page.body == peer.get("/models").body
    assert b"default-src 'self'" in page.headers["content-security-policy"].encode()
    assert b"onerror" not in page.body


def test_docs_lead_to_the_models(peer):
    reply = peer.get("/docs")
    assert (reply.status, reply.headers["location"]) == (308, "/models")


def test_broken_model_and_versions_say_how_they_are(tmp_path):
    for version in ("1", "2"):
        (tmp_path / "iris" / version).mkdir(parents=True)
        save(two_layers(), tmp_path / "iris" / version)
    (tmp_path / "broken" / "1").mkdir(parents=True)
    (tmp_path / "broken" / "1" / "model.onnx").write_bytes(b"no model")
    canary = {"stable": "1", "canary": {"version": "2", "share": 0.05}}
    (tmp_path / "iris" / "labels.json").write_text(json.dumps(canary))
    with running_server(tmp_path, "--http-port", "0") as server:
        models = HttpPeer(server.facts["http"]).get("/v2/models").json["models"]
    known = {(each["name"], each["version"]): each for each in models}
    assert known["iris", "1"]["roles"] == ["default", "stable"]
    assert known["iris", "2"]["roles"] == ["canary", "0.05 of the calls"]
    assert known["iris", "2"]["requests"]["curl"].startswith("curl ")
    assert "/versions/2/infer" in known["iris", "2"]["requests"]["curl"]
    assert known["broken", ""]["state"] == "UNAVAILABLE"
    assert "not an ONNX file" in known["broken", ""]["reason"]
    assert "inputs" not in known["broken", ""]
