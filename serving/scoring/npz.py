"""NPZ, numpy's archives: one array of images, and those with one number for each image."""

import math
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

import numpy as np
from numpy.lib import format as npy

from serving.errors import ConfigurationError
from serving.scoring.arrays import ROW, open_arrays
from serving.scoring.dataset import Dataset
from serving.scoring.location import Location, one_line
from serving.signature import Signature

MAGIC = b"PK\x03\x04"
_LOCAL_HEADER_BYTES = 30
"""A member's own header in the archive, before its name: APPNOTE 4.3.7."""


@dataclass(frozen=True, slots=True)
class NpzArray:
    """An array of an archive; see `StoredArray`."""

    member: str
    dtype: str
    shape: tuple[int, ...]
    header_bytes: int
    """What stands before its elements in the member."""
    offset: int | None
    """Where the member begins in the file; None if it is compressed."""

    @property
    def name(self) -> str:
        """See `StoredArray.name`."""
        return self.member.removesuffix(".npy")

    @property
    def is_seekable(self) -> bool:
        """See `StoredArray.is_seekable`."""
        return self.offset is not None

    def open(self, file: BinaryIO, first_row: int) -> BinaryIO:
        """See `StoredArray.open`."""
        if self.offset is None:
            archive = zipfile.ZipFile(file)
            stream = archive.open(self.member)
            stream.read(self.header_bytes)
            return cast(BinaryIO, stream)
        row_bytes = math.prod(self.shape[1:]) * np.dtype(self.dtype).itemsize
        file.seek(self.offset + self.header_bytes + first_row * row_bytes)
        return file


def open_npz(
    location: Location, info: Any, signature: Signature, column: str | None,
    rows_per_file: int | None,
) -> Dataset:  # fmt: skip
    """Read the arrays' headers and cut the file into pieces.

    Raises:
        ConfigurationError: it is damaged, or has no array of such images, or several.
    """
    with one_line(location.path), location.filesystem.open_input_file(location.path) as file:
        try:
            arrays = list(_arrays(file))
        except (zipfile.BadZipFile, ValueError, EOFError) as err:
            raise ConfigurationError(f"{location} can't be read as NPZ: {err}") from err
    images = _images(location, arrays, signature, column)
    others = [
        array
        for array in arrays
        if array.shape == images.shape[:1]
        and np.dtype(array.dtype).kind in "biuf"
        and array.name != ROW
    ]
    return open_arrays(location, info, images, others, rows_per_file)


def _arrays(file: BinaryIO) -> Iterator[NpzArray]:
    with zipfile.ZipFile(file) as archive:
        for member in archive.infolist():
            with archive.open(member) as stream:
                read = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
                version = npy.read_magic(stream)
                if version not in read:
                    continue
                shape, is_fortran, dtype = read[version](stream)
                header_bytes = stream.tell()
            if dtype.hasobject or (is_fortran and len(shape) > 1):
                continue
            is_stored = member.compress_type == zipfile.ZIP_STORED
            offset = _offset(file, member) if is_stored else None
            yield NpzArray(member.filename, dtype.str, shape, header_bytes, offset)


def _offset(file: BinaryIO, member: zipfile.ZipInfo) -> int:
    """Find where a stored member's bytes begin: lengths in its own header may differ."""
    place = file.tell()
    file.seek(member.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    file.seek(place)
    name, extra = (int.from_bytes(header[at : at + 2], "little") for at in (26, 28))
    return member.header_offset + _LOCAL_HEADER_BYTES + name + extra


def _images(
    location: Location, arrays: list[NpzArray], signature: Signature, column: str | None
) -> NpzArray:
    found = ", ".join(f"{array.name} {array.dtype} {array.shape}" for array in arrays)
    able = [
        array
        for array in arrays
        if np.dtype(array.dtype) == np.uint8
        and len(array.shape) > 1
        and math.prod(array.shape[1:]) == signature.image_bytes
        and column in (None, array.name)
    ]
    if not able:
        wanted = "no array" if column is None else f"no array {column!r}"
        raise ConfigurationError(f"{location} has {wanted} of images, {signature}: it has {found}")
    if len(able) > 1:
        raise ConfigurationError(
            f"{location} has several arrays of images; name one with --column: {found}"
        )
    return able[0]
