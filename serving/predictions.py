"""What a classification answers with: the same object in process and over the network."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import numpy.typing as npt

NUM_CLASSES = 10
ROW_BYTES = 4 * NUM_CLASSES
"""One image's probabilities as they travel: ten little-endian float32."""

Digits = npt.NDArray[np.uint8]
Probabilities = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """The answers for N images, in the order of the images."""

    digits: Digits
    """(N,) uint8, 0 to 9: the most probable class of each image."""
    probabilities: Probabilities
    """(N, 10) float32; each row sums to 1."""
    model_version: str
    """The version that answered, such as "3"."""

    @classmethod
    def of(cls, probabilities: Probabilities, model_version: str) -> Self:
        """Derive the digits from (N, 10) float32 probabilities; a tie goes to the lower digit."""
        return cls(probabilities.argmax(axis=1).astype(np.uint8), probabilities, model_version)

    @classmethod
    def concatenate(cls, parts: "Sequence[Predictions]") -> Self:
        """Join the answers to consecutive images; the version is the last one's."""
        return cls(
            np.concatenate([part.digits for part in parts]),
            np.concatenate([part.probabilities for part in parts]),
            parts[-1].model_version,
        )

    def __len__(self) -> int:
        return len(self.digits)
