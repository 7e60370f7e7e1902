"""What is read: a data set in pieces, always the same ones, and a reader of its format."""

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

BATCH_ROWS = 4_096
"""The most rows that are read at once."""
BATCH_BYTES = 32 << 20
"""Rows are read by fewer at once if they take more than this."""
ROWS_PER_FILE = 262_144
"""Rows of a piece, and so of an output file: a second's work of one core, 200 MB of pixels."""
PICTURES_PER_FILE = 4_096
"""The same of pictures, which take a thousand times as long."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a data set that is scored as a whole; it becomes one file."""

    number: int
    """Its place in the data set, from 0."""
    identity: str
    """A digest of which rows of which files it is, with their sizes and times."""
    path: str
    """The file that it is from."""
    start: int
    stop: int
    """Its range in that file: of rows, or of row groups."""
    num_rows: int
    names: tuple[str, ...] = ()
    """Of pictures: their paths in the folder."""


class Rows(NamedTuple):
    """Some rows of a data set as they were read."""

    batch: Any
    """A `pyarrow.RecordBatch`."""
    errors: dict[int, str] = {}  # noqa: RUF012
    """Row number to why it could not be read, of those rows whose image is null."""


class Reader(Protocol):
    """Reads the pieces of one data set; can be pickled."""

    @property
    def schema(self) -> Any:
        """The `pyarrow.Schema` of the rows."""

    @property
    def image_column(self) -> str:
        """The column with the images."""

    @property
    def format(self) -> "Format":
        """How its columns are written again."""

    def read(self, piece: Piece) -> Iterator[Rows]:
        """Read a piece's rows in order, a bounded number at once.

        Raises:
            ConfigurationError: a file can't be read, or differs from what it was.
        """


@dataclass(frozen=True, slots=True)
class Format:
    """How a data set's columns are written in the output."""

    compression: dict[str, str] = field(default_factory=dict)
    """Path of a column in the Parquet schema to its compression; none for others."""
    dictionaries: tuple[str, ...] = ()
    """Paths of the columns whose values are written once and numbered."""
    are_images_kept: bool = True
    """Whether the image column can be written at all: pictures of a folder stay there."""


class Dataset(NamedTuple):
    """An input: its pieces, and what reads them."""

    reader: Reader
    pieces: Sequence[Piece]

    @property
    def num_rows(self) -> int:
        """Rows of all pieces."""
        return sum(piece.num_rows for piece in self.pieces)

    @property
    def identity(self) -> str:
        """A digest of all pieces: it changes with any file's name, size or time."""
        return digest(*(piece.identity for piece in self.pieces))


def digest(*parts: object) -> str:
    """Return a digest of some values, in hexadecimal."""
    return hashlib.sha256("\0".join(map(str, parts)).encode("utf-8", "surrogateescape")).hexdigest()


def file_identity(name: str, info: Any) -> str:
    """Return a digest of a file's name, size and time of change, from its `FileInfo`."""
    return digest(name, info.size, info.mtime_ns)


def ranges(num_rows: int, step: int) -> Iterator[tuple[int, int]]:
    """Cut a number of rows into ranges of at most `step`."""
    for start in range(0, num_rows, step):
        yield start, min(start + step, num_rows)
