"""The next version of a model: its folder is written beside the others, hidden, and then renamed.

    lock ──▶ .staging/N/ written, synced ──▶ files beside the versions renamed ──▶ N renamed, synced

A reader sees all of a version or nothing of it, whenever the writer ends.
"""

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from serving.publishing.files import write_atomically

Files = Mapping[str, bytes]
"""Contents by file name."""
NO_FILES: Files = {}


def write_version(
    folder: Path, version_files: Callable[[str], Files], model_files: Files = NO_FILES
) -> Path:
    """Publish the next version of a model by renaming a hidden folder that is already complete.

    Everything is written and synced before the first rename, so neither a full disk nor a kill
    leaves a partial version visible; the next run removes the hidden folder of a killed one.

    Args:
        folder: the model's directory; created if missing.
        version_files: given the version's number ("1", "2", ...), the contents of its folder.
        model_files: the files beside the versions; one that already exists is kept.

    Returns:
        The new version's folder, numbered one above the highest there.

    Raises:
        OSError: something could not be written; nothing is published.
    """
    if not folder.is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        _sync(folder.parent)
    staging = folder / ".staging"
    with _lock(folder):
        shutil.rmtree(staging, ignore_errors=True)  # its owner was killed: the lock is ours
        version = str(1 + max(_versions(folder), default=0))
        try:
            _write(staging, model_files)
            _write(staging / version, version_files(version))
            for name in model_files:
                if not (folder / name).exists():
                    (staging / name).rename(folder / name)
            (staging / version).rename(folder / version)
            _sync(folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)
    return folder / version


def _versions(folder: Path) -> list[int]:
    return [int(path.name) for path in folder.iterdir() if path.name.isdecimal()]


@contextmanager
def _lock(folder: Path) -> Iterator[None]:
    """Wait for, then hold, the folder's lock; the kernel frees it when its holder dies."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _write(folder: Path, files: Files) -> None:
    """Create a folder with these files in it, and sync it to the disk."""
    folder.mkdir()
    for name, content in files.items():
        write_atomically(folder / name, content)
    _sync(folder)


def _sync(folder: Path) -> None:
    """Make the names in a folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
