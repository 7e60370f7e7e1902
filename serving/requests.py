"""A request that waits for its outcome, the batch it runs in, and the answer that comes back."""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np

from serving.errors import DigitsError
from serving.images import IMAGE_BYTES, Images
from serving.predictions import ROW_BYTES, Probabilities


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

    def withdraw(self, request: "Request", key: int) -> None:
        """Take one call out of a request that holds many, unless it runs already."""

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
    is_one_call = True
    """Whether its rows are answered together."""

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

    def rows(self, first: int, num: int) -> Sequence[bytes | memoryview]:
        """Give the pixels of some rows, as pieces to be joined."""
        if num == self.num_rows:
            return (self.pixels,)
        return (memoryview(self.pixels)[first * IMAGE_BYTES : (first + num) * IMAGE_BYTES],)

    def finish(
        self, first: int, digits: bytes, probabilities: bytes, batch: "Batch"
    ) -> "Answer | None":
        """Take the outcome of the rows from `first` on; called under the batcher's lock.

        Returns:
            The answer, once it is whole; the caller resolves it.
        """
        self.rows_left -= len(digits)
        self.settled = not self.rows_left
        if len(digits) == self.num_rows:
            return Answer(digits, probabilities, batch)
        if self.answer is None:
            self.answer = Answer(
                bytearray(self.num_rows), bytearray(self.num_rows * ROW_BYTES), batch
            )
        end = first + len(digits)
        memoryview(self.answer.digits)[first:end] = digits
        memoryview(self.answer.probabilities)[first * ROW_BYTES : end * ROW_BYTES] = probabilities
        self.answer.batch = batch
        return self.answer if self.settled else None

    def singles(self, first: int, num: int) -> "Sequence[Request]":
        """Give what shares the fate of a failed run's rows: this request, if it is only one."""
        return (self,)

    def split(self, num: int) -> "Request":
        """Keep the first `num` rows if they can do without the others; give what is not kept."""
        return self

    def withdraw(self, key: int) -> bool:
        """Take out one call of many, if its row still waits; called under the batcher's lock."""
        return False

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
    first: int = 0
    """The request's row that this begins with."""
    num_calls: int = 1
    """How many calls this answers."""


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
        pixels: list[bytes | memoryview] = []
        for request, first, rows in self.pieces:
            pixels += request.rows(first, rows)
        joined = pixels[0] if len(pixels) == 1 else b"".join(pixels)
        return np.frombuffer(joined, np.uint8).reshape(self.num_rows, IMAGE_BYTES)

    def suspects(self) -> list["Batch"]:
        """Split a failed batch in two, to find out whose rows make the run fail.

        Returns:
            Nothing if there is at most one request left, which is guilty.
        """
        self.pieces = [
            (single, first, rows) if single is request else (single, 0, 1)
            for request, first, rows in self.pieces
            if not request.settled
            for single in request.singles(first, rows)
        ]
        middle = len(self.pieces) // 2
        return [
            Batch(self.model, pieces, sum(rows for _, _, rows in pieces), self.started_s)
            for pieces in (self.pieces[:middle], self.pieces[middle:])
            if middle
        ]

    def finish(self, digits: bytes, probabilities: bytes) -> list[Answered]:
        """Hand the rows of the finished run to their requests.

        Args:
            digits: one byte a row, 0 to 9.
            probabilities: ten little-endian float32 a row.

        Returns:
            The answers that are now whole; the caller resolves them.
        """
        answered = []
        row = 0
        for request, first, rows in self.pieces:
            if not request.settled:
                end = row + rows
                row_bytes = probabilities[row * ROW_BYTES : end * ROW_BYTES]
                answer = request.finish(first, digits[row:end], row_bytes, self)
                if answer is not None:
                    answered.append((request, answer))
            row += rows
        # Answers know the batch: did it know their requests, the images would wait for the garbage
        # collector, by the hundred megabytes where requests are large.
        self.pieces = []
        return answered


Observe = Callable[[Batch, list[Answered], bytes, bytes], None]
"""Takes a run that succeeded, the requests that it made whole, and what `Batch.finish` got."""
