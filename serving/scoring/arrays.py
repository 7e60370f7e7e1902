"""Arrays in files: IDX and NPZ. A piece is a range of rows; compressed arrays are one piece."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO, Protocol

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.errors import ConfigurationError
from serving.scoring.dataset import (
    BATCH_ROWS,
    ROWS_PER_FILE,
    Dataset,
    Format,
    Piece,
    Rows,
    digest,
    file_identity,
    ranges,
)
from serving.scoring.location import Location, one_line

ROW = "row"
"""The column with each row's number, from 0."""


class StoredArray(Protocol):
    """An array in a file; can be pickled."""

    @property
    def name(self) -> str:
        """What its column is called."""

    @property
    def dtype(self) -> str:
        """The type of its elements, as numpy writes it."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape; the first size is that of the rows."""

    @property
    def is_seekable(self) -> bool:
        """Whether it can be read from any row on."""

    def open(self, file: BinaryIO, first_row: int) -> BinaryIO:
        """Return the stream of its bytes from a row on.

        Args:
            file: the file that it is in.
            first_row: 0 unless it is seekable.
        """


@dataclass(frozen=True, slots=True)
class ArrayReader:
    """Reads ranges of rows; see `Reader`."""

    location: Location
    images: StoredArray
    others: tuple[StoredArray, ...] = ()
    """Arrays of one number for each image."""
    format: Format = Format()  # noqa: RUF009

    @property
    def image_column(self) -> str:
        """See `Reader.image_column`."""
        return self.images.name

    @property
    def schema(self) -> Any:
        """See `Reader.schema`."""
        others = [(array.name, pa.from_numpy_dtype(array.dtype)) for array in self.others]
        images = (self.images.name, pa.binary(_row_bytes(self.images)))
        return pa.schema([(ROW, pa.int64()), images, *others])

    def read(self, piece: Piece) -> Iterator[Rows]:
        """See `Reader.read`."""
        arrays = (self.images, *self.others)
        with one_line(piece.path):
            files = [self.location.filesystem.open_input_file(piece.path) for _ in arrays]
            try:
                streams = [
                    array.open(file, piece.start) for array, file in zip(arrays, files, strict=True)
                ]
                for start, stop in ranges(piece.num_rows, BATCH_ROWS):
                    parts = [
                        _rows(array, stream, stop - start, piece.path)
                        for array, stream in zip(arrays, streams, strict=True)
                    ]
                    yield Rows(self._batch(piece.start + start, parts))
            except EOFError as err:  # gzip
                raise ConfigurationError(f"{piece.path} is cut off") from err
            finally:
                for file in files:
                    file.close()

    def _batch(self, first: int, parts: "list[npt.NDArray[Any]]") -> Any:
        images, *others = parts
        rows = pa.array(np.arange(first, first + len(images)))
        pixels = [None, pa.py_buffer(images)]
        kind = pa.binary(_row_bytes(self.images))
        column = pa.FixedSizeBinaryArray.from_buffers(kind, len(images), pixels)
        return pa.RecordBatch.from_arrays(
            [rows, column, *map(pa.array, others)], schema=self.schema
        )


def open_arrays(
    location: Location, info: Any, images: StoredArray, others: Sequence[StoredArray],
    rows_per_file: int | None,
) -> Dataset:  # fmt: skip
    """Cut a file's arrays into pieces."""
    arrays = (images, *others)
    num_rows = images.shape[0]
    is_seekable = all(array.is_seekable for array in arrays)
    step = (rows_per_file or ROWS_PER_FILE) if is_seekable else max(1, num_rows)
    identity = file_identity(location.path.rpartition("/")[2], info)
    names = [array.name for array in arrays]
    pieces = [
        Piece(number, digest(identity, *names, start, stop), location.path, start, stop,
              stop - start)
        for number, (start, stop) in enumerate(ranges(num_rows, step))
    ]  # fmt: skip
    return Dataset(ArrayReader(location, images, tuple(others)), pieces)


def _row_bytes(array: StoredArray) -> int:
    return int(np.prod(array.shape[1:], dtype=int)) * np.dtype(array.dtype).itemsize


def _rows(array: StoredArray, stream: BinaryIO, num_rows: int, path: str) -> npt.NDArray[Any]:
    size = num_rows * _row_bytes(array)
    data = stream.read(size)
    if len(data) != size:
        raise ConfigurationError(f"{path} is cut off: {array.name} has {array.shape[0]} rows there")
    values = np.frombuffer(data, array.dtype).reshape(num_rows, -1)
    native = values.astype(values.dtype.newbyteorder("="), copy=False)
    return native if array.shape[1:] else native[:, 0]
