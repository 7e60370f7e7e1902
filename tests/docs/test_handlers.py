"""The page "Python around a model": its handlers are served as it says, and called."""

import asyncio
import json
import re
import shlex
import socketserver
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import serving
from digit_classifier import PRETRAINED
from tests.docs.test_snippets import blocks, run
from tests.serving.handlers.test_served import picture_of
from tests.serving.http.peer import HttpPeer
from tests.serving.model.graphs import node, rows_model, save
from tests.support.pictures import encoded
from tests.support.pictures.drawing import row
from tests.support.servers import running_server, started

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "handlers.md").read_text("utf-8")
WORDS = {"good": 0, "bad": 1, "film": 2}


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The files of the page, a model for its words, and one for colours."""
    folder = tmp_path_factory.mktemp("page")
    for code in blocks("docs/handlers.md"):
        if name := re.match(r"# (\w+\.py)\n", code):
            (folder / name[1]).write_text(code)
    (folder / "words.json").write_text(json.dumps(WORDS))
    weights = np.array([[5], [-5], [0]], np.float32)
    words = rows_model(
        node("MatMul", ["x", "w"], ["logits"]), num_columns=3, constants={"w": weights}
    )
    words.graph.output[0].name = "logits"
    save(words, folder)
    (folder / "joblib.py").write_text(
        "class Model:\n    def predict(self, x):\n        return ['iris'] * len(x)\n\n"
        "def load(path):\n    return Model()\n"
    )
    return folder


def serve(folder, pattern):
    """Start the server of a command on the page."""
    (words,) = re.findall(rf"(?m)^ {{4}}digit-serving (serve {pattern})$", PAGE)
    ports = [f"--{name}port=0" for name in ("", "http-", "metrics-")]
    return started([sys.executable, "-m", "serving", *shlex.split(words), *ports], cwd=folder)


def test_files_have_twenty_lines_of_code_at_most(folder):
    for file in folder.glob("*.py"):
        code = file.read_text().replace('"""', "#")
        lines = [line for line in code.splitlines() if line and not line.strip().startswith("#")]
        assert len(lines) <= (30 if file.name == "number.py" else 20), file


def test_text_is_served_as_the_page_says(folder, capsys):
    with serve(folder, r"model\.onnx --handler sentiment\.py") as server:
        (code,) = (each for each in blocks("docs/handlers.md") if "client.infer" in each)
        run(code.replace('"127.0.0.1:50051"', repr(server.address)), {})
        assert capsys.readouterr().out.splitlines()[-1] == "['good']"
        answer = HttpPeer(server.facts["http"]).post(
            "/v2/models/model/infer", b"a bad film", content_type="text/plain"
        )
        assert answer.json["outputs"][0]["data"] == ["bad"]


def test_cascade_is_served_as_the_page_says(folder):
    with (
        serve(folder, r"model\.onnx --handler model=.*") as server,
        serving.Client(server.address) as client,
    ):
        text = ["a good film. good words. a bad end", "bad"]
        assert client.infer("film", {"about": text})["label"].tolist() == ["good", "bad"]


def test_any_python_is_served_as_the_page_says(folder):
    with serve(folder, r"--handler iris\.py") as server, serving.Client(server.address) as client:
        assert client.infer("iris", np.ones((2, 4)))["species"].tolist() == ["iris"] * 2


def test_answers_in_parts_are_served_as_the_page_says(folder, capsys, monkeypatch):
    codes = [each for each in blocks("docs/handlers.md") if ".stream(" in each]
    with serve(folder, r"--handler story\.py") as server:
        run(codes[0].replace('"127.0.0.1:50051"', repr(server.address)), {})
        assert capsys.readouterr().out.split() == ["once", "upon", "a", "time"]
    monkeypatch.syspath_prepend(str(folder))
    run(codes[1], {})


def test_many_calls_at_a_time_are_served_as_the_page_says(folder):
    class Store(socketserver.StreamRequestHandler):
        def handle(self):
            self.wfile.write(b"customer " + self.rfile.readline())

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 128

    file, pattern = folder / "customer.py", r"--handler customer\.py --handler-processes 1"
    with Server(("127.0.0.1", 0), Store) as store:
        threading.Thread(target=store.serve_forever).start()
        port = store.server_address[1]
        file.write_text(file.read_text().replace(", 7000)", f", {port})"))
        with serve(folder, pattern) as server:
            found = asyncio.run(names_of(server.address))
        store.shutdown()
    assert found == [[f"customer {each}", "customer a"] for each in range(50)]


async def names_of(address):
    """Ask for the names of many customers at once."""
    async with serving.AsyncClient(address) as client:
        calls = [client.infer("customer", {"key": [f"{each}", "a"]}) for each in range(50)]
        return [found["name"].tolist() for found in await asyncio.gather(*calls)]


def test_other_models_are_asked_at_once_as_the_page_says(folder):
    with serving.Model.load(folder / "model.onnx", handler=folder / "sentiment.py") as model:
        films = serving.Model.load(handler=folder / "films.py", models={"model": model})
        assert films.infer(["a good film", "bad"])["label"].tolist() == ["good", "bad"]


def test_number_in_a_picture_is_read(folder, mnist_sample):
    images, labels = mnist_sample.test_images, mnist_sample.test_labels
    rng, command = np.random.default_rng(2), f"number={folder / 'number.py'}"
    options = ("--handler", command, "--http-port", "0")
    with running_server(PRETRAINED, *options) as server:
        peer, num_right = HttpPeer(server.facts["http"]), 0
        for _ in range(20):
            at = rng.choice(len(images), rng.integers(2, 7))
            ink = np.pad(row([images[each].reshape(28, 28) for each in at], gap=2), 8)
            picture = Image.fromarray(255 - ink).resize(
                (4 * ink.shape[1], 4 * ink.shape[0]), Image.Resampling.BICUBIC
            )
            reply = peer.post("/v2/models/number/infer", encoded(picture), content_type="image/png")
            text = "".join(str(labels[each]) for each in at)
            num_right += reply.status == 200 and reply.json["outputs"][0]["data"] == [text]
        blank = peer.post(
            "/v2/models/number/infer",
            encoded(Image.new("L", (200, 90), 255)),
            content_type="image/png",
        )
    assert num_right >= 17  # 97 % of 300
    assert blank.json["outputs"][0]["data"] == [""]


def test_picture_goes_through_its_handler(folder):
    handler = str(folder / "mean_colour.py")
    with serving.Model.load(folder / "model.onnx", handler=handler) as model:
        found = model.infer([picture_of((255, 0, 51))])["logits"]
    np.testing.assert_allclose(found, [[5.0]])


def test_test_of_the_page_passes(folder, monkeypatch):
    (code,) = (each for each in blocks("docs/handlers.md") if "from sentiment import" in each)
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(str(folder))
    run(code, {})


def test_handler_of_a_path_is_called_in_process_as_the_page_says(monkeypatch):
    (code,) = (each for each in blocks("docs/handlers.md") if "DigitPictures" in each)
    monkeypatch.chdir(ROOT)
    run(code, {})
