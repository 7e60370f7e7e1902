"""A request that waits for its outcome, the batch it runs in, and the answer that comes back."""

import math
from collections.abc import Hashable
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serving.errors import DigitsError
from serving.images import IMAGE_BYTES, Images
from serving.predictions import NUM_CLASSES, Probabilities

ROW_BYTES = 4 * NUM_CLASSES
"""One image's probabilities as they travel: ten little-endian float32."""


class Model(Protocol):
    """What a batch runs on."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    def run(self, images: Images) -> Probabilities:
        """Classify (N, 784) uint8 images into (N, 10) float32 probabilities."""


class Home(Protocol):
    """Where a request waits, for as long as some of its rows do."""

    def cancel(self, request: "Request") -> bool:
        """Settle it without an outcome; False if it had one already."""

    def fail(self, request: "Request", error: DigitsError) -> None:
        """Reject it, unless it had its outcome already."""


class Request:
    """Images that wait for one outcome; subclasses say how that outcome travels back.

    `resolve` and `reject` are called at most once, on any thread, perhaps under the batcher's lock:
    they must return at once and never call the batcher.
    """

    __slots__ = ("answer", "arrived_s", "caller", "deadline_s", "home", "num_rows", "pixels",
                 "rows_left", "rows_taken", "settled")  # fmt: skip
    method: str | None = None
    """The gRPC method to count an answer under; None where somebody else counts it."""

    def __init__(
        self, pixels: bytes | memoryview, *, caller: Hashable = None, deadline_s: float = math.inf
    ) -> None:
        """Wrap N x 784 bytes; `deadline_s` is on the batcher's clock."""
        self.pixels = pixels
        self.num_rows = self.rows_left = len(pixels) // IMAGE_BYTES
        self.caller = caller
        self.deadline_s = deadline_s
        self.arrived_s = 0.0
        self.rows_taken = 0
        self.settled = False
        self.answer: Answer | None = None
        self.home: Home | None = None

    def gather(self, first: int, digits: bytes, probabilities: bytes, batch: "Batch") -> "Answer":
        """Add the rows from `first` on to the answer of a request that was split."""
        if self.answer is None:
            self.answer = Answer(
                bytearray(self.num_rows), bytearray(self.num_rows * ROW_BYTES), batch
            )
        end = first + len(digits)
        memoryview(self.answer.digits)[first:end] = digits
        memoryview(self.answer.probabilities)[first * ROW_BYTES : end * ROW_BYTES] = probabilities
        self.answer.batch = batch
        return self.answer

    def resolve(self, answer: "Answer") -> None:
        """Take the answer to all rows."""
        raise NotImplementedError

    def reject(self, error: DigitsError) -> None:
        """Take the reason why there will be no answer."""
        raise NotImplementedError


@dataclass(slots=True, eq=False)
class Answer:
    """The answer to one request, as bytes that can go on the wire as they are."""

    digits: bytes | bytearray
    """One byte an image, 0 to 9."""
    probabilities: bytes | bytearray
    """N x 10 little-endian float32."""
    batch: "Batch"
    """The (last) run that this came from: its model and its timings."""


Answered = tuple[Request, Answer]


@dataclass(slots=True, eq=False)
class Batch:
    """Rows of one or more requests, to be run at once."""

    model: Model
    pieces: list[tuple[Request, int, int]] = field(default_factory=list)
    """(request, first row, number of rows), in the order of the rows."""
    num_rows: int = 0
    started_s: float = 0.0
    finished_s: float = 0.0

    def images(self) -> Images:
        """Put the rows together: (num_rows, 784) uint8, read-only."""
        pixels = [
            request.pixels
            if rows == request.num_rows
            else memoryview(request.pixels)[first * IMAGE_BYTES : (first + rows) * IMAGE_BYTES]
            for request, first, rows in self.pieces
        ]
        joined = pixels[0] if len(pixels) == 1 else b"".join(pixels)
        return np.frombuffer(joined, np.uint8).reshape(self.num_rows, IMAGE_BYTES)

    def halves(self) -> tuple["Batch", "Batch"]:
        """Split between requests, to find out which of them makes the run fail."""
        middle = len(self.pieces) // 2
        first, second = (
            Batch(self.model, pieces, sum(rows for _, _, rows in pieces), self.started_s)
            for pieces in (self.pieces[:middle], self.pieces[middle:])
        )
        return first, second

    def finish(self, digits: bytes, probabilities: bytes) -> list[Answered]:
        """Hand the rows of the finished run to their requests.

        Args:
            digits: one byte a row, 0 to 9.
            probabilities: ten little-endian float32 a row.

        Returns:
            The requests that are now answered whole; the caller resolves them.
        """
        answered = []
        row = 0
        for request, first, rows in self.pieces:
            if not request.settled:
                digit_bytes = digits[row : row + rows]
                row_bytes = probabilities[row * ROW_BYTES : (row + rows) * ROW_BYTES]
                if rows == request.num_rows:
                    answer = Answer(digit_bytes, row_bytes, self)
                else:
                    answer = request.gather(first, digit_bytes, row_bytes, self)
                request.rows_left -= rows
                if not request.rows_left:
                    request.settled = True
                    answered.append((request, answer))
            row += rows
        return answered
