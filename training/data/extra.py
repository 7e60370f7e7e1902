"""A user's own digits: pictures in the folders 0 to 9, read as the server reads them."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np

from training.data.mnist import SIDE, Examples, Images
from training.errors import DataError

HELD_OUT = 5
"""One picture of this many is held out, of each digit."""
_WEIGHT = 0.02
"""Share of an epoch that own images make up, by repetition: each copy is deformed otherwise."""
_MAX_COPIES = 50


@dataclass(frozen=True, slots=True, eq=False)
class Extra:
    """A user's own images."""

    training: Examples
    """Images for training."""
    held_out: Examples
    """Images for measuring; never trained on."""
    unreadable: tuple[str, ...] = ()
    """A line for each file that is no readable picture."""

    @property
    def digest(self) -> str:
        """The SHA-256 of the images to train on and their labels."""
        content = self.training.images.tobytes() + self.training.labels.tobytes()
        return hashlib.sha256(content).hexdigest()


_Labelled = tuple[Images, int]
"""An image, (784,) uint8, and its digit."""


class _Picture(NamedTuple):
    digest: str
    path: Path
    label: int


def load(folder: Path) -> Extra:
    """Read the pictures below a folder.

    Which are held out depends on their content alone: neither names nor other digits change it. Of
    equal files one counts.

    Raises:
        DataError: there are no pictures, the same picture is in two digits' folders, or Pillow or
            SciPy is missing.
    """
    training, held_out = list[_Labelled](), list[_Labelled]()
    unreadable: list[str] = []
    for digit, pictures in _by_digit(folder).items():
        readable: list[_Labelled] = []
        for picture in pictures:
            try:
                readable.append((read(picture.path), digit))
            except ValueError as err:
                unreadable.append(f"{picture.path}: {err}")
        num_held_out = len(readable) // HELD_OUT
        held_out += readable[:num_held_out]
        training += readable[num_held_out:]
    if not training:
        reasons = "".join(f"; {line}" for line in unreadable[:1])
        raise DataError(f"no readable pictures in {folder}/0 to {folder}/9{reasons}")
    return Extra(_examples(training), _examples(held_out), tuple(unreadable))


def join(training: Examples, extra: Extra) -> Examples:
    """Append own images to others, each as often as it takes to be seen at all."""
    own = extra.training
    copies = round(_WEIGHT * len(training.labels) / len(own.labels))
    copies = min(_MAX_COPIES, max(1, copies))
    return Examples(
        np.concatenate([training.images, np.tile(own.images, (copies, 1))]),
        np.concatenate([training.labels, np.tile(own.labels, copies)]),
    )


def _examples(labelled: list[_Labelled]) -> Examples:
    images = np.array([image for image, _ in labelled], np.uint8).reshape(-1, SIDE * SIDE)
    return Examples(images, np.array([label for _, label in labelled], np.uint8))


def _by_digit(folder: Path) -> dict[int, list[_Picture]]:
    """List the files of each digit by their digests, each content once.

    Raises:
        DataError: a content has two labels.
    """
    seen: dict[str, _Picture] = {}
    for picture in _files(folder):
        other = seen.setdefault(picture.digest, picture)
        if other.label != picture.label:
            raise DataError(f"the same picture has two labels: {other.path} and {picture.path}")
    return {
        digit: [each for _, each in sorted(seen.items()) if each.label == digit]
        for digit in range(10)
    }


def _files(folder: Path) -> Iterator[_Picture]:
    for digit in range(10):
        inside = folder / str(digit)
        for path in sorted(inside.iterdir()) if inside.is_dir() else ():
            if path.is_file() and not path.name.startswith("."):
                yield _Picture(hashlib.sha256(path.read_bytes()).hexdigest(), path, digit)


def read(path: Path) -> Images:
    """Read a picture as an image, as the server will read its like.

    Returns:
        (784,) uint8, 0 = background, 255 = ink.

    Raises:
        ValueError: it can't be read; the text says why.
        DataError: Pillow or SciPy is missing.
    """
    # The one place where training uses serving's code: an image that is normalized otherwise than
    # those to be classified would teach the wrong thing.
    from serving.digits.pictures.reader import from_picture
    from serving.errors import ConfigurationError, RequestError

    try:
        image = from_picture(path)
    except RequestError as err:
        raise ValueError(str(err)) from err
    except ConfigurationError as err:
        raise DataError(str(err)) from err
    return image.reshape(-1)
