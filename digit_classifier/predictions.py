"""Images in, predictions out: the same objects in process and over the network."""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

from serving.errors import InvalidRequest, TooLarge
from serving.tensors import BYTE_CLASSES, Images, Probabilities, Signature, to_array

_MAX_SHOWN_CHARACTERS = 80
"""Texts that come from a caller's objects are cut to this length in errors."""

_UINT8 = np.dtype(np.uint8)

DIGITS = Signature((28, 28), 10)
"""The signature of digits, and of servers that name none."""
_MAX_PRINTED = 8
"""Predictions that `repr` prints."""
Digits = npt.NDArray[np.unsignedinteger]


def as_images(array: npt.ArrayLike, signature: Signature, max_images: int | None = None) -> Images:
    """Check an array of images and flatten it, without copying where the memory allows.

    Args:
        array: (N, pixels) or (N, *input_shape) uint8, N >= 1.
        signature: of the model.
        max_images: the largest N accepted; None for no limit.

    Returns:
        (N, pixels) uint8, C-contiguous.

    Raises:
        InvalidRequest: not an array, wrong dtype or shape, no images, or more than max_images.
    """
    size, shape = signature.image_bytes, signature.input_shape
    if (  # the usual case: half a microsecond instead of one
        type(array) is np.ndarray
        and array.dtype is _UINT8
        and (array.shape[1:] == (size,) or array.shape[1:] == shape)
        and 0 < len(array) <= (max_images or sys.maxsize)
        and array.flags.c_contiguous
    ):
        return array if array.ndim == 2 else array.reshape(len(array), size)
    images = as_pixels(array)
    if images.shape[1:] != (size,):
        if images.shape[1:] != shape:
            sizes = ", ".join(map(str, shape))
            also = f" or (N, {sizes})" if len(shape) > 1 else ""
            raise InvalidRequest(f"expected images of shape (N, {size}){also}, got {images.shape}")
        images = images.reshape(len(images), size)
    check_count(len(images), max_images)
    return np.ascontiguousarray(images)


def as_pixels(array: npt.ArrayLike) -> Images:
    """Check the images of any model: they are an array of uint8.

    Raises:
        InvalidRequest: not an array, or another dtype. Floats are refused because they may be 0..1
            or 0..255.
    """
    images = to_array(array, "an array of images")
    if images.dtype != np.uint8:
        raise InvalidRequest(
            f"expected uint8 pixels from 0 to 255, got {str(images.dtype)[:_MAX_SHOWN_CHARACTERS]}"
        )
    return images


def check_bytes(num_bytes: int, image_bytes: int, max_images: int | None) -> None:
    """Check that a number of bytes is that of 1 to max_images images (None for no limit).

    Raises:
        InvalidRequest: it is not; the text has the expected and the received value.
    """
    num_images, rest = divmod(num_bytes, image_bytes)
    if rest:
        raise InvalidRequest(f"expected N x {image_bytes} bytes of images, got {num_bytes}")
    check_count(num_images, max_images)


def check_count(num_images: int, max_images: int | None) -> None:
    """Check that a request has 1 to max_images images (None for no limit).

    Raises:
        InvalidRequest: the number is out of range; the text names it and the limit.
    """
    if num_images == 0:
        raise InvalidRequest("expected at least 1 image, got 0")
    if max_images is not None and num_images > max_images:
        raise TooLarge(f"expected at most {max_images} images in a request, got {num_images}")


class Prediction(NamedTuple):
    """The answer for one image, in Python's own types, which `json.dumps` accepts."""

    digit: int
    """The number of its most probable class: for digits 0 to 9."""
    probability: float
    """The probability of that digit, 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Predictions:
    """The answers for N images, in the order of the images: a sequence of `Prediction`."""

    digits: Digits
    """(N,): the number of the most probable class of each image, from 0. uint8 for up to 256
    classes, so for digits, else the smallest unsigned type that holds them."""
    probabilities: Probabilities
    """(N, classes) float32, for digits (N, 10); each row sums to 1."""
    model_version: str
    """The version that answered, such as "3"."""
    class_labels: tuple[str, ...] = ()
    """The name of each class; none: its number."""

    @classmethod
    def of(
        cls, probabilities: Probabilities, model_version: str, class_labels: tuple[str, ...] = ()
    ) -> Self:
        """Make predictions from (N, classes) float32; a tie goes to the lower digit."""
        digits = probabilities.argmax(1).astype(digit_type(probabilities.shape[1]))
        return cls(digits, probabilities, model_version, class_labels)

    @property
    def labels(self) -> list[str]:
        """The name of each image's class: "7" for the digit 7."""
        names = self.class_labels
        return [names[digit] if names else str(digit) for digit in self.digits.tolist()]

    @classmethod
    def concatenate(cls, parts: "Sequence[Predictions]") -> Self:
        """Join the answers to consecutive images; the version is the last one's."""
        return cls(
            np.concatenate([part.digits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            parts[-1].model_version,
            parts[-1].class_labels,
        )

    def to_dicts(self) -> list[dict[str, int | float]]:
        """Return `[{"digit": 7, "probability": 0.99}, ...]`, which `json.dumps` accepts."""
        return [prediction._asdict() for prediction in self]

    def __len__(self) -> int:
        return len(self.digits)

    @overload
    def __getitem__(self, index: int) -> Prediction: ...
    @overload
    def __getitem__(self, index: slice) -> Self: ...
    def __getitem__(self, index: int | slice) -> "Prediction | Self":
        if isinstance(index, slice):
            return type(self)(
                self.digits[index],
                self.probabilities[index],
                self.model_version,
                self.class_labels,
            )
        digit = int(self.digits[index])
        return Prediction(digit, float(self.probabilities[index, digit]))

    def __iter__(self) -> Iterator[Prediction]:
        digits = self.digits.tolist()
        confidence = self.probabilities[np.arange(len(digits)), self.digits].tolist()
        return map(Prediction, digits, confidence)

    def __repr__(self) -> str:
        first = self[:_MAX_PRINTED]
        pairs = zip(first.labels, first, strict=True)
        texts = [f"{label} ({each.probability:.1%})" for label, each in pairs]
        num_left = len(self) - len(texts)
        more = [f"... {num_left} more"] if num_left else []
        return f"<Predictions of version {self.model_version}: {', '.join(texts + more)}>"


def digit_type(num_classes: int) -> npt.DTypeLike:
    """Return the smallest unsigned type that holds the number of every class."""
    return _UINT8 if num_classes <= BYTE_CLASSES else np.min_scalar_type(num_classes - 1)
