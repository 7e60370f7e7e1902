"""Python and commands on the pages, run as they stand but for addresses."""

import ast
import asyncio
import inspect
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tests.support.servers import started

ROOT = Path(__file__).parents[2]


def blocks(page):
    return re.findall(r"(?s)```python\n(.*?)```", (ROOT / page).read_text("utf-8"))


def run(code, names):
    """Run a block, whose `await` may be outside of functions."""
    compiled = compile(code, "snippet", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(compiled, names)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    return names


CLIENTS = [
    (page, number)
    for page in ("README.md", "docs/clients.md", "reader/README.md")
    for number in range(len(blocks(page)))
]


@pytest.mark.parametrize(("page", "number"), CLIENTS)
def test_python_of_a_page_runs(page, number, server, models, tmp_path, monkeypatch):
    code = blocks(page)[number]
    if "tritonclient" in code:
        pytest.importorskip("tritonclient", reason="make test-interop has it")
    if "model.onnx" in code or "models/letters" in code:
        pytest.skip("needs a model of the reader's own; the tutorial's takes its place")
    code = re.sub(r'"digits.example.org:50051", token=token, tls_ca="ca.pem"', "address", code)
    code = code.replace('"127.0.0.1:50051"', "address")
    (tmp_path / "models").symlink_to(models)
    (tmp_path / "docs").symlink_to(ROOT / "docs")
    for name in ("form", "seven"):
        (tmp_path / f"{name}.png").symlink_to(ROOT / "docs" / "pictures" / f"{name}.png")
    monkeypatch.chdir(tmp_path)
    run(code, {"images": np.zeros((2, 784), np.uint8), "address": server.address})


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The tutorial up to its export."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "shapes.py").write_text(blocks("docs/tutorial.md")[0])
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    (export,) = re.findall(r"(?m)^ {4}python (-m training export .*)$", page)
    (info,) = re.findall(r"(?m)^ {4}digit-serving (info .*)$", page)
    commands = (["shapes.py"], shlex.split(export), ["-m", "serving", *shlex.split(info)])
    for words in commands:
        result = subprocess.run(
            [sys.executable, *words], cwd=folder, capture_output=True, text=True,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )  # fmt: skip
        assert result.returncode == 0, result.stderr[-2000:]
    assert "circle, square, triangle" in result.stdout
    return folder


@pytest.fixture
def tutorial(shapes, monkeypatch):
    """The server that the tutorial starts, on free ports."""
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    (serve,) = re.findall(r"(?m)^ {4}digit-serving (serve --models .*)$", page)
    ports = [f"--{name}port=0" for name in ("", "http-", "metrics-")]
    monkeypatch.chdir(shapes)
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    with started([sys.executable, "-m", "serving", *shlex.split(serve), *ports]) as server:
        yield server


@pytest.mark.slow
def test_tutorial_serves_the_readers_model(tutorial, capsys):
    code = blocks("docs/tutorial.md")[1]
    run(code.replace('"127.0.0.1:50051"', "address"), {"address": tutorial.address})
    assert capsys.readouterr().out.splitlines() == re.findall(r"print\(.*\)  # (.*)", code)
