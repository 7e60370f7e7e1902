"""MkDocs hooks: help texts, pages from outside `docs/`, and the colours of code.

Lines that say so become a program's help texts, or one of the repository's own pages, whose links
to `docs/` become links within it.
"""

import os
import re
import subprocess
import sys
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from pygments.formatters import HtmlFormatter

_PLACE = re.compile(r"(?m)^`make docs` shows the help of `python -m (\w+)` here\.$")
_FILE = re.compile(r"(?m)^`make docs` shows \[([\w/]+\.md)\]\(\.\./\1\) here\.$")
_COMMAND = re.compile(r"(?m)^ {4}([a-z]+)(?: {2,}|$)")
"""A command in the list that the program's own help shows."""


_COLOURS = {"light": "default", "dark": "github-dark"}
"""Pygments' style for each scheme of the theme."""


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add `highlight.css`, the colours of code for both schemes."""
    sheets = (
        HtmlFormatter(style=style).get_style_defs(f'[data-bs-theme="{scheme}"] .highlight')
        for scheme, style in _COLOURS.items()
    )
    files.append(File.generated(config, "highlight.css", content="\n".join(sheets)))
    return files


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page's Markdown with the help texts in it."""
    markdown = _FILE.sub(lambda place: _page(place[1]), markdown)
    return _PLACE.sub(lambda place: _sections(place[1]), markdown)


def _page(name: str) -> str:
    text = (Path(__file__).parents[1] / name).read_text("utf-8")
    return re.sub(r"\]\((\.\./)?docs/", "](", text)


def _sections(program: str) -> str:
    """Write a section for each of a program's commands."""
    commands = _COMMAND.findall(_help(program))
    return "\n\n".join(
        f"### {command}\n\n```text\n{_help(program, command)}```" for command in commands
    )


def _help(*words: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", *words, "--help"],
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "COLUMNS": "100"},
    ).stdout
