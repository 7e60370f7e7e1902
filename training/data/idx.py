"""The four files of MNIST, in the IDX format: their digests, and how they are read."""

import gzip
import hashlib
import zlib
from dataclasses import dataclass
from pathlib import Path

from training.errors import DataError


@dataclass(frozen=True, slots=True)
class IdxFile:
    """One file of the data set, unpacked."""

    name: str
    num_bytes: int
    sha256: str

    def verify(self, content: bytes) -> bytes:
        """Return the content if it is this file's.

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


def read(folder: Path, file: IdxFile) -> bytes:
    """Read a file from a folder, raw or as .gz, and verify it.

    Raises:
        DataError: it is missing or damaged.
    """
    path = folder / file.name
    try:
        if path.exists():
            return file.verify(path.read_bytes())
        with gzip.open(f"{path}.gz") as stream:
            return file.verify(stream.read(file.num_bytes + 1))  # one byte too many fails as well
    except FileNotFoundError:
        raise DataError(f"{folder}: has neither {file.name} nor {file.name}.gz") from None
    except (OSError, EOFError, zlib.error, DataError) as err:
        raise DataError(f"{folder}: {err}") from err
