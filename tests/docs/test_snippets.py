"""Python and commands on the pages: run as they stand, and their options exist."""

import ast
import asyncio
import doctest
import inspect
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import numpy as np
import pytest

import benchmarks.cli
import serving.cli.commands
import training.cli
from serving.cli.doors import DOORS, open_door
from tests.serving.client.test_event_loops import uvicorn_of
from tests.serving.http.peer import HttpPeer
from tests.support.servers import started

ROOT = Path(__file__).parents[2]
JSON = {"content-type": "application/json"}


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
    for page in (
        "README.md",
        "docs/clients.md",
        "docs/embedding.md",
        "docs/classifiers.md",
        "docs/other-clients.md",
    )
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


def test_app_of_the_page_on_embedding_answers():
    (code,) = [each for each in blocks("docs/embedding.md") if "FastAPI" in each]
    names = {}
    exec(code, names)  # as it stands; fastapi finds the types of its arguments by these names
    with uvicorn_of(names["app"], "asyncio") as address:
        peer = HttpPeer(address)
        right = peer.post("/digits", json.dumps([[0] * 784] * 3).encode(), **JSON)
        wrong = peer.post("/digits", json.dumps([[0] * 3]).encode(), **JSON)
    assert len(set(right.json["digits"])) == 1
    assert len(right.json["digits"]) == 3
    assert wrong.status == 422
    assert wrong.json["detail"].startswith("expected images UINT8 [N, 784], got")


@pytest.fixture(scope="module")
def shapes(tmp_path_factory):
    """The tutorial up to its export."""
    folder = tmp_path_factory.mktemp("shapes")
    (folder / "shapes.py").write_text(blocks("docs/tutorial.md")[0])
    page = (ROOT / "docs" / "tutorial.md").read_text("utf-8")
    (export,) = re.findall(r"(?m)^ {4}digit-serving (export .*)$", page)
    (info,) = re.findall(r"(?m)^ {4}digit-serving (info .*)$", page)
    commands = (
        ["shapes.py"],
        ["-m", "serving", *shlex.split(export)],
        ["-m", "serving", *shlex.split(info)],
    )
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


# Commands on the pages: their options and targets exist


PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
PARSERS: dict[str, Callable[[], object]] = {
    "digit-serving": serving.cli.commands.parser,
    "python -m training": training.cli.parser,
    "python -m benchmarks": benchmarks.cli.parser,
}
_START = r"(?:\w+=\S+ )*(?:\.venv/bin/)?(digit-serving|python -m [\w.]+) "
_COMMANDS = (re.compile(rf"(?m)^ {{4}}{_START}(.*)$"), re.compile(rf"`{_START}([^`]*)`"))
"""In a block, and in a span of code, which may go on in the next line."""
_TARGET = re.compile(r"(?m)(?:^ {4}|`)make ((?:[a-z-]+ ?)+)")


def command_lines():
    found = []
    for page in PAGES:
        text = page.read_text("utf-8").replace("\\\n", " ")
        for pattern in _COMMANDS:
            for program, arguments in pattern.findall(text):
                if program in PARSERS:
                    found.append((program, " ".join(arguments.split())))
    return sorted(set(found))


@pytest.mark.parametrize(("program", "arguments"), command_lines())
def test_command_on_a_page_is_one_that_the_program_takes(program, arguments):
    command = re.split(r"\s+#|\s[<>|]\s", arguments)[0].replace(
        "checkout:../old", f"checkout:{ROOT}"
    )
    words = shlex.split(command)
    if len(words) > 1:  # a command's name alone is not a whole command
        program, words = behind_the_door(program, words)
        PARSERS[program]().parse_args(words)  # type: ignore[attr-defined]  # else exits


def behind_the_door(program, words):
    """The program that reads the words of a command, and those that it gets."""
    if program != "digit-serving" or words[0] not in DOORS:
        return program, words
    found = []

    def main(words, program):
        found.append(words)
        return 0

    door = DOORS[words[0]]
    with patch("serving.cli.doors.import_module", lambda name: SimpleNamespace(main=main)):
        open_door(words[0], words[1:])
    return f"python -m {door.module.partition('.')[0]}", found[0]


@pytest.mark.parametrize("way", [1, 2])
def test_commands_of_the_makefile_are_ones_that_the_programs_take(way):
    text = (ROOT / "Makefile").read_text().replace("\\\n", " ").replace("e $(RECIPE)", "e seed")
    text = text.replace("--peer $(PEERS)", "--peer triton=oip://127.0.0.1:8001")
    text = re.sub(r'"\$\(EXTRA\)"', "own", text.replace("$(filter cpu,$(DEVICE))", "$(CPU)"))
    text = re.sub(r"\$\(if \$\(\w+\),([^,()]*),?([^()]*)\)", rf"\{way}", text)
    found = re.findall(r"\$\(RUN\) -m (training|serving|benchmarks) (.*)", text)
    assert len(found) > 8
    for program, arguments in found:
        name = "digit-serving" if program == "serving" else f"python -m {program}"
        PARSERS[name]().parse_args(arguments.split())  # type: ignore[attr-defined]


def test_commands_are_found():
    assert len(command_lines()) > 20


def test_session_of_the_readme_has_the_answers_that_it_shows(server, monkeypatch):
    monkeypatch.chdir(ROOT)
    (session,) = re.findall(r"(?s)```pycon\n(.*?)```", (ROOT / "README.md").read_text("utf-8"))
    session = session.replace("127.0.0.1:50051", server.address)
    test = doctest.DocTestParser().get_doctest(session, {}, "README", "README.md", 0)
    assert len(test.examples) > 4
    assert doctest.DocTestRunner().run(test).failed == 0


def test_handler_of_the_readme_is_the_example_and_answers_as_shown():
    text, folder = (ROOT / "README.md").read_text("utf-8"), ROOT / "docs/examples/sentiment"
    (shown,) = [each for each in blocks("README.md") if "serving.Handler" in each]
    assert (folder / "sentiment.py").read_text("utf-8").endswith(shown)
    (answer,) = re.findall(r"(?s)```json\n(.*?)\n```", text)
    (command, body) = re.search(r"&& digit-serving (serve .*)\n.*-d '(.*)'", text).groups()
    ports = [f"--{name}port=0" for name in ("", "http-", "metrics-")]
    words = [sys.executable, "-m", "serving", *shlex.split(command), *ports]
    with started(words, cwd=folder, env={**os.environ, "PYTHONPATH": str(ROOT)}) as server:
        path = "/v1/models/sentiment:predict"
        found = HttpPeer(server.facts["http"]).post(path, body.encode()).json["predictions"]
    expected = json.loads(answer)["predictions"]
    assert [each["label"] for each in found] == [each["label"] for each in expected]
    scores = [each["score"] for each in expected]
    assert [each["score"] for each in found] == pytest.approx(scores, abs=1e-6)


def test_readme_begins_with_the_demo_and_the_tests():
    top, _, _ = (ROOT / "README.md").read_text("utf-8").partition("\n## ")
    assert re.findall(r"(?m)^ {4}(make \w+) +# \d+ minutes: ", top) == ["make demo", "make test"]
    assert " GB" in top


def test_targets_on_a_page_are_those_of_the_makefile():
    targets = set(re.findall(r"(?m)^([a-z-]+):.*##", (ROOT / "Makefile").read_text()))
    named = {
        target
        for page in PAGES
        for targets in _TARGET.findall(page.read_text("utf-8"))
        for target in targets.split()
    }
    assert len(named) > 10
    assert named <= targets
