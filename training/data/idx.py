"""The four files of MNIST: what they must be, and how they are read."""

import gzip
import hashlib
import math
import zlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt


class DataError(Exception):
    """MNIST is not to be had, or not what it should be; the text is fit to show to a person."""


@dataclass(frozen=True, slots=True)
class IdxFile:
    """One file of the data set, as it is once unpacked."""

    name: str
    num_bytes: int
    sha256: str

    def verify(self, content: bytes) -> bytes:
        """Hand back the content if it is this file's.

        Raises:
            DataError: it is not; the text has the expected digest and the one it got.
        """
        digest = hashlib.sha256(content).hexdigest()
        if digest != self.sha256:
            raise DataError(f"{self.name}: expected SHA-256 {self.sha256}, got {digest}")
        return content


FILES = (
    IdxFile(
        "train-images-idx3-ubyte",
        47_040_016,
        "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db",
    ),
    IdxFile(
        "train-labels-idx1-ubyte",
        60_008,
        "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5",
    ),
    IdxFile(
        "t10k-images-idx3-ubyte",
        7_840_016,
        "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7",
    ),
    IdxFile(
        "t10k-labels-idx1-ubyte",
        10_008,
        "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2",
    ),
)


_BEGINNINGS = frozenset(bytes((0, 0, 8, num_axes)) for num_axes in (1, 2, 3))
"""Of a file of bytes; MNIST's have one axis or three, and NumPy takes no more than 64."""


def read(folder: Path, file: IdxFile) -> bytes:
    """Read a file from a folder, raw or as .gz, and verify it.

    Raises:
        DataError: it is not there, or it is damaged.
    """
    path = folder / file.name
    try:
        if path.exists():
            return file.verify(path.read_bytes())
        with gzip.open(f"{path}.gz") as stream:
            return file.verify(stream.read(file.num_bytes + 1))  # no more than shows it is wrong
    except FileNotFoundError:
        raise DataError(f"{folder}: has neither {file.name} nor {file.name}.gz") from None
    except (OSError, EOFError, zlib.error, DataError) as err:
        raise DataError(f"{folder}: {err}") from err


def parse(content: bytes) -> npt.NDArray[np.uint8]:
    """Parse an IDX file of bytes: 0, 0, type 8, number of axes, their lengths, then the values.

    Args:
        content: the whole file; the lengths are big-endian 32-bit integers.

    Returns:
        An array of the shape that the file states, read-only.

    Raises:
        DataError: it is something else, or longer or shorter than it states.
    """
    if content[:4] not in _BEGINNINGS:
        raise DataError(f"expected an IDX file of bytes (00 00 08 ..), got {content[:4].hex(' ')}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[at : at + 4], "big") for at in range(4, header, 4)]
    if len(content) != header + math.prod(shape):
        expected = f"{header} + {' x '.join(map(str, shape))}"
        raise DataError(f"expected {expected} bytes of IDX, got {len(content)}")
    try:
        return np.frombuffer(content, np.uint8, offset=header).reshape(shape)
    except ValueError as err:  # an axis of nothing beside one that no array can have
        raise DataError(f"expected an array, got {' x '.join(map(str, shape))}") from err
