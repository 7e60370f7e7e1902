"""A data set that is open, cut into parts, always the same ones."""

import hashlib
import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.dataset
from pyarrow import fs

from digit_scoring.columns import is_images, is_pictures
from digit_scoring.files import one_line
from serving.commandline import installation
from serving.errors import ConfigurationError
from serving.pictures.reader import SUFFIXES

BATCH_ROWS = 4_096
"""The most rows that are read at once."""
ROWS_PER_FILE, PICTURES_PER_FILE = 262_144, 4_096
"""Rows of a part, usually: 200 MB of pixels, a second's work of a core; pictures take 7 ms each."""
TABLES = (".parquet", ".pq")
_PICTURES_AT_ONCE = 64
_PICTURE_BYTES = 256 << 20
"""The largest picture that is read, as by the decoder."""
_PICTURES = pa.schema(
    [("picture", pa.string()), ("image", pa.struct([("bytes", pa.large_binary())]))]
)
"""A picture's file is in a struct, as in Hugging Face's data sets."""


class Part(NamedTuple):
    """Consecutive rows that become one file."""

    number: int
    num_rows: int
    read: "partial[Iterator[Any]]"
    """Reads it in order, as `pyarrow.RecordBatch`es."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """A data set that is open."""

    filesystem: Any
    path: str
    """The file or folder."""
    identity: str
    """A digest of their names, sizes and times."""
    schema: Any
    """The `pyarrow.Schema` of its rows."""
    image_column: str
    are_pictures: bool
    """Whether the files are pictures, which stay where they are."""
    parts: Sequence[Part]


def open_source(place: tuple[Any, str], column: str | None, rows_per_file: int | None) -> Source:
    """Open a data set and cut it into parts, always the same ones.

    Raises:
        ConfigurationError: there is nothing, or nothing that can be read.
        ModuleNotFoundError: it has pictures, and their decoder is not installed.
    """
    filesystem, root = place
    with one_line(root):
        info = filesystem.get_file_info(root)
        is_folder = info.type == fs.FileType.Directory
        found = _listed(filesystem, root) if is_folder else [info]
    if info.type == fs.FileType.NotFound:
        raise ConfigurationError(f"no such file or folder: {root}")
    tables = [each for each in found if not is_folder or each.path.lower().endswith(TABLES)]
    pictures = [each for each in found if is_folder and each.path.lower().endswith(SUFFIXES)]
    if bool(tables) == bool(pictures):
        problem = "both Parquet files and" if tables else "no Parquet files and no"
        raise ConfigurationError(f"{root} holds {problem} pictures: name a folder of one kind")
    files = tables or pictures
    for each in files:
        if each.type != fs.FileType.File:
            raise ConfigurationError(f"{each.path} is no regular file, or a broken link")
    facts = "\n".join(f"{each.path[len(root) :]} {each.size} {each.mtime_ns}" for each in files)
    if tables:
        schema, name, parts = _tables(filesystem, tables, column, rows_per_file)
    else:
        installation.require("PIL", "scipy")
        schema, name = _PICTURES, "image"
        parts = list(_picture_parts(filesystem, root, pictures, rows_per_file))
    if not parts:
        raise ConfigurationError(f"{root} has no rows")
    return Source(
        filesystem=filesystem,
        path=root,
        schema=schema,
        identity=hashlib.sha256(facts.encode()).hexdigest(),
        image_column=name,
        are_pictures=bool(pictures),
        parts=parts,
    )


def _listed(filesystem: Any, root: str) -> list[Any]:
    """List all below a folder but its folders, sorted; names with a dot or underscore are hidden.

    A link to a local folder is followed, once: Arrow would follow one to a parent some forty times.
    """
    if not isinstance(filesystem, fs.LocalFileSystem):
        infos = filesystem.get_file_info(fs.FileSelector(root, recursive=True))
        hidden = re.compile("/[._]")
        infos = [each for each in infos if not hidden.search(each.path, len(root))]
        return sorted(
            (each for each in infos if each.type != fs.FileType.Directory),
            key=lambda each: each.path,
        )
    paths: list[str] = []
    seen: set[str] = set()
    for folder, folders, files in os.walk(root, onerror=_refuse, followlinks=True):
        real = os.path.realpath(folder)
        if real in seen:
            raise ConfigurationError(f"{folder} is {real}, which is read already: remove the link")
        seen.add(real)
        folders[:] = [name for name in folders if name[0] not in "._"]
        paths += [f"{folder}/{name}" for name in files if name[0] not in "._"]
    return list(filesystem.get_file_info(sorted(paths)))


def _refuse(err: OSError) -> None:
    raise err


def _tables(
    filesystem: Any, infos: Sequence[Any], column: str | None, rows_per_file: int | None
) -> tuple[Any, str, list[Part]]:
    paths = [info.path for info in infos]
    kind = pyarrow.dataset.ParquetFileFormat()
    schema, parts = None, list[Part]()
    for path in paths:
        with one_line(path):
            fragment = kind.make_fragment(path, filesystem)
            own = fragment.physical_schema.remove_metadata()
            sizes = [group.num_rows for group in fragment.row_groups]
        schema = schema or own
        if own != schema:
            raise ConfigurationError(f"{path} has other columns than {paths[0]}")
        name = _image_column(path, schema, column)
        are_pictures = is_pictures(schema.field(name).type)
        most = rows_per_file or (PICTURES_PER_FILE if are_pictures else ROWS_PER_FILE)
        for groups, num_rows in _gathered(sizes, most):
            read = partial(_read_table, path, fragment.subset(row_group_ids=groups))
            parts.append(Part(len(parts), num_rows, read))
    return schema, name, parts


def _image_column(path: str, schema: Any, column: str | None) -> str:
    """Choose the column of images: the named one, `image`, `images`, or the only possible one."""
    able = [each.name for each in schema if is_images(each.type)]
    wanted = (column,) if column else ("image", "images")
    chosen = next(
        filter(None, ([each for each in able if each == name] for name in wanted)),
        [] if column else able,
    )
    if len(chosen) == 1:
        return str(chosen[0])
    problem = ("several columns" if chosen else "no column") + (f" {column!r}" if column else "")
    found = ", ".join(f"{each.name} ({each.type})" for each in schema)
    raise ConfigurationError(
        f"{path} has {problem} of images (bytes, or lists of whole numbers from 0 to 255); "
        f"name one with --column: {found}"
    )


def _gathered(sizes: Sequence[int], most: int) -> Iterator[tuple[list[int], int]]:
    """Yield the numbers of consecutive row groups of up to `most` rows, and their rows."""
    groups, num_rows = list[int](), 0
    for number, size in enumerate(sizes):
        if num_rows and num_rows + size > most:
            yield groups, num_rows
            groups, num_rows = [], 0
        groups, num_rows = [*groups, number], num_rows + size
    if num_rows:
        yield groups, num_rows


def _read_table(path: str, fragment: Any) -> Iterator[Any]:
    with one_line(path):
        yield from fragment.to_batches(batch_size=BATCH_ROWS, use_threads=False, batch_readahead=1)


def _picture_parts(
    filesystem: Any, root: str, infos: Sequence[Any], rows_per_file: int | None
) -> Iterator[Part]:
    step = rows_per_file or PICTURES_PER_FILE
    for number, start in enumerate(range(0, len(infos), step)):
        some = infos[start : start + step]
        yield Part(number, len(some), partial(_read_pictures, filesystem, root, some))


def _read_pictures(filesystem: Any, root: str, infos: Sequence[Any]) -> Iterator[Any]:
    for start in range(0, len(infos), _PICTURES_AT_ONCE):
        some = infos[start : start + _PICTURES_AT_ONCE]
        names = [info.path[len(root) + 1 :] for info in some]
        contents = [{"bytes": _content(filesystem, info)} for info in some]
        columns = [pa.array(names), pa.array(contents, _PICTURES.field("image").type)]
        yield pa.RecordBatch.from_arrays(columns, schema=_PICTURES)


def _content(filesystem: Any, info: Any) -> bytes | None:
    """Return a picture's file; None if it can't be read, or is too large."""
    try:
        with filesystem.open_input_file(info.path) as file:
            return bytes(file.read()) if file.size() <= _PICTURE_BYTES else None
    except (OSError, pa.ArrowException):
        return None
