"""Samples of images that an export is checked on, and the labels of its classes."""

import zipfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from training.data.mnist import Images
from training.errors import UnusableInput

MAX_LABEL = 100
"""Characters of a label: serving refuses longer ones."""


class Samples(NamedTuple):
    """Images, and their labels if those are known."""

    images: Images
    """(N, pixels) uint8, row-major."""
    labels: npt.NDArray[np.integer[Any]] | None
    """(N,) numbers of classes, from 0."""

    def odd(self) -> "Samples":
        """Return the samples at odd places, half of them."""
        return Samples(self.images[1::2], None if self.labels is None else self.labels[1::2])


def share_of_commonest(labels: npt.NDArray[np.integer[Any]]) -> float:
    """Return the accuracy of a model that always answers the most frequent class."""
    return float(np.unique(labels, return_counts=True)[1].max()) / len(labels)


def load(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of an NPZ file, by name.

    Raises:
        UnusableInput: the file can't be read.
    """
    try:
        with np.load(path) as file:
            return dict(file)
    except OSError as err:
        raise UnusableInput(f"cannot read {path}: {err.strerror or err}") from err
    except (EOFError, ValueError, TypeError, zipfile.BadZipFile) as err:
        raise UnusableInput(f"cannot read {path}: expected an NPZ file of arrays") from err


def are_images(path: Path) -> bool:
    """Return whether a file is to be read as images; any that can't be read is."""
    try:
        return load(path).keys() <= {"images", "labels"}
    except UnusableInput:  # `read` says why
        return True


def read(path: Path, num_classes: int) -> tuple[Samples, tuple[int, ...]]:
    """Read an NPZ file with `images` and optionally `labels`.

    Args:
        path: the file; `images` is (N, ...) uint8, or whole numbers of 0 to 255 in another type,
            `labels` (N,) integers.
        num_classes: the limit of the labels.

    Returns:
        The samples, and the shape of one image in the file.

    Raises:
        UnusableInput: the file can't be read, or an array in it is missing or unfit.
    """
    arrays = load(path)
    images, labels = arrays.get("images"), arrays.get("labels")
    if images is None:
        raise UnusableInput(f"{path}: expected an array `images`, got {sorted(arrays)}")
    if images.dtype.kind in "iuf":
        with np.errstate(invalid="ignore"):
            whole = images.astype(np.uint8)
        images = whole if np.array_equal(whole, images) else images
    if images.dtype != np.uint8 or images.ndim < 2 or not len(images):
        raise UnusableInput(
            f"{path}: expected images (N, ...) uint8, got {images.shape} {images.dtype}; "
            "servers take whole numbers of 0 to 255, and keras.layers.Rescaling at the model's "
            "front can map them to other numbers"
        )
    if not images.any():
        raise UnusableInput(f"{path}: every pixel is 0")
    if labels is not None:
        _check_labels(path, labels, len(images), num_classes)
    return Samples(images.reshape(len(images), -1), labels), images.shape[1:]


def _check_labels(path: Path, labels: npt.NDArray[Any], num: int, num_classes: int) -> None:
    """Raise UnusableInput unless there is the number of a class for each image."""
    if labels.shape != (num,) or not np.issubdtype(labels.dtype, np.integer):
        raise UnusableInput(
            f"{path}: expected labels ({num},) integers, got {labels.shape} {labels.dtype}"
        )
    if labels.min() < 0 or labels.max() >= num_classes:
        raise UnusableInput(
            f"{path}: expected labels from 0 to {num_classes - 1}, "
            f"got {labels.min()} to {labels.max()}"
        )


def read_labels(path: Path, num_classes: int) -> tuple[str, ...]:
    """Read a text for each class, one a line.

    Raises:
        UnusableInput: the file can't be read, or has other labels than one for each class.
    """
    try:
        labels = path.read_text("utf-8").splitlines()
    except (OSError, ValueError) as err:
        raise UnusableInput(f"cannot read {path}: {err}") from err
    fit = {label for label in labels if label.isprintable() and 0 < len(label) <= MAX_LABEL}
    if not len(fit) == len(labels) == num_classes:
        raise UnusableInput(
            f"{path}: expected {num_classes} different labels of 1 to {MAX_LABEL} printable "
            f"characters, one a line, got {len(fit)} in {len(labels)} lines"
        )
    return tuple(labels)
