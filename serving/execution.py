"""Runs one batch and hands out its answers; if the run fails, finds out whose rows are guilty."""

import logging
import threading
from collections.abc import Callable

from serving.errors import ModelError
from serving.requests import Batch, Observe

_log = logging.getLogger(__name__)


class Execution:
    """What happens to a batch once it is taken; many may run at once."""

    def __init__(
        self,
        lock: threading.Lock,
        clock: Callable[[], float],
        observe: Observe,
    ) -> None:
        """Share the batcher's lock, which guards the requests, its clock, and who is told."""
        self._lock = lock
        self._clock = clock
        self._observe = observe
        self.usual_s = 0.0
        """How long a run takes, of late."""

    def run(self, batch: Batch) -> None:
        """Run a batch: each of its requests that is whole then gets its outcome."""
        try:
            probabilities = batch.model.run(batch.images())
        except Exception as err:  # whatever it is, it ends these requests and never this thread
            self._bisect(batch, err)
            return
        batch.finished_s = self._clock()
        digits, rows = bytes(probabilities.argmax(axis=1).tolist()), probabilities.tobytes()
        with self._lock:
            self.usual_s += (batch.finished_s - batch.started_s - self.usual_s) / 8
            answered = batch.finish(digits, rows)
            self._observe(batch, answered, digits, rows)
        for request, answer in answered:
            try:
                request.resolve(answer)
            except Exception:  # its caller's trouble must not end this thread
                _log.exception("an answer could not be handed over")

    def _bisect(self, batch: Batch, error: Exception) -> None:
        with self._lock:
            suspects = batch.suspects()
        for half in suspects:
            self.run(half)
        if suspects or not batch.pieces:
            return
        request = batch.pieces[0][0]
        assert request.home is not None
        _log.error("a run of %d images failed", batch.num_rows, exc_info=error)
        with self._lock:
            request.home.fail(request, ModelError("the model failed on these images"))
