"""A folder of results: the manifest that says of what, and the errors of each file."""

import json
from typing import Any, NamedTuple

import pyarrow.parquet as pq
from pyarrow import fs

from digit_scoring.files import UNFINISHED, one_line, writing
from serving.errors import ConfigurationError

_MANIFEST, SUMMARY = "_manifest.json", "_summary.json"


class Output(NamedTuple):
    """A folder for results, and their columns; see `answered`."""

    filesystem: Any
    path: str
    schema: Any


def prepare(output: Output, manifest: dict[str, Any], *, is_resumed: bool) -> None:
    """Make the folder ready: a new one, or one that holds results of the same run.

    Raises:
        ConfigurationError: there are results and they are not to be resumed, or they are of
            something else, or the folder can't be written.
    """
    filesystem, path, _ = output
    with one_line(path):
        filesystem.create_dir(path, recursive=True)
        names = {each.base_name for each in filesystem.get_file_info(fs.FileSelector(path))}
        if _MANIFEST not in names:
            if any(name[0] not in "._" for name in names):
                raise ConfigurationError(f"{path} is not empty, and holds no results to resume")
            write_json(output, _MANIFEST, manifest)
            return
        if not is_resumed:
            raise ConfigurationError(
                f"{path} holds results already: --resume goes on, or name another folder"
            )
        with filesystem.open_input_file(f"{path}/{_MANIFEST}") as stream:
            found = json.loads(stream.read())
        for subject, value in manifest.items():
            if found.get(subject) != value:
                before, now = str(found.get(subject))[:160], str(value)[:160]
                raise ConfigurationError(
                    f"{path} holds results of another {subject} ({before}), not of this one "
                    f"({now}): name another folder"
                )
        for name in names:
            if name.startswith(UNFINISHED):
                filesystem.delete_file(f"{path}/{name}")


def write_json(output: Output, name: str, document: object) -> None:
    """Write a JSON file, whole."""
    path = f"{output.path}/{name}"
    with one_line(path), writing(output.filesystem, path) as stream:
        stream.write(json.dumps(document, indent=2).encode() + b"\n")


def errors_of(filesystem: Any, path: str) -> tuple[int, str] | None:
    """Return how many rows of a file have no answer, and why one has none; None without a file.

    Raises:
        ConfigurationError: it is damaged.
    """
    with one_line(path):
        try:
            with filesystem.open_input_file(path) as stream:
                footer = pq.read_metadata(stream)
        except FileNotFoundError:
            return None
    num_errors, text = 0, ""
    for number in range(footer.num_row_groups):
        column = footer.row_group(number).column(footer.num_columns - 1)
        num_errors += column.num_values - column.statistics.null_count
        text = text or column.statistics.max or ""
    return num_errors, text
