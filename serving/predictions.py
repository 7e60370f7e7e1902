"""The answer to a classification: the same object in process and over the network."""

from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, Self, TypeAlias, overload

import numpy as np
import numpy.typing as npt

Digits = npt.NDArray[np.unsignedinteger]
Probabilities = npt.NDArray[np.float32]
ClassNumbers: TypeAlias = "bytes | bytearray | array[int]"
"""Digits inside the server: bytes where these hold every class, else C's unsigned ints."""

_BYTE = np.dtype(np.uint8)
_BYTE_CLASSES = 256
"""The most classes whose numbers fit into a byte."""
_MAX_PRINTED = 8
"""Predictions that `repr` prints."""


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

    def times(self, factors: npt.ArrayLike) -> Self:
        """Multiply each image's probabilities by a factor, for images that may have no class."""
        column = np.asarray(factors, np.float32).reshape(-1, 1)
        return replace(self, probabilities=self.probabilities * column)

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
                self.digits[index], self.probabilities[index],
                self.model_version, self.class_labels,
            )  # fmt: skip
        digit = int(self.digits[index])
        return Prediction(digit, float(self.probabilities[index, digit]))

    def __iter__(self) -> Iterator[Prediction]:
        digits = self.digits.tolist()
        certain = self.probabilities[np.arange(len(digits)), self.digits].tolist()
        return map(Prediction, digits, certain)

    def __repr__(self) -> str:
        first = self[:_MAX_PRINTED]
        pairs = zip(first.labels, first, strict=True)
        texts = [f"{label} ({each.probability:.1%})" for label, each in pairs]
        num_left = len(self) - len(texts)
        more = [f"... {num_left} more"] if num_left else []
        return f"<Predictions of version {self.model_version}: {', '.join(texts + more)}>"


def digit_type(num_classes: int) -> npt.DTypeLike:
    """Return the smallest unsigned type that holds the number of every class."""
    return _BYTE if num_classes <= _BYTE_CLASSES else np.min_scalar_type(num_classes - 1)


def class_numbers(probabilities: Probabilities) -> ClassNumbers:
    """Return the number of the most probable class of each row, fit for a response."""
    numbers = probabilities.argmax(axis=1).tolist()
    return bytes(numbers) if probabilities.shape[1] <= _BYTE_CLASSES else array("I", numbers)
