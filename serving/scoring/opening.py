"""Opens a data set: Parquet files, arrays in an NPZ or IDX file, or a folder of pictures.

Parquet is read by `ParquetFile`, not by `pyarrow.dataset`, which decodes a row group as a whole: it
takes several times the processor time and the memory (pyarrow 26).
"""

from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serving.commandline import installation
from serving.digits.pictures.files import SUFFIXES
from serving.errors import ConfigurationError
from serving.scoring import arrays
from serving.scoring.dataset import BATCH_ROWS, ROWS_PER_FILE, Dataset, Piece, Rows, choose, digest
from serving.scoring.location import Location, one_line, reason
from serving.scoring.pixels import is_images, is_pictures
from serving.signature import Signature

_BATCH_BYTES = 32 << 20
"""Rows are read by fewer at once if they take more than this."""
_BUFFER_BYTES = 4 << 20
"""Read of a Parquet column at once; without it a whole row group's column is."""
_PICTURES_PER_FILE = 4_096
"""Pictures of a piece: they take a thousand times as long as rows of pixels."""
_FOOTERS_AT_ONCE = 16
"""Each waits for the network, on an object store."""
_PICTURES_AT_ONCE = 16
_PICTURE_BYTES = 256 << 20
"""The largest picture that is read, as by the decoder."""
_FILE = pa.struct([("bytes", pa.large_binary())])
"""A picture's file, as in Hugging Face's data sets."""
_PICTURES = pa.schema([("picture", pa.string()), ("image", _FILE)])
_CODECS = {"UNCOMPRESSED": "NONE", "GZIP": "GZIP", "BROTLI": "BROTLI", "ZSTD": "ZSTD", "LZ4": "LZ4"}
"""The compressions that pyarrow writes, by their names in a footer; others become SNAPPY."""


