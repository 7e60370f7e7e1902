"""Keeps copies of the pictures that `classify` was not sure of, to be labelled and trained on."""

import errno
import hashlib
import os
import tempfile
from collections.abc import Sequence
from itertools import count
from pathlib import Path

from serving.errors import ConfigurationError

UNSURE = "unsure"
"""The folder for pictures that wait for a label, with a folder for each guess."""


class Collection:
    """Copies pictures into DIR/unsure/GUESS, each content once.

    `python -m training label DIR` moves them on into DIR/0 to DIR/9, which `train --extra` reads.
    """

    def __init__(self, folder: Path) -> None:
        """Make the folder.

        Raises:
            ConfigurationError: it can't be made or read.
        """
        self.folder = folder
        self.num_kept = 0
        """How many pictures were copied."""
        try:
            (folder / UNSURE).mkdir(parents=True, exist_ok=True)
            files = (path for path in sorted(folder.rglob("*")) if path.is_file())
            self._digests = {_digest(path.read_bytes()) for path in files}
        except OSError as err:
            raise _failed(folder, err) from err

    def add(self, picture: Path, guess: int) -> None:
        """Copy a picture, unless its content is in the folder already, labelled or not.

        Args:
            picture: its file, whose name the copy has; a number is added where another file of that
                name is there already.
            guess: the digit that was answered.

        Raises:
            ConfigurationError: it can't be read again, or the copy can't be written.
        """
        try:
            content = picture.read_bytes()
            if _digest(content) in self._digests:
                return
            _write_new(self.folder / UNSURE / str(guess), picture.name, content)
        except OSError as err:
            raise _failed(self.folder, err) from err
        self._digests.add(_digest(content))
        self.num_kept += 1


def open_collection(
    folder: Path | None, pictures: Sequence[str], reject_below: float
) -> Collection | None:
    """Open the collection that the command line names; None if it names none.

    Raises:
        ConfigurationError: it can't be made, or there is nothing that it could keep.
    """
    if folder is None:
        return None
    if not reject_below:
        raise ConfigurationError(
            "--collect needs --reject-below, which selects the pictures to copy"
        )
    if "-" in pictures:
        raise ConfigurationError("--collect copies files; it can't copy stdin")
    return Collection(folder)


def _write_new(folder: Path, name: str, content: bytes) -> None:
    """Write a file whole or not at all, and never over another one."""
    folder.mkdir(exist_ok=True)
    if folder.is_symlink() or folder.parent.is_symlink():  # to where nothing is to be written
        raise NotADirectoryError(errno.ENOTDIR, "a link")
    descriptor, partial = tempfile.mkstemp(dir=folder, prefix=".")
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        os.chmod(partial, 0o644)  # mkstemp's 0600 would lock out the person who labels it
        for number in count(1):
            stem, suffix = os.path.splitext(name)
            target = folder / (name if number == 1 else f"{stem}-{number}{suffix}")
            try:
                os.link(partial, target)  # unlike a rename, it fails where there is a file
                return
            except FileExistsError:
                continue
    finally:
        os.unlink(partial)


def _digest(content: bytes) -> bytes:
    return hashlib.sha256(content).digest()


def _failed(folder: Path, err: OSError) -> ConfigurationError:
    reason = os.strerror(err.errno or errno.EIO)
    return ConfigurationError(f"can't keep pictures in {folder}: {reason}")
