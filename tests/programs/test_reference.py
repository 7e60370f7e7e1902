"""The reference is that of the programs: options in their groups and places, and docstrings."""

import re
import runpy
from pathlib import Path

from serving.cli import commands

DOCS = Path(__file__).parents[2] / "docs"


def test_reference_is_that_of_the_docstrings_and_options(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    written = runpy.run_path(str(DOCS / "reference.py"))["pages"]()
    for name, content in written.items():
        assert (DOCS / "reference" / name).read_text("utf-8") == content, "run `make reference`"


def test_each_option_has_an_anchor():
    page = (DOCS / "reference" / "commands.md").read_text("utf-8")
    (serve,) = [a for a in commands.parser({})._actions if a.dest == "command"]
    for action in dict(serve.choices or {})["serve"]._actions:
        if action.option_strings and action.help != "==SUPPRESS==" and action.dest != "help":
            assert page.count(f'<a id="serve-{action.option_strings[-1][2:]}"></a>') == 1
    anchors = re.findall(r'<a id="([^"]+)">', page)
    assert len(anchors) == len(set(anchors))
