"""The outcome of a run: its outputs, for all calls that it answers, and when it was."""

from array import array
from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from serving.tensors import BYTE_CLASSES, ClassNumbers, Probabilities, Signature

Ran = tuple[float, float, str, str, int]
"""A run: start and end in monotonic seconds, the model's name, its version, and rows."""
NEVER: Ran = (0.0, 0.0, "", "", 0)


class Result:
    """The outputs of one run, for all calls that it answers."""

    __slots__ = ("classes", "finished_s", "num_rows", "outputs", "rows", "signature", "started_s",
                 "version")  # fmt: skip

    def __init__(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        num_rows: int,
        version: str,
        signature: Signature | None,
        started_s: float,
        finished_s: float,
    ) -> None:
        self.outputs = outputs
        self.num_rows = num_rows
        self.version = version
        self.signature = signature
        self.started_s = started_s
        self.finished_s = finished_s
        self.rows = b""
        """Of a classifier the bytes of the probabilities: little-endian float32, row after row."""
        self.classes: ClassNumbers | None = None
        """Of a classifier the most probable class of each row."""
        if signature is not None:
            self.rows, self.classes = outputs[0].tobytes(), class_numbers(outputs[0])

    def part(self, at: int, num_rows: int) -> Sequence[npt.NDArray[Any]]:
        """Return the outputs for some rows; all of them for a call that ran alone."""
        if num_rows == self.num_rows:
            return self.outputs
        return [output[at : at + num_rows] for output in self.outputs]


def class_numbers(probabilities: Probabilities) -> ClassNumbers:
    """Return the number of the most probable class of each row, fit for a response."""
    numbers = probabilities.argmax(axis=1).tolist()
    return bytes(numbers) if probabilities.shape[1] <= BYTE_CLASSES else array("I", numbers)