def open_dataset(
    root: Location, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    """Open a data set and cut it into pieces, always the same ones.

    Raises:
        ConfigurationError: there is nothing, or nothing that can be read.
        ModuleNotFoundError: it has pictures, and their decoder is not installed.
    """
    with one_line(root.path):
        info = root.filesystem.get_file_info(root.path)
    if info.type == fs.FileType.NotFound:
        raise ConfigurationError(f"no such file or folder: {root.path}")
    if info.type == fs.FileType.Directory:
        opened = _folder(root, column, rows_per_file)
    else:
        opened = _file(root, info, signature, column, rows_per_file)
    if not opened.pieces:
        raise ConfigurationError(f"{root.path} has no rows")
    return opened


def _file(
    root: Location, info: Any, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    head = b""
    if info.type == fs.FileType.File:  # to open a pipe would wait for its writer
        with one_line(root.path), root.open() as file:
            head = file.read(4)
    if head == b"PAR1":
        return _parquet(root, [info], column, rows_per_file)
    if head.startswith(arrays.STARTS):
        return arrays.open_arrays(root, info, signature, column, rows_per_file)
    raise ConfigurationError(
        f"{root.path} is neither Parquet, IDX nor NPZ; pictures are read by folder"
    )


def _folder(root: Location, column: str | None, rows_per_file: int | None) -> Dataset:
    files = root.files()
    tables = [file for file in files if file.path.lower().endswith((".parquet", ".pq"))]
    pictures = [file for file in files if file.path.lower().endswith(SUFFIXES)]
    if tables and pictures:
        problem = "holds Parquet files and pictures: name a folder of one"
    elif tables:
        return _parquet(root, tables, column, rows_per_file)
    elif pictures:
        installation.require("PIL", "scipy")
        return _pictures(root, pictures, rows_per_file or _PICTURES_PER_FILE)
    else:
        problem = "holds no Parquet files and no pictures; name an IDX or NPZ file itself"
    raise ConfigurationError(f"{root.path} {problem}")


def _identity(root: Location, info: Any) -> str:
    return digest(info.path[len(root.path) :], info.size, info.mtime_ns)


def _parquet(
    root: Location, infos: Sequence[Any], column: str | None, rows_per_file: int | None
) -> Dataset:
    places = [root._replace(path=info.path) for info in infos]
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(_footer, places))
    schema = footers[0].schema.to_arrow_schema().remove_metadata()
    for place, footer in zip(places, footers, strict=True):
        if not footer.schema.to_arrow_schema().equals(schema):
            raise ConfigurationError(f"{place.path} has other columns than {places[0].path}")
    able = [each.name for each in schema if is_images(each.type)]
    name = choose(root.path, {each.name: str(each.type) for each in schema}, able, column)
    are_files = is_pictures(schema.field(name).type)
    step = rows_per_file or (_PICTURES_PER_FILE if are_files else ROWS_PER_FILE)
    pieces: list[Piece] = []
    for info, place, footer in zip(infos, places, footers, strict=True):
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        for groups, num_rows in _gathered(sizes, step):
            identity = digest(_identity(root, info), groups)
            read = partial(_read_parquet, place, groups, num_rows)
            pieces.append(Piece(len(pieces), identity, place.path, num_rows, read))
    firsts = [footer.row_group(0) for footer in footers if footer.num_row_groups][:1]
    columns = [group.column(number) for group in firsts for number in range(group.num_columns)]
    codecs = {each.path_in_schema: _CODECS.get(each.compression, "SNAPPY") for each in columns}
    return Dataset(schema, name, pieces, codecs)


def _footer(place: Location) -> Any:
    with one_line(place.path), place.open() as file:
        return pq.read_metadata(file)


def _gathered(sizes: Iterable[int], most: int) -> Iterator[tuple[range, int]]:
    """Gather consecutive row groups of up to `most` rows; a group is not divided.

    Yields:
        The numbers of the groups, and their rows.
    """
    start = stop = num_rows = 0
    for size in sizes:
        if num_rows and num_rows + size > most:
            yield range(start, stop), num_rows
            start, num_rows = stop, 0
        stop, num_rows = stop + 1, num_rows + size
    if num_rows:
        yield range(start, stop), num_rows


def _read_parquet(place: Location, groups: range, num_rows: int) -> Iterator[Rows]:
    with one_line(place.path), place.open() as file:
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
        num_bytes = sum(parquet.metadata.row_group(number).total_byte_size for number in groups)
        most = min(BATCH_ROWS, num_rows * _BATCH_BYTES // max(1, num_bytes))
        for batch in parquet.iter_batches(max(1, most), groups, use_threads=False):
            yield batch, {}


def _pictures(root: Location, infos: Sequence[Any], step: int) -> Dataset:
    pieces: list[Piece] = []
    for start in range(0, len(infos), step):
        some = infos[start : start + step]
        identity = digest(*(_identity(root, info) for info in some))
        read = partial(_read_pictures, root, [info.path[len(root.path) + 1 :] for info in some])
        pieces.append(Piece(len(pieces), identity, root.path, len(some), read))
    return Dataset(_PICTURES, "image", pieces, are_images_kept=False)


def _read_pictures(root: Location, names: Sequence[str]) -> Iterator[Rows]:
    for start in range(0, len(names), _PICTURES_AT_ONCE):
        some = names[start : start + _PICTURES_AT_ONCE]
        contents = [_content(root / name) for name in some]
        errors = {row: each for row, each in enumerate(contents) if isinstance(each, str)}
        files = [None if isinstance(each, str) else {"bytes": each} for each in contents]
        columns = [pa.array(some), pa.array(files, _FILE)]
        yield pa.RecordBatch.from_arrays(columns, schema=_PICTURES), errors


def _content(place: Location) -> bytes | str:
    """Return a picture's file, or why it can't be read."""
    try:
        with place.open() as file:
            if file.size() > _PICTURE_BYTES:
                raise OSError(f"expected at most {_PICTURE_BYTES} bytes")
            return bytes(file.read())
    except (OSError, pa.ArrowException) as err:
        return f"cannot be read: {reason(err)}"
