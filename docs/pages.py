"""MkDocs hook: pages of the repository from outside `docs/`.

In a clone, pages link to the files themselves, such as `../SECURITY.md`. On the site such a file is
the page in `docs/` whose one line names it, and links to the file become links to that page.
"""

import posixpath
import re
from functools import cache
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).parents[1]
_SHOWN = re.compile(r"(?m)^`make docs` shows \[([\w/]+\.md)\]\(\.\./\1\) here\.$")
_LINK = re.compile(r"(?<=\]\()([\w./-]+)(?=[)#])")
"""The path of a relative link."""


def on_page_markdown(markdown: str, *, page: Any, **_: object) -> str:
    """Return a page's Markdown as the site has it."""
    shown = _SHOWN.search(markdown)
    if shown is None:
        return _on_site(markdown, f"docs/{page.file.src_uri}", page.file.src_uri)
    return _on_site((_ROOT / shown[1]).read_text("utf-8"), shown[1], page.file.src_uri)


def _on_site(markdown: str, source: str, page: str) -> str:
    """Point the links of a file to pages of the site.

    Args:
        markdown: the file's text.
        source: its path in the repository.
        page: the page's path on the site.
    """

    def link(found: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(posixpath.dirname(source), found[1]))
        place = _pages().get(target, target.removeprefix("docs/"))
        is_moved = target in _pages() or not source.startswith("docs/")
        return posixpath.relpath(place, posixpath.dirname(page) or ".") if is_moved else found[1]

    return _LINK.sub(link, markdown)


@cache
def _pages() -> dict[str, str]:
    """Return the page of each file from outside `docs/`."""
    found = {path: _SHOWN.search(path.read_text("utf-8")) for path in (_ROOT / "docs").glob("*.md")}
    return {shown[1]: path.name for path, shown in found.items() if shown}
