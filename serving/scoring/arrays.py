"""Arrays in files: NPZ, and IDX, MNIST's own format (http://yann.lecun.com/exdb/mnist/)."""

import gzip
import io
import math
from collections.abc import Iterator, Sequence
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

_loaded: dict[str, _Arrays] = {}
"""The arrays of the file that this process scores, by its path."""


def open_arrays(
    root: Location, info: Any, signature: Signature, column: str | None, rows_per_file: int | None
) -> Dataset:
    """Read an NPZ or IDX file and cut it into pieces.

    Raises:
        ConfigurationError: it is damaged, or has no array of such images, or several.
    """
    found = _load(root)
    able = [name for name, array in found.items() if array.dtype == np.uint8 and array.ndim > 1
            and math.prod(array.shape[1:]) == signature.image_bytes]  # fmt: skip
    kinds = {name: f"{array.dtype} {array.shape}" for name, array in found.items()}
    chosen = choose(root.path, kinds, able, column)
    size = len(found[chosen])
    others = [name for name, array in found.items() if array.shape == (size,)
              and array.dtype.kind in "biuf" and name != _ROW]  # fmt: skip
    types = [pa.from_numpy_dtype(found[name].dtype) for name in others]
    names = [chosen, *others]
    columns = zip(
        [_ROW, *names], [pa.int64(), pa.binary(signature.image_bytes), *types], strict=True
    )
    step = rows_per_file or ROWS_PER_FILE
    pieces = []
    for number, start in enumerate(range(0, size, step)):
        rows = range(start, min(start + step, size))
        identity = digest(info.base_name, info.size, info.mtime_ns, names, rows)
        read = partial(_read, root, names, rows)
        pieces.append(Piece(number, identity, root.path, len(rows), read))
    return Dataset(pa.schema(list(columns)), chosen, pieces)


def _read(place: Location, names: Sequence[str], rows: range) -> Iterator[Rows]:
    arrays = _load(place)
    for start in rows[::BATCH_ROWS]:
        part = slice(start, min(start + BATCH_ROWS, rows.stop))
        images, *others = (np.ascontiguousarray(arrays[name][part]) for name in names)
        kind = pa.binary(images[0].nbytes)
        pixels = pa.FixedSizeBinaryArray.from_buffers(
            kind, len(images), [None, pa.py_buffer(images)]
        )
        numbers = [pa.array(each.astype(each.dtype.newbyteorder("="))) for each in others]
        columns = [pa.array(np.arange(part.start, part.stop)), pixels, *numbers]
        yield pa.RecordBatch.from_arrays(columns, [_ROW, *names]), {}


def _load(place: Location) -> _Arrays:
    """Read the arrays of a file, once in each process."""
    if place.path not in _loaded:
        # ValueError, RuntimeError: numpy and zipfile, of damaged headers and unknown compressions.
        subject = f"{place.path} can't be read as NPZ or IDX"
        with one_line(subject, ValueError, RuntimeError), place.open() as file:
            content = file.read()
            arrays = _npz(content) if content.startswith(_NPZ) else {"image": _idx(content)}
        _loaded.clear()
        _loaded[place.path] = arrays
    return _loaded[place.path]


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
