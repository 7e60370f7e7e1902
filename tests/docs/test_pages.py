"""The files that the pages name exist."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [
    *(ROOT / "docs").rglob("*.md"),
    *(ROOT / name for name in ("README.md", "SECURITY.md", "reader/README.md")),
]
MADE = {"benchmarks/results/local/", "benchmarks/results/local/SUITE.json"}
"""The files that a command makes."""
_FOLDERS = "benchmarks|deploy|docs|protos|reader|requirements|serving|tests|training"
_NAMED = re.compile(rf"[`(]((?:{_FOLDERS})/[\w./-]*\w/?)[`)]")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_files_that_a_page_names_exist(page):
    named = set(_NAMED.findall(page.read_text("utf-8"))) - MADE
    assert not [name for name in named if not (ROOT / name).exists()]


def test_files_that_are_gone_are_seen():
    assert _NAMED.findall("see `serving/rpc/` and (training/none.md)") == [
        "serving/rpc/",
        "training/none.md",
    ]


def test_index_lists_every_decision():
    folder = ROOT / "docs" / "decisions"
    rows = re.findall(r"\((\d{4}-[\w-]+\.md)\) \| (.*?) \|", (folder / "index.md").read_text())
    titles = [(path.name, path.read_text("utf-8").splitlines()[0].partition(". ")[2])
              for path in sorted(folder.glob("0*.md"))]  # fmt: skip
    assert rows == titles


def test_names_that_a_decision_gives_are_in_its_code():
    missing = []
    for page in (ROOT / "docs" / "decisions").glob("0*.md"):
        for path, names in re.findall(r"`([\w./]+\.py)` \((`[^)]*`)\)", page.read_text("utf-8")):
            code = (ROOT / path).read_text("utf-8")
            missing += [
                f"{page.name}: {path}: {name}"
                for name in re.findall(r"`(?:\w+\.)?(\w+)`", names)
                if name not in code
            ]
    assert not missing


def test_names_in_the_glossary_are_in_its_code():
    page = (ROOT / "docs" / "glossary.md").read_text("utf-8")
    found = re.findall(r"`([\w.]+)` in `([\w./]+\.py)`", page)
    assert len(found) > 8
    names = [(path, name) for names, path in found for name in names.split(".")]
    assert not [pair for pair in names if pair[1] not in (ROOT / pair[0]).read_text("utf-8")]
