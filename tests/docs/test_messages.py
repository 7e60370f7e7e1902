"""Messages on the page about troubleshooting are those that the programs print."""

import ast
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "troubleshooting.md").read_text("utf-8")
OF_OTHERS = {
    "error: externally-managed-environment",
    "ensurepip is not available",
    "No module named venv",
    "requires a different Python: ... not in '>=3.11'",
    "make: *** No rule to make target ...",
    "3/manifest.json: No such file or directory",
}
"""What pip, Python, make and the system print."""
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
    for folder in ("serving", "training", "reader/digit_reader"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text("utf-8"))):
                if isinstance(node, ast.JoinedStr):
                    text = "".join(getattr(part, "value", "\0") if isinstance(part, ast.Constant)
                                   else "\0" for part in node.values)  # fmt: skip
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
    text = re.sub(r"[:,;]? ?\.\.\.$", "", quote)
    tails = [text, *(text[match.end() :] for match in re.finditer(r": |version \d ", text))]
    holes, plain = patterns()
    return any(tail in plain or any(hole.fullmatch(tail) for hole in holes) for tail in tails)


@pytest.mark.parametrize("quote", quotes())
def test_message_on_the_page_is_printed(quote):
    assert is_printed(quote)


def test_message_that_nobody_prints_is_seen():
    assert len(quotes()) > 40
    assert not is_printed("the server has left the building")
