"""Plain English: a few habits that readers stumbled over stay out of the pages."""

import ast
import re
import tokenize
from collections.abc import Callable
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
CODE = [
    path
    for folder in ("serving", "training", "benchmarks", "deploy", "tests")
    for path in (ROOT / folder).rglob("*.py")
]
PLAIN = {
    "anew": "again", "house": "project", "rightly": "correctly", "so that nothing": "nothing",
    "all the same": "still", "whoever": "anyone who", "whatever": "any", "nobody else's": "its own",
    "tour de force": "", "by itself alone": "alone",
}  # fmt: skip
"""House words, and the plain ones."""
_CODE = re.compile(r"(?s)```.*?```|`[^`]*`|(?m:^ {4}.*$)|<!--.*?-->|\]\([^)]*\)")
_WHAT = re.compile(r"(?i)\bwhat\b")
_BEGINNING = re.compile(r"(?m)(?:^|[.!?:] |\| )(?:What|Whatever|Whoever)\b(?![^.|\n]*\?)")


def prose(page: Path) -> str:
    """The page without code and addresses."""
    return _CODE.sub(" ", page.read_text("utf-8"))


def remarks(module: Path) -> str:
    """The docstrings and comments of a module."""
    nodes = ast.walk(ast.parse(module.read_bytes()))
    strings = [
        node.value.value
        for node in nodes
        if isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    ]
    with module.open("rb") as file:
        tokens = tokenize.tokenize(file.readline)
        comments = [token.string for token in tokens if token.type == tokenize.COMMENT]
    return _CODE.sub(" ", "\n".join(strings + comments))


@pytest.mark.parametrize(
    ("files", "text_of"), [(PAGES, prose), (CODE, remarks)], ids=["pages", "code"]
)
def test_what_is_rare(files: list[Path], text_of: Callable[[Path], str]) -> None:
    texts = {file: text_of(file) for file in files}
    found = {str(file): len(_WHAT.findall(text)) for file, text in texts.items()}
    found = {name: number for name, number in found.items() if number}
    assert sum(found.values()) <= sum(len(text.split()) for text in texts.values()) / 1000, found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_plain(page: Path) -> None:
    text = prose(page)
    assert not _BEGINNING.findall(text)
    assert not [word for word in PLAIN if re.search(rf"(?i)\b{word}\b", text)]
