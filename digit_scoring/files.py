"""Files on any file system of pyarrow's: errors in one line, names of whole files only."""

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
from pyarrow import fs

from serving.errors import ConfigurationError
from serving.model.remote import without_credentials

UNFINISHED = "_unfinished-"
"""Begins the name of a file until it is whole."""


def open_place(text: str) -> tuple[Any, str]:
    """Return the `pyarrow.fs.FileSystem` and the path in it of a local path or a URI.

    Raises:
        ConfigurationError: pyarrow knows no such file system, or can't open it.
    """
    if "://" not in text:
        return fs.LocalFileSystem(), os.path.abspath(text)
    shown = without_credentials(text)
    with one_line(shown, hidden=text):
        filesystem, path = fs.FileSystem.from_uri(text)
    return filesystem, path.rstrip("/")


@contextmanager
def one_line(subject: str, hidden: str = "\0") -> Iterator[None]:
    """Turn errors of files, pyarrow and the libraries below it into one line about a subject.

    Args:
        subject: of the line.
        hidden: text that the line must not have; the subject takes its place.

    Raises:
        ConfigurationError: instead of those.
    """
    try:
        yield
    except (pa.ArrowException, OSError, EOFError, ValueError, ImportError) as err:
        raise ConfigurationError(f"{subject}: {reason(err).replace(hidden, subject)}") from err


def reason(err: Exception) -> str:
    """Return the first line of another library's error."""
    text = getattr(err, "strerror", None) or str(err) or type(err).__name__
    return "".join(c if c.isprintable() else " " for c in text.partition("\n")[0])[:300]


@contextmanager
def writing(filesystem: Any, path: str) -> Iterator[Any]:
    """Open a file that gets its name once the block ends without an exception."""
    folder, _, name = path.rpartition("/")
    unfinished = f"{folder}/{UNFINISHED}{name}"
    try:
        with filesystem.open_output_stream(unfinished) as stream:
            yield stream
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(unfinished, "rb") as file:  # a name must not outlive a crash without content
                os.fsync(file.fileno())
        filesystem.move(unfinished, path)
    except BaseException:
        # An object store completes the upload of a stream that is closed by an exception.
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(unfinished)
        raise
