"""The state of a version's files, by which a look knows whether they are others now."""

from collections.abc import Iterable
from pathlib import Path

from serving.model.loaded import LoadedModel
from serving.model.repository import CLASSIFIER
from serving.model.settings import SETTINGS

Fingerprint = frozenset[tuple[str, int, int, int]]
"""Names of files, with inode, size and time of each."""


def fingerprint(path: Path, version: str) -> Fingerprint:
    """Return names, sizes and times of a version's files, which differ once one changes."""
    try:
        files = [path] if path.is_file() else list((path / version).iterdir())
        folder = path.parent if path.is_file() else path
        stems = ("", f"{path.stem}.") if path.is_file() else ("",)
        beside = (folder / f"{stem}{each}" for each in (CLASSIFIER, SETTINGS) for stem in stems)
        files += [file for file in beside if file.exists()]
    except OSError:
        return frozenset()
    return states(files)


def states(files: Iterable[Path]) -> Fingerprint:
    """Return names, inodes, sizes and times of files; nothing if one can't be looked at."""
    try:
        found = [(file.name, file.stat()) for file in files]
    except OSError:
        return frozenset()
    return frozenset((name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found)


def imported_states(model: LoadedModel | None) -> Fingerprint:
    """Return the states of the files that a version's handler imports from its folder."""
    files = () if model is None else model.files
    return states(files) if files else frozenset()
