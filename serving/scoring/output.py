"""The output: one Parquet file a piece, whole or not there, and what made them.

    OUT/_manifest.json           the model and the input that the files are of
    OUT/part-000042-<digest>.parquet
    OUT/_summary.json            rows and errors, once all files are there

Readers of Parquet folders, such as pyarrow, Spark and DuckDB's globs, take the files without an
underscore: a file that is being written has one until it is renamed.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from serving.errors import ConfigurationError
from serving.scoring.dataset import Piece
from serving.scoring.location import Location, one_line

MANIFEST = "_manifest.json"
SUMMARY = "_summary.json"
_PREFIX = "part-"
_UNFINISHED = "_part-"


class Scored(NamedTuple):
    """A piece whose file is there."""

    num_rows: int
    num_errors: int
    """Rows without an answer."""


@dataclass(frozen=True, slots=True)
class Output:
    """A folder of results; can be pickled."""

    folder: Location
    error_column: str
    """The column that says why a row has no answer."""

    def name(self, piece: Piece) -> str:
        """Return the name of a piece's file."""
        return f"{_PREFIX}{piece.number:06}-{piece.identity[:12]}.parquet"

    def scored(self, piece: Piece) -> Scored | None:
        """Return what a finished piece's footer says; None if the piece is not finished."""
        file = self.folder / self.name(piece)
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            return None
        column = footer.schema.names.index(self.error_column)
        groups = (footer.row_group(number) for number in range(footer.num_row_groups))
        num_fine = sum(group.column(column).statistics.null_count for group in groups)
        return Scored(footer.num_rows, footer.num_rows - num_fine)

    @contextmanager
    def writing(self, piece: Piece) -> Iterator[Any]:
        """Open the file of a piece: it gets its name once the block ends without an exception.

        Two that write the same piece write the same content, so it does not matter who is last.
        """
        name = f"{_UNFINISHED}{piece.number:06}-{uuid.uuid4().hex}"
        with self._whole(name, self.name(piece)) as stream:
            yield stream

    def write_document(self, name: str, document: object) -> None:
        """Write one of the JSON files, whole."""
        with self._whole(f"_{uuid.uuid4().hex}", name) as stream:
            stream.write(json.dumps(document, indent=2).encode() + b"\n")

    def document(self, name: str) -> Any:
        """Read one of the JSON files; None if it is not there.

        Raises:
            ConfigurationError: it is not one of ours.
        """
        file = self.folder / name
        try:
            with file.filesystem.open_input_file(file.path) as stream:
                return json.loads(stream.read())
        except FileNotFoundError:
            return None
        except ValueError as err:
            raise ConfigurationError(f"{file} is not JSON") from err

    def remove_unfinished(self) -> None:
        """Remove files that an interrupted run left behind."""
        folder = self.folder
        from pyarrow import fs

        for info in folder.filesystem.get_file_info(fs.FileSelector(folder.path)):
            if info.base_name.startswith(_UNFINISHED):
                folder.filesystem.delete_file(info.path)

    @contextmanager
    def _whole(self, partial_name: str, name: str) -> Iterator[Any]:
        partial, final = self.folder / partial_name, self.folder / name
        filesystem = self.folder.filesystem
        try:
            with filesystem.open_output_stream(partial.path) as stream:
                yield stream
            if self.folder.is_local:
                _sync(partial.path)
            filesystem.move(partial.path, final.path)
        except BaseException:
            # An object store completes the upload of a stream that is closed by an exception.
            with suppress(OSError, pa.ArrowException):
                filesystem.delete_file(partial.path)
            raise


def prepare(output: Output, manifest: dict[str, Any], *, is_resumed: bool) -> None:
    """Make the folder ready: a new one, or one that holds results of the same run.

    Args:
        output: the folder.
        manifest: what makes the results; equal to that of the run that is resumed.
        is_resumed: whether results may be there.

    Raises:
        ConfigurationError: there are results and they are not to be resumed, or they are of
            something else, or the folder can't be written.
    """
    folder = output.folder
    with one_line(folder.path):
        folder.filesystem.create_dir(folder.path, recursive=True)
        found = output.document(MANIFEST)
        if found is None:
            if folder.files(recursive=False):
                raise ConfigurationError(f"{folder} is not empty, and holds no results to resume")
            output.write_document(MANIFEST, manifest)
            return
        if not is_resumed:
            raise ConfigurationError(
                f"{folder} holds results already: --resume goes on, or name another folder"
            )
        for subject, value in manifest.items():
            if found.get(subject) != value:
                raise ConfigurationError(
                    f"{folder} holds results of another {subject} ({_short(found.get(subject))}), "
                    f"not of this one ({_short(value)}): name another folder"
                )
        output.remove_unfinished()


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {str(each)[:24]}" for name, each in value.items())
    return str(value)[:120]


def _sync(path: str) -> None:
    """Write a local file's content to the disk before it gets its name."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
