"""Runs rows of several requests at once, and finds the guilty request if that fails."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from serving.batching.request import Answer, Model, Request
from serving.predictions import ClassNumbers, class_numbers

Piece = tuple[Request, int, int]
"""A request, the first of its rows to run, and their number."""


@dataclass(slots=True, eq=False)
class Batch:
    """Rows of requests for one model that run at once."""

    model: Model
    pieces: list[Piece]
    """In the order of the rows."""
    started_s: float
    finished_s: float = 0.0
    digits: ClassNumbers = b""
    """The class number of each row, once it has run."""
    probabilities: bytes = b""
    """Little-endian float32, one for each row and class, once it has run."""

    @property
    def num_rows(self) -> int:
        """The number of images."""
        return len(self.digits)

    def run(self) -> None:
        """Run the rows; raises what the model raises."""
        pixels = [request.rows(first, rows) for request, first, rows in self.pieces]
        joined = pixels[0] if len(pixels) == 1 else b"".join(pixels)
        num_rows = sum(rows for _, _, rows in self.pieces)
        probabilities = self.model.classify(np.frombuffer(joined, np.uint8).reshape(num_rows, -1))
        self.digits = class_numbers(probabilities)
        self.probabilities = probabilities.tobytes()

    def finish(self) -> list[tuple[Request, Answer]]:
        """Give the rows' outcome to their requests; called under the batcher's lock.

        Returns:
            The answers that are now complete; the caller `deliver`s them.
        """
        answered = []
        row, row_bytes = 0, len(self.probabilities) // self.num_rows
        for request, first, rows in self.pieces:
            if not request.settled:
                end = row + rows
                some = self.probabilities[row * row_bytes : end * row_bytes]
                answer = request.finish(first, self.digits[row:end], some, self)
                if answer is not None:
                    answered.append((request, answer))
            row += rows
        # Answers refer to the batch. If it referred to their requests, this cycle would keep both
        # until a garbage collection: hundreds of megabytes of large requests.
        self.pieces = []
        return answered


def run_pieces(
    pieces: list[Piece], clock: Callable[[], float]
) -> Iterator[tuple[Batch, BaseException | None]]:
    """Run the rows that a runner has taken: at once, or once for each model after a swap.

    If a run fails, its halves are run, until the request is known whose images make runs fail.

    Yields:
        Each batch that has run, and None; each request whose images fail, as its own batch, and
        the error.
    """
    started_s = clock()
    models = dict.fromkeys(request.model for request, _, _ in pieces)
    parts = [[piece for piece in pieces if piece[0].model is model] for model in reversed(models)]
    while parts:
        part = parts.pop()
        model = part[0][0].model
        assert model is not None, "never queued"
        batch = Batch(model, part, started_s)
        try:
            batch.run()
        except BaseException as err:  # any error ends these requests, never the thread
            if len(part) == 1:
                yield batch, err
                continue
            waiting = [piece for piece in part if not piece[0].settled]
            middle = (len(waiting) + 1) // 2
            parts += [half for half in (waiting[middle:], waiting[:middle]) if half]
        else:
            batch.finished_s = clock()
            yield batch, None
