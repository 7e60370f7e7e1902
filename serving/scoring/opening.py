"""Opens a Parquet file, a folder of them or of pictures, or a file of arrays.

Parquet is read by `ParquetFile`, not by `pyarrow.dataset`, which decodes a row group as a whole: of
a million images it takes 1.7 GB instead of 0.3, and three times the processor time.
"""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from pyarrow import fs

from serving import installation
from serving.errors import ConfigurationError
from serving.pictures.files import SUFFIXES
from serving.scoring import arrays, dataset
from serving.scoring.dataset import BATCH_BYTES, Dataset, Piece, Rows, digest, ranges
from serving.scoring.location import Location, one_line, reason
from serving.scoring.pixels import is_images, is_pictures
from serving.signature import Signature

_BUFFER_BYTES = 4 << 20
"""Read of a column at once; without it a whole row group's column is."""
_FOOTERS_AT_ONCE = 16
"""Each waits for the network, on an object store."""
_CODECS = {"UNCOMPRESSED": "NONE", "GZIP": "GZIP", "BROTLI": "BROTLI", "ZSTD": "ZSTD", "LZ4": "LZ4"}
"""The compressions that pyarrow writes, by their names in a footer; others become SNAPPY."""
_PICTURE_BYTES = 256 << 20
"""The largest picture that is read, as by the decoder."""
_AT_ONCE = 256
_FILE = pa.struct([("bytes", pa.large_binary())])
"""A picture's file, as in Hugging Face's data sets."""
_PICTURES = pa.schema([("picture", pa.string()), ("image", _FILE)])


