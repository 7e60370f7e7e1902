"""Entry points of the installed distributions, from the files that pip writes.

`importlib.metadata` and its imports (email, zipfile, csv) take 11 ms and 1.8 MB, a twentieth of a
server's start. It is asked only where distributions are not in folders, or are found by others.
"""

import os
import re
import sys
from collections.abc import Iterator
from functools import reduce
from importlib import import_module
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any, NamedTuple

_FOLDERS = ".dist-info", ".egg-info"
"""Folders of a distribution's metadata, behind its name and version."""
_FILE = "entry_points.txt"


class EntryPoint(NamedTuple):
    """A name for an object of a module."""

    name: str
    value: str
    """The module, and behind a colon its attribute, if it is not the module itself."""

    @property
    def module(self) -> str:
        """The name of the module."""
        return self.value.partition(":")[0].strip()

    def load(self) -> Any:
        """Import the module, and return the object; errors of the import are not caught."""
        attributes = filter(None, self.value.partition(":")[2].strip().split("."))
        return reduce(getattr, attributes, import_module(self.module))


def find(group: str) -> list[EntryPoint]:
    """List a group's entry points, by name."""
    if _has_other_places():
        from importlib import metadata

        found = [(each.name, each.value) for each in metadata.entry_points(group=group)]
    else:
        found = [pair for text in _texts() for pair in _pairs(text, group)]
    points = (EntryPoint(name, value.partition("[")[0].strip()) for name, value in found)
    return sorted(points, key=lambda point: point.name)


def _has_other_places() -> bool:
    """Return whether distributions may be elsewhere than in folders, such as in zip files."""
    finders = (each for each in sys.meta_path if each is not PathFinder)
    return any(hasattr(each, "find_distributions") for each in finders) or any(
        os.path.isfile(path) for path in sys.path
    )


def _texts() -> Iterator[str]:
    """Yield the file of each distribution that has one; the first of a name on the path counts."""
    seen = set()
    for path in sys.path:
        try:
            folders = sorted(os.listdir(path or "."))
        except OSError:  # not there, or not readable
            continue
        for folder in folders:
            stem, suffix = os.path.splitext(folder)
            name = re.sub(r"[-_.]+", "-", stem.partition("-")[0]).lower()
            if suffix not in _FOLDERS or name in seen:
                continue
            seen.add(name)
            try:
                yield Path(path, folder, _FILE).read_text("utf-8")
            except (FileNotFoundError, NotADirectoryError):
                continue


def _pairs(text: str, group: str) -> Iterator[tuple[str, str]]:
    """Yield the names and values below a group's title."""
    title = ""
    for line in map(str.strip, text.splitlines()):
        if line.startswith("[") and line.endswith("]"):
            title = line[1:-1]
        elif title == group and "=" in line and not line.startswith("#"):
            name, _, value = line.partition("=")
            yield name.strip(), value.strip()
