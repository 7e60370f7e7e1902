"""A data set: its columns, and the pieces that it is cut into."""

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from serving.errors import ConfigurationError

BATCH_ROWS = 4_096
"""The most rows that are read at once."""
ROWS_PER_FILE = 262_144
"""Rows of a piece, and so of an output file: a second's work of one core, 200 MB of pixels."""

Rows = tuple[Any, dict[int, str]]
"""A `pyarrow.RecordBatch`, and by row number why an image could not be read, which is null."""


class Piece(NamedTuple):
    """A part of a data set that is scored as a whole; it becomes one file. Can be pickled."""

    number: int
    identity: str
    """A digest of which rows of which files it is, with their sizes and times."""
    path: str
    """The file or folder, for errors."""
    num_rows: int
    read: Callable[[], Iterator[Rows]]
    """Reads it in order, a bounded number of rows at once."""


class Dataset(NamedTuple):
    """A data set."""

    schema: Any
    """The `pyarrow.Schema` of its rows."""
    image_column: str
    pieces: Sequence[Piece]
    compression: Mapping[str, str] = {}
    """Path of a column in the Parquet schema to its compression in the output."""
    are_images_kept: bool = True
    """Whether the image column can be written: pictures of a folder stay there."""


def digest(*parts: object) -> str:
    """Return a digest of some values, in hexadecimal."""
    return hashlib.sha256("\0".join(map(str, parts)).encode()).hexdigest()


def choose(path: str, columns: Mapping[str, str], able: Sequence[str], column: str | None) -> str:
    """Choose the column of images: the named one, `image`, `images`, or the only possible one."""
    usual = ([name for name in able if name == each] for each in ("image", "images"))
    named = [name for name in able if name == column]
    chosen = named if column else next(filter(None, usual), able)
    if len(chosen) == 1:
        return chosen[0]
    problem = ("several columns" if chosen else "no column") + (f" {column!r}" if column else "")
    found = ", ".join(f"{name} ({kind})" for name, kind in columns.items())
    raise ConfigurationError(
        f"{path} has {problem} of images (bytes, or lists of whole numbers from 0 to 255); "
        f"name one with --column: {found}"
    )
