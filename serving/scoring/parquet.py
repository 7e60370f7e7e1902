"""Parquet: a file or a folder of them; a piece is some row groups of one file."""

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pyarrow.parquet as pq

from serving.errors import ConfigurationError
from serving.scoring.dataset import (
    BATCH_BYTES,
    BATCH_ROWS,
    PICTURES_PER_FILE,
    ROWS_PER_FILE,
    Dataset,
    Format,
    Piece,
    Rows,
    digest,
    file_identity,
)
from serving.scoring.location import Location, one_line
from serving.scoring.pixels import is_images, is_pictures

_BUFFER_BYTES = 4 << 20
"""Read of a column at once; without it a whole row group's column is."""
_FOOTERS_AT_ONCE = 16
"""Footers that are read at once: each waits for the network, on an object store."""
_CODECS = {"UNCOMPRESSED": "NONE"} | {
    name: name for name in ("SNAPPY", "GZIP", "BROTLI", "ZSTD", "LZ4")
}
"""The compressions that pyarrow writes, by their names in a footer."""
_USUAL_COLUMNS = ("image", "images")


@dataclass(frozen=True, slots=True)
class ParquetReader:
    """Reads row groups; see `Reader`."""

    filesystem: Any
    schema: Any
    image_column: str
    format: Format

    def read(self, piece: Piece) -> Iterator[Rows]:
        """See `Reader.read`."""
        with one_line(piece.path), self.filesystem.open_input_file(piece.path) as file:
            parquet = pq.ParquetFile(file, buffer_size=_BUFFER_BYTES)
            groups = range(piece.start, piece.stop)
            batches = parquet.iter_batches(
                batch_size=_batch_rows(parquet.metadata, groups), row_groups=groups,
                use_threads=False,
            )  # fmt: skip
            for batch in batches:
                yield Rows(batch)


def open_parquet(
    root: Location, infos: Sequence[Any], column: str | None, rows_per_file: int | None
) -> Dataset:
    """Read the footers and cut the files into pieces.

    Args:
        root: the file or folder that was named.
        infos: the files.
        column: the column with the images; None to choose it.
        rows_per_file: rows of a piece; a row group is never divided.

    Raises:
        ConfigurationError: a file is no Parquet, they differ in their columns, or there is no such
            column of images.
    """
    with ThreadPoolExecutor(_FOOTERS_AT_ONCE) as threads:
        footers = list(threads.map(lambda info: _footer(root, info), infos))
    schema = footers[0].schema.to_arrow_schema()
    for info, footer in zip(infos, footers, strict=True):
        if not footer.schema.to_arrow_schema().equals(schema, check_metadata=False):
            raise ConfigurationError(f"{info.path} has other columns than {infos[0].path}")
    schema = schema.remove_metadata()
    image_column = _image_column(root, schema, column)
    usual = PICTURES_PER_FILE if is_pictures(schema.field(image_column).type) else ROWS_PER_FILE
    pieces: list[Piece] = []
    for info, footer in zip(infos, footers, strict=True):
        identity = file_identity(root.name_of(info.path), info)
        for start, stop, num_rows in _groups(footer, rows_per_file or usual):
            pieces.append(
                Piece(len(pieces), digest(identity, start, stop), info.path, start, stop, num_rows)
            )
    reader = ParquetReader(root.filesystem, schema, image_column, _format(footers))
    return Dataset(reader, pieces)


def _footer(root: Location, info: Any) -> Any:
    with one_line(info.path), root.filesystem.open_input_file(info.path) as file:
        return pq.read_metadata(file)


def _groups(footer: Any, rows_per_piece: int) -> Iterator[tuple[int, int, int]]:
    """Gather consecutive row groups up to a number of rows: first, last + 1, and their rows."""
    start = num_rows = 0
    for number in range(footer.num_row_groups):
        more = footer.row_group(number).num_rows
        if num_rows and num_rows + more > rows_per_piece:
            yield start, number, num_rows
            start, num_rows = number, 0
        num_rows += more
    if num_rows:
        yield start, footer.num_row_groups, num_rows


def _batch_rows(footer: Any, groups: Sequence[int]) -> int:
    """Choose how many rows to read at once, by what they take."""
    found = [footer.row_group(number) for number in groups]
    num_bytes: int = sum(group.total_byte_size for group in found)
    num_rows: int = sum(group.num_rows for group in found)
    return max(1, min(BATCH_ROWS, num_rows * BATCH_BYTES // max(1, num_bytes)))


def _format(footers: Sequence[Any]) -> Format:
    """Write columns as they are in the first row group."""
    for footer in footers:
        if footer.num_row_groups:
            group = footer.row_group(0)
            columns = [group.column(number) for number in range(group.num_columns)]
            return Format(
                {
                    column.path_in_schema: _CODECS.get(column.compression, "SNAPPY")
                    for column in columns
                },
                tuple(column.path_in_schema for column in columns if column.has_dictionary_page),
            )
    return Format()


def _image_column(root: Location, schema: Any, column: str | None) -> str:
    """Check the column that was named, or choose the only one that can be.

    Raises:
        ConfigurationError: there is none, or there are several.
    """
    if column is not None:
        if schema.names.count(column) != 1:
            raise ConfigurationError(
                f"{root} has no column {column!r}: it has {', '.join(schema.names)}"
            )
        if not is_images(schema.field(column).type):
            raise ConfigurationError(
                f"column {column!r} can't hold images: it is {schema.field(column).type}, expected "
                "bytes, or lists of whole numbers from 0 to 255"
            )
        return column
    able = [field.name for field in schema if is_images(field.type)]
    usual = [name for name in _USUAL_COLUMNS if name in able]
    if len(able) != 1 and not usual:
        found = ", ".join(f"{field.name} ({field.type})" for field in schema)
        problem = "several columns" if able else "no column"
        raise ConfigurationError(
            f"{root} has {problem} of bytes or lists; name one with --column: {found}"
        )
    return (usual or able)[0]