def open_dataset(
    root: Location, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    """Open a data set and cut it into pieces.

    Args:
        root: the file or folder.
        signature: the images that the model takes.
        column: the column or array with the images; None to choose it.
        rows_per_file: rows of a piece; None for the format's own number.

    Raises:
        ConfigurationError: there is nothing, or nothing that can be read.
        ModuleNotFoundError: it is pictures, and what decodes them is not installed.
    """
    with one_line(root.path):
        info = root.filesystem.get_file_info(root.path)
    if info.type == fs.FileType.NotFound:
        raise ConfigurationError(f"no such file or folder: {root.path}")
    if info.type == fs.FileType.Directory:
        opened = _open_folder(root, column, rows_per_file)
    else:
        opened = _open_file(root, info, signature, column, rows_per_file)
    if not opened.pieces:
        raise ConfigurationError(f"{root.path} has no rows")
    return opened


def _open_file(
    root: Location, info: Any, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    head = b""
    if info.type == fs.FileType.File:  # to open a pipe would wait for its writer
        with one_line(root.path), root.open() as file:
            head = file.read(4)
    if head == b"PAR1":
        return _open_parquet(root, [info], column, rows_per_file)
    if head.startswith((arrays.NPZ, arrays.IDX, arrays.GZIP)):
        return arrays.open_arrays(root, info, signature, column, rows_per_file)
    raise ConfigurationError(
        f"{root.path} is neither Parquet, IDX nor NPZ; pictures are read by folder"
    )


def _open_folder(root: Location, column: str | None, rows_per_file: int | None) -> Dataset:
    files = root.files()
    tables = [file for file in files if file.path.lower().endswith((".parquet", ".pq"))]
    pictures = [file for file in files if file.path.lower().endswith(SUFFIXES)]
    if tables and pictures:
        raise ConfigurationError(
            f"{root.path} holds Parquet files and pictures: name a folder of one"
        )
    if tables:
        return _open_parquet(root, tables, column, rows_per_file)
    if not pictures:
        raise ConfigurationError(
            f"{root.path} holds no Parquet files and no pictures; name an IDX or NPZ file itself"
        )
    installation.require("PIL", "scipy")
    return _open_pictures(root, pictures, rows_per_file)


def _identity(root: Location, info: Any) -> str:
    return digest(info.path[len(root.path) :], info.size, info.mtime_ns)


def _open_parquet(
    root: Location, infos: Sequence[Any], column: str | None, rows_per_file: int | None
) -> Dataset:
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(partial(_footer, root), infos))
    schema = footers[0].schema.to_arrow_schema().remove_metadata()
    for info, footer in zip(infos, footers, strict=True):
        if not footer.schema.to_arrow_schema().equals(schema):
            raise ConfigurationError(f"{info.path} has other columns than {infos[0].path}")
    able = [each.name for each in schema if is_images(each.type)]
    types = {each.name: str(each.type) for each in schema}
    name = dataset.choose(root.path, types, able, column)
    are_files = is_pictures(schema.field(name).type)
    step = rows_per_file or (dataset.PICTURES_PER_FILE if are_files else dataset.ROWS_PER_FILE)
    pieces: list[Piece] = []
    for info, footer in zip(infos, footers, strict=True):
        sizes = [footer.row_group(number).num_rows for number in range(footer.num_row_groups)]
        for start, stop, num_rows in ranges(sizes, step):
            identity = digest(_identity(root, info), start, stop)
            pieces.append(Piece(len(pieces), identity, info.path, start, stop, num_rows))
    groups = [footer.row_group(0) for footer in footers if footer.num_row_groups][:1]
    written = [group.column(number) for group in groups for number in range(group.num_columns)]
    codecs = {each.path_in_schema: _CODECS.get(each.compression, "SNAPPY") for each in written}
    dictionaries = tuple(each.path_in_schema for each in written if each.has_dictionary_page)
    return Dataset(schema, name, partial(_read_parquet, root), pieces, codecs, dictionaries)


def _footer(root: Location, info: Any) -> Any:
    with one_line(info.path), root.filesystem.open_input_file(info.path) as file:
        return pq.read_metadata(file)


def _read_parquet(root: Location, piece: Piece) -> Iterator[Rows]:
    with one_line(piece.path), root.filesystem.open_input_file(piece.path) as file:
        parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
        groups = range(piece.start, piece.stop)
        num_bytes = sum(parquet.metadata.row_group(number).total_byte_size for number in groups)
        num_rows = min(dataset.BATCH_ROWS, piece.num_rows * BATCH_BYTES // max(1, num_bytes))
        for batch in parquet.iter_batches(max(1, num_rows), groups, use_threads=False):
            yield batch, {}


def _open_pictures(root: Location, infos: Sequence[Any], rows_per_file: int | None) -> Dataset:
    names = [info.path[len(root.path) + 1 :] for info in infos]
    pieces: list[Piece] = []
    for start, stop, _ in ranges([1] * len(infos), rows_per_file or dataset.PICTURES_PER_FILE):
        identity = digest(*(_identity(root, info) for info in infos[start:stop]))
        pieces.append(Piece(len(pieces), identity, root.path, start, stop, stop - start))
    read = partial(_read_pictures, root, names)
    return Dataset(_PICTURES, "image", read, pieces, are_images_kept=False)


def _read_pictures(root: Location, names: Sequence[str], piece: Piece) -> Iterator[Rows]:
    contents: list[bytes | None] = []
    errors: dict[int, str] = {}
    for stop in range(piece.start + 1, piece.stop + 1):
        try:
            with (root / names[stop - 1]).open() as file:
                if file.size() > _PICTURE_BYTES:
                    raise OSError(f"expected at most {_PICTURE_BYTES} bytes")
                contents.append(file.read())
        except (OSError, pa.ArrowException) as err:
            errors[len(contents)] = f"cannot be read: {reason(err)}"
            contents.append(None)
        num_bytes = sum(map(len, filter(None, contents)))
        if stop == piece.stop or len(contents) == _AT_ONCE or num_bytes > BATCH_BYTES:
            files = pa.array(
                [None if each is None else {"bytes": each} for each in contents], _FILE
            )
            shown = pa.array(names[stop - len(contents) : stop])
            yield pa.RecordBatch.from_arrays([shown, files], schema=_PICTURES), errors
            contents, errors = [], {}
