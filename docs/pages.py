"""MkDocs hook: pages of the repository from outside `docs/`.

A line that names one becomes its text, whose links to `docs/` become links within it.
"""

import re
from pathlib import Path

_FILE = re.compile(r"(?m)^`make docs` shows \[([\w/]+\.md)\]\(\.\./\1\) here\.$")


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page's Markdown with that text in it."""
    return _FILE.sub(lambda place: _page(place[1]), markdown)


def _page(name: str) -> str:
    text = (Path(__file__).parents[1] / name).read_text("utf-8")
    return re.sub(r"\]\((\.\./)?docs/", "](", text)
