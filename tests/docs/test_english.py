"""Plain English: a few habits that readers stumbled over stay out of the pages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = [*(ROOT / "docs").rglob("*.md"), *ROOT.glob("*.md")]
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


def test_what_is_rare() -> None:
    texts = [prose(page) for page in PAGES]
    num_words = sum(len(text.split()) for text in texts)
    found = {p.name: len(_WHAT.findall(t)) for p, t in zip(PAGES, texts, strict=True)}
    found = {name: number for name, number in found.items() if number}
    assert sum(found.values()) <= num_words / 1000, found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_sentences_are_plain(page: Path) -> None:
    text = prose(page)
    assert not _BEGINNING.findall(text)
    assert not [word for word in PLAIN if re.search(rf"(?i)\b{word}\b", text)]
