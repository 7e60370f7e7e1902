"""IDX, MNIST's own format, plain or gzipped: http://yann.lecun.com/exdb/mnist/ describes it."""

import gzip
import math
from dataclasses import dataclass
from typing import Any, BinaryIO, cast

from serving.errors import ConfigurationError
from serving.scoring.arrays import open_arrays
from serving.scoring.dataset import Dataset
from serving.scoring.location import Location, one_line
from serving.signature import Signature

MAGIC = b"\x00\x00\x08"
"""Two zeros and the type: bytes. The number of dimensions follows."""
GZIP = b"\x1f\x8b"


@dataclass(frozen=True, slots=True)
class IdxArray:
    """The array of an IDX file; see `StoredArray`."""

    shape: tuple[int, ...]
    is_gzipped: bool
    name: str = "image"
    dtype: str = "uint8"

    @property
    def is_seekable(self) -> bool:
        """See `StoredArray.is_seekable`."""
        return not self.is_gzipped

    def open(self, file: BinaryIO, first_row: int) -> BinaryIO:
        """See `StoredArray.open`."""
        header = 4 + 4 * len(self.shape)
        if self.is_gzipped:
            stream = cast(BinaryIO, gzip.GzipFile(fileobj=file))
            stream.read(header)
            return stream
        file.seek(header + first_row * math.prod(self.shape[1:]))
        return file


def open_idx(
    location: Location, info: Any, signature: Signature, rows_per_file: int | None
) -> Dataset:
    """Read the header and cut the file into pieces.

    Raises:
        ConfigurationError: it holds no such images, or is cut off.
    """
    with one_line(location.path), location.filesystem.open_input_file(location.path) as file:
        is_gzipped = file.read(2) == GZIP
        file.seek(0)
        stream = gzip.GzipFile(fileobj=file) if is_gzipped else file
        try:
            shape = _shape(location, stream)
        except EOFError as err:
            raise ConfigurationError(f"{location} is cut off") from err
    if math.prod(shape[1:]) != signature.image_bytes or len(shape) < 2:
        raise ConfigurationError(f"{location} holds bytes of shape {shape}, no images {signature}")
    if not is_gzipped and info.size != 4 + 4 * len(shape) + math.prod(shape):
        raise ConfigurationError(f"{location} is cut off: its header says {shape[0]} images")
    return open_arrays(location, info, IdxArray(shape, is_gzipped), (), rows_per_file)


def _shape(location: Location, stream: Any) -> tuple[int, ...]:
    magic = stream.read(4)
    if magic[:3] != MAGIC or len(magic) < 4:
        raise ConfigurationError(f"{location} is no IDX file of bytes, which begins with 00 00 08")
    sizes = stream.read(4 * magic[3])
    return tuple(
        int.from_bytes(sizes[start : start + 4], "big") for start in range(0, 4 * magic[3], 4)
    )
