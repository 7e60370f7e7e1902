"""Sentences that stand in several places are equal, and claims about the repository hold."""

import re
import runpy
import threading
import tomllib
from pathlib import Path

import numpy as np

import serving
from serving.cli import commands
from serving.transports.connections import State

ROOT = Path(__file__).parents[2]


def text(name):
    return (ROOT / name).read_text("utf-8")


def test_the_project_is_described_by_one_sentence():
    _, sentence, *_ = [line for line in text("README.md").splitlines() if line]
    assert sentence.endswith(".")
    assert tomllib.loads(text("pyproject.toml"))["project"]["description"] == sentence
    assert f"\nsite_description: {sentence}\n" in text("mkdocs.yml")
    assert f'image.description="{sentence}"' in text("Containerfile")
    assert sentence in text("docs/index.md").splitlines()
    assert sentence in (serving.__doc__ or "").splitlines()
    assert " ".join(commands.parser({}).format_help().split()).count(sentence) == 1


def test_readme_fits_on_three_screens():
    assert len(text("README.md").splitlines()) <= 100


def test_actions_of_the_workflows_are_pinned_by_commit():
    uses = [
        line.split("uses:")[1].strip()
        for path in (ROOT / ".github" / "workflows").glob("*.yml")
        for line in path.read_text().splitlines()
        if "uses:" in line
    ]
    assert len(uses) > 8
    pinned = re.compile(r"[\w./-]+@[0-9a-f]{40}  # v[\d.]+")
    assert not [use for use in uses if not pinned.fullmatch(use)]


def test_batcher_of_the_tour_batches_while_busy():
    names = {}
    (block,) = re.findall(r"(?s)```python\n(.*?)```", text("docs/tour.md"))
    exec(block, names)
    sizes, begun, go_on = [], threading.Event(), threading.Event()

    def run(rows):
        sizes.append(len(rows))
        begun.set()
        assert go_on.wait(10)
        return rows + 1

    batcher = names["Batcher"](run)
    first = batcher.submit(np.zeros(1))
    assert begun.wait(10)
    others = [batcher.submit(np.full(2, number)) for number in range(3)]
    go_on.set()
    assert [first.result(10).tolist(), *(other.result(10).tolist() for other in others)] == [
        [1], [1, 1], [2, 2], [3, 3]
    ]  # fmt: skip
    assert sizes == [1, 6]
    assert len(block.splitlines()) <= 30


def test_drawn_states_of_a_connection_are_those_of_the_code():
    states = sorted((n for n in vars(State) if n.isupper()), key=vars(State).get)
    (line,) = [line for line in text("docs/tour.md").splitlines() if "OPEN ──" in line]
    assert re.findall(r"[A-Z]+", line) == states


def test_reference_is_that_of_the_docstrings_and_options(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    written = runpy.run_path(str(ROOT / "docs" / "reference.py"))["pages"]()
    for name, content in written.items():
        assert text(f"docs/reference/{name}") == content, "run `make reference`"


def test_each_option_has_an_anchor():
    page = text("docs/reference/commands.md")
    (serve,) = [a for a in commands.parser({})._actions if a.dest == "command"]
    for action in dict(serve.choices or {})["serve"]._actions:
        if action.option_strings and action.help != "==SUPPRESS==" and action.dest != "help":
            assert page.count(f'<a id="serve-{action.option_strings[-1][2:]}"></a>') == 1
    anchors = re.findall(r'<a id="([^"]+)">', page)
    assert len(anchors) == len(set(anchors))
