"""The output: one Parquet file a piece, whole or not there, and the model and input they are of.

    OUT/_manifest.json           the model and the input
    OUT/part-000042-<digest>.parquet
    OUT/_summary.json            rows and errors, once all files are there

Readers of Parquet folders, such as pyarrow, Spark and DuckDB's globs, leave out names with an
underscore, which a file has until it is whole.
"""

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serving.errors import ConfigurationError
from serving.scoring.location import Location, one_line

_MANIFEST, SUMMARY = "_manifest.json", "_summary.json"
_UNFINISHED = "_part-"


def num_errors(file: Location) -> int | None:
    """Return the rows without an answer in a finished file; None if it is not there.

    Raises:
        ConfigurationError: it is damaged.
    """
    with one_line(file.path):
        try:
            with file.open() as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            return None
    # The last column has the errors.
    groups = [footer.row_group(number) for number in range(footer.num_row_groups)]
    columns = [group.column(group.num_columns - 1) for group in groups]
    errors: int = sum(column.num_values - column.statistics.null_count for column in columns)
    return errors


@contextmanager
def writing(file: Location) -> Iterator[Any]:
    """Open a file that gets its name once the block ends without an exception.

    Two that write the same piece write the same content, so it does not matter who is last.
    """
    filesystem, path = file
    partial = f"{path.rpartition('/')[0]}/{_UNFINISHED}{uuid.uuid4().hex}"
    try:
        with filesystem.open_output_stream(partial) as stream:
            yield stream
        if isinstance(filesystem, fs.LocalFileSystem):
            with open(partial, "rb") as written:  # a name must not outlive a crash without content
                os.fsync(written.fileno())
        filesystem.move(partial, path)
    except BaseException:
        # An object store completes the upload of a stream that is closed by an exception.
        with suppress(OSError, pa.ArrowException):
            filesystem.delete_file(partial)
        raise


def write_json(file: Location, document: object) -> None:
    """Write a JSON file, whole."""
    with one_line(file.path), writing(file) as stream:
        stream.write(json.dumps(document, indent=2).encode() + b"\n")


def prepare(folder: Location, manifest: dict[str, Any], *, is_resumed: bool) -> None:
    """Make the folder ready: a new one, or one that holds results of the same run.

    Raises:
        ConfigurationError: there are results and they are not to be resumed, or they are of
            something else, or the folder can't be written.
    """
    path, filesystem = folder.path, folder.filesystem
    with one_line(path, ValueError):
        filesystem.create_dir(path, recursive=True)
        there = {info.base_name: info for info in filesystem.get_file_info(fs.FileSelector(path))}
        if _MANIFEST not in there:
            if any(name[0] not in "._" for name in there):
                raise ConfigurationError(f"{path} is not empty, and holds no results to resume")
            write_json(folder / _MANIFEST, manifest)
            return
        with (folder / _MANIFEST).open() as stream:
            found = json.loads(stream.read())
        if not is_resumed:
            raise ConfigurationError(
                f"{path} holds results already: --resume goes on, or name another folder"
            )
        for subject, value in manifest.items():
            if found.get(subject) != value:
                before, now = str(found.get(subject))[:160], str(value)[:160]
                raise ConfigurationError(
                    f"{path} holds results of another {subject} ({before}), not of this one "
                    f"({now}): name another folder"
                )
        for name in there:
            if name.startswith(_UNFINISHED):
                filesystem.delete_file((folder / name).path)
