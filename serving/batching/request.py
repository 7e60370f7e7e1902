"""A request that waits for its outcome, the batch it runs in, and the answer that comes back."""

import logging
import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

import numpy as np

from serving.errors import DigitsError
from serving.images import IMAGE_BYTES, Images
from serving.predictions import ROW_BYTES, Probabilities

if TYPE_CHECKING:
    from serving.batching.fair_queue import Backlog

_log = logging.getLogger(__name__)


class Model(Protocol):
    """What a batch runs on."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    def run(self, images: Images) -> Probabilities:
        """Classify (N, 784) uint8 images into (N, 10) float32 probabilities."""


class Request:
    """Images that wait for one outcome: an answer, an error, or that their caller leaves."""

    __slots__ = ("_answer", "_rows_left", "arrived_s", "backlog", "caller", "deadline_s",
                 "num_rows", "on_outcome", "pixels", "rows_taken", "settled")  # fmt: skip

    def __init__(
        self, pixels: bytes | memoryview, *, caller: Hashable = None, deadline_s: float = math.inf
    ) -> None:
        """Wrap images.

        Args:
            pixels: N x 784 bytes.
            caller: whose turn it takes; callers take turns.
            deadline_s: on the batcher's clock.
        """
        self.pixels = pixels
        self.num_rows = self._rows_left = len(pixels) // IMAGE_BYTES
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
        return memoryview(self.pixels)[first * IMAGE_BYTES : (first + num) * IMAGE_BYTES]

    def finish(
        self, first: int, digits: bytes, probabilities: bytes, batch: "Batch"
    ) -> "Answer | None":
        """Take the outcome of the rows from `first` on; called under the batcher's lock.

        Returns:
            The answer, once it is whole; whoever called `deliver`s it.
        """
        self._rows_left -= len(digits)
        if len(digits) == self.num_rows:
            answer = Answer(digits, probabilities, batch, self.arrived_s)
        else:
            answer = self._answer = self._answer or Answer(
                bytearray(self.num_rows), bytearray(self.num_rows * ROW_BYTES), batch,
                self.arrived_s,
            )  # fmt: skip
            end = first + len(digits)
            memoryview(answer.digits)[first:end] = digits
            memoryview(answer.probabilities)[first * ROW_BYTES : end * ROW_BYTES] = probabilities
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


@dataclass(slots=True, eq=False)
class Answer:
    """The answer to one request, as bytes that can go on the wire as they are."""

    digits: bytes | bytearray
    """One byte an image, 0 to 9."""
    probabilities: bytes | bytearray
    """N x 10 little-endian float32."""
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
        """Put the rows together: (num_rows, 784) uint8, read-only."""
        pixels = [request.rows(first, rows) for request, first, rows in self.pieces]
        joined = pixels[0] if len(pixels) == 1 else b"".join(pixels)
        return np.frombuffer(joined, np.uint8).reshape(self.num_rows, IMAGE_BYTES)

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

    def finish(self, digits: bytes, probabilities: bytes) -> list[tuple[Request, Answer]]:
        """Hand the rows of the finished run to their requests.

        Args:
            digits: one byte a row, 0 to 9.
            probabilities: ten little-endian float32 a row.

        Returns:
            The answers that are now whole; whoever called `deliver`s them.
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
        # Answers hold the batch. If it held their requests, both would wait for the garbage
        # collector: hundreds of megabytes where requests are large.
        self.pieces = []
        return answered


Observe = Callable[[float, float, Sequence[tuple[float, str | None, int]], bytes, bytes], None]
"""Takes note of a run that succeeded: see `Metrics.observe_run`."""
