"""A request that waits for its outcome, the batch it runs in, and the answer that comes back."""

import logging
import math
from array import array
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from serving.errors import DigitsError
from serving.images import Images
from serving.predictions import ClassNumbers, Probabilities
from serving.signature import Signature

if TYPE_CHECKING:
    from serving.batching.fair_queue import Backlog

_log = logging.getLogger(__name__)


class Model(Protocol):
    """What a batch runs on."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    @property
    def signature(self) -> Signature:
        """The shape of its images, and its classes."""

    def run(self, images: Images) -> Probabilities:
        """Classify (N, pixels) uint8 images into (N, classes) float32 probabilities."""


class Request:
    """Images that wait for one outcome: an answer, an error, or that their caller leaves."""

    __slots__ = ("_answer", "_rows_left", "arrived_s", "backlog", "caller", "deadline_s",
                 "num_rows", "on_outcome", "pixels", "rows_taken", "settled")  # fmt: skip

    def __init__(
        self, pixels: bytes | memoryview, num_rows: int, *,
        caller: Hashable = None, deadline_s: float = math.inf,
    ) -> None:  # fmt: skip
        """Wrap images.

        Args:
            pixels: the bytes of all images.
            num_rows: how many images.
            caller: whose turn it takes; callers take turns.
            deadline_s: on the batcher's clock.
        """
        self.pixels = pixels
        self.num_rows = self._rows_left = num_rows
        self.caller = caller
        self.deadline_s = deadline_s
        self.arrived_s = 0.0
        self.rows_taken = 0
        self.settled = False
        """Whether it has its outcome, or has been cancelled."""
        self.backlog: Backlog | None = None
        """Where it waits, or waited."""
        self.on_outcome: OnOutcome = _ignore
        self._answer: Answer | None = None

    def rows(self, first: int, num: int) -> bytes | memoryview:
        """Return the pixels of some rows."""
        if num == self.num_rows:
            return self.pixels
        image_bytes = len(self.pixels) // self.num_rows
        return memoryview(self.pixels)[first * image_bytes : (first + num) * image_bytes]

    def finish(
        self, first: int, digits: ClassNumbers, probabilities: bytes, batch: "Batch"
    ) -> "Answer | None":
        """Take the outcome of the rows from `first` on; called under the batcher's lock.

        Returns:
            The answer, once it is whole; whoever called `deliver`s it.
        """
        self._rows_left -= len(digits)
        if len(digits) == self.num_rows:
            answer = Answer(digits, probabilities, batch, self.arrived_s)
        else:
            end, row_bytes = first + len(digits), len(probabilities) // len(digits)
            answer = self._answer = self._answer or Answer(
                _zeros(self.num_rows, digits), bytearray(self.num_rows * row_bytes), batch,
                self.arrived_s,
            )  # fmt: skip
            memoryview(answer.digits)[first:end] = digits
            memoryview(answer.probabilities)[first * row_bytes : end * row_bytes] = probabilities
            answer.batch = batch
        if self._rows_left:
            return None
        self.settled = True
        self._answer = None
        self.pixels = b""  # who waits for the answer to be read holds the request, not its images
        return answer

    def deliver(self, outcome: "Outcome") -> None:
        """Hand the outcome over, once the request is settled."""
        on_outcome = self.on_outcome
        self.release()
        try:
            on_outcome(outcome)
        except Exception:  # its caller's trouble must not end a runner's thread
            _log.exception("failed to deliver an outcome")

    def release(self) -> None:
        """Drop what takes the outcome, which often holds the request in turn.

        Else both, and the images, would wait for the garbage collector.
        """
        self.on_outcome = _ignore


def _ignore(outcome: "Outcome") -> None:
    pass


def _zeros(number: int, like: ClassNumbers) -> "bytearray | array[int]":
    """Make room for some class numbers of the same kind."""
    return array("I", [0]) * number if isinstance(like, array) else bytearray(number)


@dataclass(slots=True, eq=False)
class Answer:
    """The answer to one request, as bytes that can go on the wire as they are."""

    digits: ClassNumbers
    """One for each image, from 0."""
    probabilities: bytes | bytearray
    """N x classes little-endian float32."""
    batch: "Batch"
    """The (last) run that this came from: its model and its timings."""
    arrived_s: float
    """When the request was queued, on the batcher's clock."""


Outcome = Answer | DigitsError
OnOutcome = Callable[[Outcome], None]
"""Takes the outcome of a request: called at most once, on any thread, perhaps under the batcher's
lock, so it must return at once and never call the batcher."""


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
        """Put the rows together: (num_rows, pixels) uint8, read-only."""
        pixels = [request.rows(first, rows) for request, first, rows in self.pieces]
        joined = pixels[0] if len(pixels) == 1 else b"".join(pixels)
        return np.frombuffer(joined, np.uint8).reshape(self.num_rows, -1)

    def halves(self) -> list["Batch"]:
        """Split a failed batch in two, without the requests that are settled.

        Returns:
            Nothing if at most one request is left.
        """
        self.pieces = [piece for piece in self.pieces if not piece[0].settled]
        middle = len(self.pieces) // 2
        return [
            Batch(self.model, pieces, sum(rows for _, _, rows in pieces), self.started_s)
            for pieces in (self.pieces[:middle], self.pieces[middle:])
            if middle
        ]

    def finish(self, digits: ClassNumbers, probabilities: bytes) -> list[tuple[Request, Answer]]:
        """Hand the rows of the finished run to their requests.

        Args:
            digits: one class number a row.
            probabilities: little-endian float32, one for each class and row.

        Returns:
            The answers that are now whole; whoever called `deliver`s them.
        """
        answered = []
        row, row_bytes = 0, len(probabilities) // len(digits)
        for request, first, rows in self.pieces:
            if not request.settled:
                end = row + rows
                some = probabilities[row * row_bytes : end * row_bytes]
                answer = request.finish(first, digits[row:end], some, self)
                if answer is not None:
                    answered.append((request, answer))
            row += rows
        # Answers hold the batch. If it held their requests, both would wait for the garbage
        # collector: hundreds of megabytes where requests are large.
        self.pieces = []
        return answered


Observe = Callable[
    [float, float, Sequence[tuple[float, str | None, int]], ClassNumbers, bytes], None
]
"""Takes note of a run that succeeded: see `Metrics.observe_run`."""
