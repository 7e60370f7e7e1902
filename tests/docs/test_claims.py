"""Sentences that stand in several places are equal, and claims about the repository hold."""

import ast
import re
import threading
import tomllib
from functools import cache
from pathlib import Path

import numpy as np
import pytest

import serving
from serving.cli import commands
from serving.transports.peer import State

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
    (line,) = [line for line in text("docs/tour.md").splitlines() if "OPEN ──────────▶" in line]
    assert re.findall(r"[A-Z]+", line) == states


FIGURE = re.compile(r"\d k?/s\b|\d (?:k )?(?:calls|rows|images|parts)/s\b|\d µs|\d\.\d+ ×")
SOURCE = re.compile(
    r"measured|commits? \w|busy|idle|medians?|benchmarks/results|decisions/0|make bench|"
    r"\d{4}-\d\d-\d\d",
    re.IGNORECASE,
)
"""How a section says where its figures come from: a day, a commit, a command, a machine's state."""


def sections_with_figures():
    for path in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))):
        for section in re.split(r"(?m)^(?=#{1,3} )", path.read_text("utf-8")):
            if FIGURE.search(section):
                yield pytest.param(section, id=f"{path.name} {section.splitlines()[0]}")


@pytest.mark.parametrize("section", [*sections_with_figures()])
def test_figures_of_a_section_say_where_they_come_from(section):
    assert SOURCE.search(section), FIGURE.findall(section)


# Messages on the page about troubleshooting are those that the programs print


PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
OF_OTHERS = {
    "error: externally-managed-environment",
    "ensurepip is not available",
    "No module named venv",
    "requires a different Python: ... not in '>=3.11'",
    "make: *** No rule to make target ...",
    "3/manifest.json: No such file or directory",
    "... Trying to connect an http1.x server",
    "... Unwrap failed (TSI_DATA_CORRUPTED)",
    "connections to all backends failing; ... CERTIFICATE_VERIFY_FAILED ...",
    "errors resolving NAME:50051: ...",
    "sentiment: ...",
}
"""What pip, Python, make, the system, other clients and handlers print."""
_LEAST = 7
"""Letters that a text of a program must have besides its values, to be told from others."""


def quotes():
    """List the messages in the first column of each table, but names of metrics."""
    cells = re.findall(r"(?m)^\| (.*?) \|", PAGE)
    found = [quote for cell in cells for quote in re.findall(r"`([^`]+)`", cell)]
    return sorted({quote for quote in found if " " in quote} - OF_OTHERS)


@cache
def patterns():
    """List a pattern for each text of the programs and its beginnings; values match anything."""
    found = set()
    for folder in ("serving", "digit_classifier", "digit_scoring", "training"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(getattr(part, "value", "\0") if isinstance(part, ast.Constant)
                                   else "\0" for part in node.values)  # fmt: skip
                elif isinstance(node, ast.Constant) and isinstance(node.value, bytes):
                    text = node.value.decode("latin-1").strip()
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    text = re.sub(r"%[-+ 0#]*[\d.]*[a-z]", "\0", node.value)
                else:
                    continue
                ends = [match.start() for match in re.finditer(r"[:,;] | \(|$", text)]
                found.update(
                    text[:end] for end in ends if len(re.findall(r"\w", text[:end])) >= _LEAST
                )
    holes = [re.compile(re.escape(text).replace("\0", ".*")) for text in found if "\0" in text]
    return holes, found


def is_printed(quote):
    """Whether a text of a program makes this, as a whole or behind `NAME: ` or `version 3 `."""
    text = re.sub(r"^\.\.\. |[:,;]? ?\.\.\.$", "", quote)
    tails = [text, *(text[match.end() :] for match in re.finditer(r": |version \d ", text))]
    holes, plain = patterns()
    return any(tail in plain or any(hole.fullmatch(tail) for hole in holes) for tail in tails)


@pytest.mark.parametrize("quote", quotes())
def test_message_on_the_page_is_printed(quote):
    assert is_printed(quote)


def test_message_that_nobody_prints_is_seen():
    assert len(quotes()) > 40
    assert not is_printed("the server has left the building")


def test_nearest_tests_of_each_package_are_there():
    """The tour's table has a row for each package of the server, and names tests and targets."""
    table = text("docs/tour.md").split("## After a change")[1].split("\n\n")[2]
    rows = [line.strip("|").split("|") for line in table.splitlines()[2:]]
    code = {each for row in rows for each in re.findall(r"`([^`]+)`", row[0])}
    tests = {each for row in rows for part in row[1:] for each in re.findall(r"`([^`]+)`", part)}
    for command in tests:
        if command.startswith("make "):
            assert f"\n{command.split()[1]}:" in text("Makefile"), command
            continue
        for path in command.split():
            assert (ROOT / path).exists(), command
    assert all((ROOT / each).exists() for each in code)
    packages = {f"serving/{each.parent.name}" for each in (ROOT / "serving").glob("*/__init__.py")}
    assert packages - {each for each in code if not each.endswith(".py")} == set()
