"""The page "From an ONNX file to production": its commands, run in their order."""

import os
import re
import shlex
import subprocess
import sys
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from tests.serving.model.graphs import model, node, save, value
from tests.support.servers import started

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "production.md").read_text("utf-8")
_BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n\n)?"
    r"(?:```python\n(?P<python>.*?)```|(?P<shell>(?:^ {4}[^\n]*\n)+))",
    re.DOTALL | re.MULTILINE,
)
_USUAL = {"127.0.0.1:50051": "address", "127.0.0.1:8080": "http", "127.0.0.1:9090": "metrics"}


def iris(folder):
    """Write what the page's export writes: a label, and probabilities by the classes' names."""
    outputs = [value("output_label", "INT64", ["N"]), value("output_probability", "FP32", ["N", 3])]
    nodes = [
        node("MatMul", ["X", "weights"], ["scores"]),
        node("Softmax", ["scores"], ["output_probability"], axis=1),
        node("ArgMax", ["scores"], ["output_label"], axis=1, keepdims=0),
    ]
    weights = np.array([[1, 0, 0], [1, 0, 0], [0, 0, 1], [0, 0, 1]], np.float32)
    graph = model(nodes, [value("X", "FP32", ["N", 4])], outputs, {"weights": weights})
    return save(graph, folder, "iris.onnx")


class Reader:
    """Does what the page says: a server runs until the page has its reader stop it."""

    def __init__(self, folder):
        self.folder, self.stack, self.places = folder, ExitStack(), {}
        self.environment = {
            **os.environ, "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        }  # fmt: skip

    def moved(self, text):
        """Put the server's own addresses for the usual ones."""
        for usual, place in self.places.items():
            text = text.replace(usual, place)
        return text

    def read(self, prose):
        """Do what stands between two commands."""
        if "(Ctrl-C)" in prose:
            self.stack.close()
            self.places = {}

    def serve(self, line):
        assert not self.places, f"the ports are taken by the server before: {line}"
        ports = [f"--{name}port=0" for name in ("", "http-", "metrics-")]
        command = [sys.executable, "-m", "serving", *shlex.split(line)[1:], *ports]
        server = self.stack.enter_context(started(command, cwd=self.folder, env=self.environment))
        self.places = {usual: server.facts[fact].rpartition("/")[2]
                       for usual, fact in _USUAL.items()}  # fmt: skip

    def run(self, *command):
        result = subprocess.run(
            command, cwd=self.folder, env=self.environment, capture_output=True, text=True,
            timeout=60,
        )  # fmt: skip
        assert result.returncode == 0, (command[-1], result.stdout, result.stderr)
        return result.stdout


def test_commands_of_the_page_run_in_their_order(tmp_path):
    reader, outputs, end = Reader(tmp_path), [], 0
    iris(tmp_path)
    with reader.stack:
        for block in _BLOCK.finditer(PAGE):
            reader.read(PAGE[end : block.start()])
            end = block.end()
            mark = block["mark"] or ""
            module = mark.removeprefix("run with: ") if mark.startswith("run with") else None
            if mark.startswith("not run: ") or (module and find_spec(module) is None):
                continue
            if block["python"]:
                outputs.append(reader.run(sys.executable, "-c", reader.moved(block["python"])))
                continue
            for line in re.sub(r"(?m)^ {4}", "", block["shell"]).replace("\\\n", "").splitlines():
                if line.startswith("digit-serving serve "):
                    reader.serve(line)
                else:
                    outputs.append(reader.run("bash", "-o", "pipefail", "-c", reader.moved(line)))
    text = "\n".join(outputs)
    assert "output_label" in text
    assert "[0]" in text
    assert '"version": "2"' in text
    assert len(outputs) >= 15


def test_page_has_a_mark_for_all_that_is_not_run():
    marks = [block["mark"] for block in _BLOCK.finditer(PAGE) if block["mark"]]
    assert all(mark.startswith(("not run: ", "run with: ")) for mark in marks)
    assert len(marks) == PAGE.count("<!--")


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_page_is_among_the_first_rows_of_the_table(page):
    first = re.search(r"(?m)^\|---\|---\|\n(.*\n.*)$", (ROOT / page).read_text("utf-8"))
    assert first is not None
    assert "production.md" in first[1]
