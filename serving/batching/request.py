"""A request that waits for its outcome, and its answer."""

import logging
import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from functools import reduce
from operator import add
from typing import Protocol

import numpy as np

from serving.errors import DigitsError
from serving.images import Images
from serving.predictions import ClassNumbers, Predictions, Probabilities
from serving.signature import Signature

_log = logging.getLogger(__name__)


class Model(Protocol):
    """A model as the batcher sees it."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    @property
    def signature(self) -> Signature | None:
        """The shape of its images, and its classes."""

    def classify(self, images: Images) -> Probabilities:
        """Classify (N, pixels) uint8 images into (N, classes) float32 probabilities."""


class Run(Protocol):
    """A run of a model, which answered this request and perhaps others."""

    model: Model
    started_s: float
    finished_s: float

    @property
    def num_rows(self) -> int:
        """The number of images."""


@dataclass(slots=True, eq=False)
class Answer:
    """The answer to one request, as bytes that go on the wire unchanged."""

    digits: ClassNumbers
    """One for each image, from 0."""
    probabilities: bytes
    """N x classes little-endian float32."""
    batch: Run
    """The last run of the request: its model and timings."""
    arrived_s: float
    """When the request was queued, on the batcher's clock."""

    def predictions(self) -> Predictions:
        """Return it as arrays, without copying."""
        rows = np.frombuffer(self.probabilities, "<f4").reshape(len(self.digits), -1)
        model = self.batch.model
        labels = model.signature.labels if model.signature else ()
        return Predictions.of(rows, model.version, labels)


Outcome = Answer | DigitsError
OnOutcome = Callable[[Outcome], None]
"""Takes the outcome of a request. Called at most once, on any thread, perhaps under the batcher's
lock, so it must return at once and must not call the batcher."""


class Request:
    """Images that wait for one outcome: an answer, an error, or a cancellation."""

    __slots__ = ("_parts", "_rows_left", "arrived_s", "caller", "deadline_s", "model",
                 "num_rows", "on_outcome", "pixels", "rows_taken", "settled")  # fmt: skip

    def __init__(
        self, pixels: bytes | memoryview, num_rows: int, *,
        caller: Hashable = None, deadline_s: float = math.inf,
    ) -> None:  # fmt: skip
        """Wrap images.

        Args:
            pixels: the bytes of all images.
            num_rows: the number of images.
            caller: who sent it; callers take turns.
            deadline_s: the deadline on the batcher's clock.
        """
        self.pixels = pixels
        self.num_rows = self._rows_left = num_rows
        self.caller = caller
        self.deadline_s = deadline_s
        self.arrived_s = 0.0
        self.rows_taken = 0
        self.settled = False
        """Whether it has its outcome or was cancelled."""
        self.model: Model | None = None
        """The model that it runs on, once it is queued."""
        self.on_outcome: OnOutcome = ignore
        self._parts: list[tuple[int, ClassNumbers, bytes]] = []
        """First row, digits and probabilities of the parts that have run."""

    def rows(self, first: int, num: int) -> bytes | memoryview:
        """Return the pixels of some rows."""
        if num == self.num_rows:
            return self.pixels
        image_bytes = len(self.pixels) // self.num_rows
        return memoryview(self.pixels)[first * image_bytes : (first + num) * image_bytes]

    def finish(
        self, first: int, digits: ClassNumbers, probabilities: bytes, batch: Run
    ) -> Answer | None:
        """Take the outcome of the rows from `first` on; called under the batcher's lock.

        Returns:
            The answer, once it is complete; the caller `deliver`s it.
        """
        self._parts.append((first, digits, probabilities))
        self._rows_left -= len(digits)
        if self._rows_left:
            return None
        self.settled = True
        self.pixels = b""  # the request may live until its answer is read; its images need not
        _, digits_of_parts, rows_of_parts = zip(*sorted(self._parts), strict=True)
        self._parts = []
        digits = reduce(add, digits_of_parts)
        return Answer(digits, b"".join(rows_of_parts), batch, self.arrived_s)

    def deliver(self, outcome: Outcome) -> None:
        """Deliver the outcome of the settled request."""
        # What takes the outcome often refers to the request: this cycle would keep both, and the
        # images, until a garbage collection.
        on_outcome, self.on_outcome = self.on_outcome, ignore
        try:
            on_outcome(outcome)
        except Exception:  # an error of the caller must not end a runner's thread
            _log.exception("failed to deliver an outcome")


def ignore(outcome: Outcome) -> None:
    """Take the outcome of a request that nobody waits for."""
