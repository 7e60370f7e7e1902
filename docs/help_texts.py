"""MkDocs hook: puts a program's help texts where a page has a line `{{ python -m PROGRAM }}`."""

import os
import re
import subprocess
import sys

_PLACE = re.compile(r"(?m)^\{\{ python -m (\w+) \}\}$")
_COMMAND = re.compile(r"(?m)^ {4}([a-z]+)(?: {2,}|$)")
"""A command in the list that the program's own help shows."""


def on_page_markdown(markdown: str, **_: object) -> str:
    """Return a page's Markdown with the help texts in it."""
    return _PLACE.sub(lambda place: _sections(place[1]), markdown)


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
