"""The answer to a classification: the same object in process and over the network."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self, overload

import numpy as np
import numpy.typing as npt

NUM_CLASSES = 10
ROW_BYTES = 4 * NUM_CLASSES
"""Bytes of one image's probabilities on the wire: ten little-endian float32."""

Digits = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


_MAX_PRINTED = 8
"""Predictions that `repr` prints."""


class Prediction(NamedTuple):
    """The answer for one image, in Python's own types, which `json.dumps` accepts."""

    digit: int
    """0 to 9."""
    probability: float
    """The probability of that digit, 0 to 1."""


@dataclass(frozen=True, slots=True, eq=False, repr=False)
class Predictions:
    """The answers for N images, in the order of the images: a sequence of `Prediction`."""

    digits: Digits
    """(N,) uint8, 0 to 9: the most probable class of each image."""
    probabilities: Probabilities
    """(N, 10) float32; each row sums to 1."""
    model_version: str
    """The version that answered, such as "3"."""

    @classmethod
    def of(cls, probabilities: Probabilities, model_version: str) -> Self:
        """Make predictions from (N, 10) float32 probabilities; a tie goes to the lower digit."""
        return cls(probabilities.argmax(axis=1).astype(np.uint8), probabilities, model_version)

    @classmethod
    def concatenate(cls, parts: "Sequence[Predictions]") -> Self:
        """Join the answers to consecutive images; the version is the last one's."""
        return cls(
            np.concatenate([part.digits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            parts[-1].model_version,
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
            return type(self)(self.digits[index], self.probabilities[index], self.model_version)
        digit = int(self.digits[index])
        return Prediction(digit, float(self.probabilities[index, digit]))

    def __iter__(self) -> Iterator[Prediction]:
        digits = self.digits.tolist()
        certain = self.probabilities[np.arange(len(digits)), self.digits].tolist()
        return map(Prediction, digits, certain)

    def __repr__(self) -> str:
        first = [f"{digit} ({probability:.1%})" for digit, probability in self[:_MAX_PRINTED]]
        num_left = len(self) - len(first)
        more = [f"... {num_left} more"] if num_left else []
        return f"<Predictions of version {self.model_version}: {', '.join(first + more)}>"
