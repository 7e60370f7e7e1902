"""Arrays in files: NPZ, and IDX, MNIST's own format (http://yann.lecun.com/exdb/mnist/).

A piece is a range of rows; a file with a compressed array is one piece.
"""

import gzip
import math
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from itertools import repeat
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
from numpy.lib import format as npy

from serving.errors import ConfigurationError
from serving.scoring import dataset
from serving.scoring.dataset import BATCH_ROWS, Dataset, Piece, Rows, ranges
from serving.scoring.location import Location, one_line
from serving.signature import Signature

NPZ, IDX, GZIP = b"PK\x03\x04", b"\0\0\x08", b"\x1f\x8b"
"""How the files begin."""
_ROW = "row"
"""The column with each row's number, from 0."""
_VERSIONS = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}


class _Array(NamedTuple):
    name: str
    dtype: Any
    shape: tuple[int, ...]
    header_bytes: int
    is_compressed: bool
    member: str | None = None
    """Its file in an NPZ."""

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * int(self.dtype.itemsize)

    @property
    def type(self) -> Any:
        is_row = len(self.shape) > 1
        return pa.binary(self.row_bytes) if is_row else pa.from_numpy_dtype(self.dtype)

    def open(self, file: Any) -> Any:
        """Return the stream that begins with the header."""
        if self.member is not None:
            return zipfile.ZipFile(file).open(self.member)
        return gzip.GzipFile(fileobj=file) if self.is_compressed else file

    def column(self, stream: Any, num_rows: int) -> Any:
        """Read the next rows."""
        data = stream.read(num_rows * self.row_bytes)
        if len(data) < num_rows * self.row_bytes:
            raise EOFError
        if len(self.shape) == 1:
            values = np.frombuffer(data, self.dtype)
            return pa.array(values.astype(self.dtype.newbyteorder("=")))
        return pa.FixedSizeBinaryArray.from_buffers(self.type, num_rows, [None, pa.py_buffer(data)])


def open_arrays(
    location: Location, info: Any, signature: Signature, column: str | None,
    rows_per_file: int | None,
) -> Dataset:  # fmt: skip
    """Read an NPZ's or IDX's headers and cut it into pieces.

    Raises:
        ConfigurationError: it is damaged, or has no array of such images, or several.
    """
    # ValueError, RuntimeError: numpy and zipfile, of damaged headers and unknown compressions.
    subject = f"{location.path} can't be read as NPZ or IDX"
    with one_line(subject, ValueError, RuntimeError), location.open() as file:
        found = list(_npz(file)) if file.read(4) == NPZ else [_idx(file, info.size)]
    pixels = [each for each in found if each.dtype == np.uint8 and len(each.shape) > 1]
    able = [each.name for each in pixels if each.row_bytes == signature.image_bytes]
    kinds = {each.name: f"{each.dtype} {each.shape}" for each in found}
    name = dataset.choose(location.path, kinds, able, column)
    images = next(each for each in found if each.name == name)
    others = [each for each in found if each.shape == images.shape[:1]]
    arrays = [images, *(each for each in others if each.dtype.kind in "biuf" and each.name != _ROW)]
    step = rows_per_file or dataset.ROWS_PER_FILE
    if any(each.is_compressed for each in arrays):
        step = max(1, images.shape[0])
    identity = info.base_name, info.size, info.mtime_ns, *arrays
    pieces = [
        Piece(number, dataset.digest(*identity, start, stop), location.path, start, stop, num_rows)
        for number, (start, stop, num_rows) in enumerate(ranges(repeat(1, images.shape[0]), step))
    ]
    schema = pa.schema([(_ROW, pa.int64()), *((each.name, each.type) for each in arrays)])
    return Dataset(schema, name, partial(_read, location, arrays), pieces)


def _read(location: Location, arrays: Sequence[_Array], piece: Piece) -> Iterator[Rows]:
    with one_line(location.path), ExitStack() as files:
        streams = [each.open(files.enter_context(location.open())) for each in arrays]
        for each, stream in zip(arrays, streams, strict=True):
            stream.seek(each.header_bytes + piece.start * each.row_bytes)
        for start in range(piece.start, piece.stop, BATCH_ROWS):
            numbers = np.arange(start, min(start + BATCH_ROWS, piece.stop))
            both = zip(arrays, streams, strict=True)
            columns = [each.column(stream, len(numbers)) for each, stream in both]
            names = [_ROW, *(each.name for each in arrays)]
            yield pa.RecordBatch.from_arrays([pa.array(numbers), *columns], names), {}
        for each, stream in zip(arrays, streams, strict=True):
            if each.is_compressed and stream.read(1):  # at the end gzip checks the digest
                raise ConfigurationError(f"{location.path}: {each.name} has bytes after its rows")


def _idx(file: Any, size: int) -> _Array:
    file.seek(0)
    is_gzipped = file.read(2) == GZIP
    file.seek(0)
    stream = gzip.GzipFile(fileobj=file) if is_gzipped else file
    magic = stream.read(4)
    if len(magic) < 4 or not magic.startswith(IDX):
        raise ValueError("no IDX file of bytes, which begins with 00 00 08")
    shape = tuple(map(int, np.frombuffer(stream.read(4 * magic[3]), ">u4")))
    header_bytes = 4 + 4 * magic[3]
    if len(shape) < magic[3] or (not is_gzipped and size != header_bytes + math.prod(shape)):
        raise EOFError
    return _Array("image", np.dtype(np.uint8), shape, header_bytes, is_gzipped)


def _npz(file: Any) -> Iterator[_Array]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                read = _VERSIONS.get(npy.read_magic(stream))
                if read is None:
                    continue
                shape, is_fortran, dtype = read(stream)
                header_bytes = stream.tell()
            if not dtype.hasobject and not (is_fortran and len(shape) > 1):
                name, is_compressed = member.filename, member.compress_type != zipfile.ZIP_STORED
                short = name.removesuffix(".npy")
                yield _Array(short, dtype, shape, header_bytes, is_compressed, name)
