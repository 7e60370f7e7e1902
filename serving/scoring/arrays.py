"""Arrays in files: NPZ, and IDX, MNIST's own format (http://yann.lecun.com/exdb/mnist/)."""

import gzip
import io
import math
from collections.abc import Iterator
from contextlib import suppress
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from serving.scoring.dataset import BATCH_ROWS, ROWS_PER_FILE, Dataset, Piece, Rows, choose, digest
from serving.scoring.location import Location, one_line
from serving.signature import Signature

_NPZ, _IDX, _GZIP = STARTS = b"PK\x03\x04", b"\0\0\x08", b"\x1f\x8b"
"""How the files begin."""
_ROW = "row"
"""The column with each row's number, from 0."""
_Arrays = dict[str, npt.NDArray[Any]]

_loaded: dict[tuple[str, str | None], tuple[str, Any]] = {}
"""The column of images, and the `pyarrow.Table`, of the file that this process scores."""


def open_arrays(
    root: Location, info: Any, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    """Read an NPZ or IDX file and cut it into pieces.

    Raises:
        ConfigurationError: it is damaged, or has no array of such images, or several.
    """
    name, table = _table(root, signature.image_bytes, column)
    step = rows_per_file or ROWS_PER_FILE
    pieces = []
    for number, start in enumerate(range(0, len(table), step)):
        rows = range(start, min(start + step, len(table)))
        identity = digest(info.base_name, info.size, info.mtime_ns, table.column_names, rows)
        read = partial(_read, root, signature.image_bytes, column, rows)
        pieces.append(Piece(number, identity, root.path, len(rows), read))
    return Dataset(table.schema, name, pieces)


def _read(place: Location, image_bytes: int, column: str | None, rows: range) -> Iterator[Rows]:
    _, table = _table(place, image_bytes, column)
    for batch in table.slice(rows.start, len(rows)).to_batches(BATCH_ROWS):
        yield batch, {}


def _table(place: Location, image_bytes: int, column: str | None) -> tuple[str, Any]:
    """Return the images and the numbers beside them, and the images' name; read once a process."""
    if (place.path, column) in _loaded:
        return _loaded[place.path, column]
    # ValueError, RuntimeError: numpy and zipfile, of damaged headers and unknown compressions.
    subject = f"{place.path} can't be read as NPZ or IDX"
    with one_line(subject, ValueError, RuntimeError), place.open() as file:
        content = file.read()
        arrays = _npz(content) if content.startswith(_NPZ) else {"image": _idx(content)}
    able = [name for name, array in arrays.items() if array.dtype == np.uint8 and array.ndim > 1
            and math.prod(array.shape[1:]) == image_bytes]  # fmt: skip
    kinds = {name: f"{array.dtype} {array.shape}" for name, array in arrays.items()}
    name = choose(place.path, kinds, able, column)
    images = np.ascontiguousarray(arrays.pop(name))
    size, kind = len(images), pa.binary(image_bytes)
    pixels = pa.FixedSizeBinaryArray.from_buffers(kind, size, [None, pa.py_buffer(images)])
    numbers = {
        each: pa.array(array.astype(array.dtype.newbyteorder("=")))
        for each, array in arrays.items()
        if array.shape == (size,) and array.dtype.kind in "biuf" and each != _ROW
    }
    _loaded.clear()
    table = pa.table({_ROW: np.arange(size), name: pixels, **numbers})
    _loaded[place.path, column] = name, table
    return name, table


def _npz(content: bytes) -> _Arrays:
    arrays = {}
    with np.load(io.BytesIO(content)) as file:
        for name in file.files:
            with suppress(ValueError):  # an array of objects, which would run code
                arrays[name] = file[name]
    return {name: array for name, array in arrays.items() if isinstance(array, np.ndarray)}


def _idx(content: bytes) -> npt.NDArray[np.uint8]:
    if content.startswith(_GZIP):
        content = gzip.decompress(content)
    if len(content) < 4 or not content.startswith(_IDX):
        raise ValueError("no IDX file of bytes, which begins with 00 00 08")
    start = 4 + 4 * content[3]
    shape = np.frombuffer(content[4:start], ">u4").tolist()
    if len(content) != start + math.prod(shape):
        raise EOFError
    return np.frombuffer(content, np.uint8, offset=start).reshape(shape)
