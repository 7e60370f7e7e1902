"""Runs queued requests: batches while busy, never waits while idle.

A free runner takes all queued rows at once, up to `max_batch_size`, except those for other free
runners; what arrives meanwhile forms the next batch. So batches grow with the load, and an idle
server adds no delay.

Lock discipline. `Batcher._lock` guards the queue, the requests in it, and the batcher's own
fields. It is held for bookkeeping only, never during a run.

- Without the lock: runs, `observe`, and the `on_outcome` of answers, all on the runner's thread. A
  batch belongs to the runner that took it. `Batch.run` reads the pixels of its requests, which
  change only once every row has been run.
- With the lock: the `on_outcome` of rejected requests, on any thread. So it must not call the
  batcher, and must return at once.
- `num_waiting` is read without the lock. A gauge or a decision to wake early may be a moment old.
- `put` wakes no runner, so that a caller with many requests wakes one runner for all. The caller
  of `put` calls `wake` later; runners that are awake check the queue before they wait.
"""

import logging
import threading
import time
from collections.abc import Callable

from serving.batching.batch import Batch, Piece, run_pieces
from serving.batching.fair_queue import FairQueue
from serving.batching.request import Model, OnOutcome, Request
from serving.config import BatchingConfig
from serving.errors import ModelError, Unavailable
from serving.model.loaded_model import ENOUGH_ROWS

_log = logging.getLogger(__name__)


class Batcher:
    """Accepts requests from any thread and answers each exactly once."""

    def __init__(
        self,
        model: Model,
        config: BatchingConfig,
        *,
        num_runners: int = 1,
        clock: Callable[[], float] = time.monotonic,
        observe: Callable[..., None] = lambda *_: None,
    ) -> None:
        """Prepare; the threads start with the first request that is queued.

        Args:
            model: what to run until `swap`.
            config: sizes and delays.
            num_runners: concurrent runs: one for each core, since ONNX Runtime runs outside the
                GIL.
            clock: the clock of all deadlines, in monotonic seconds.
            observe: called after each run that succeeded; see `Metrics.observe_run`.
        """
        self._config = config
        self._clock = clock
        self._observe = observe
        self._lock = threading.Lock()  # cheaper to enter than a condition
        self._wake = threading.Condition(self._lock)
        self._idle = threading.Condition(self._lock)
        self._model = model
        self._queue = FairQueue(config.queue_capacity)
        self._num_runners = num_runners
        self._num_running = 0
        self._usual_s = 0.0
        """The usual duration of a run, a moving average."""
        self._refusal: str | None = None
        self._closed = False
        self._threads: list[threading.Thread] = []

    @property
    def max_batch_size(self) -> int:
        """The most images in one run."""
        return self._config.max_batch_size

    @property
    def num_waiting(self) -> int:
        """How many images wait for a run."""
        return self._queue.num_rows

    def put(self, request: Request, on_outcome: OnOutcome) -> None:
        """Queue a request; call `wake` to have it run if all runners are idle.

        Args:
            request: the images.
            on_outcome: takes the answer, or the reason why there is none; see `OnOutcome`.

        Raises:
            Overloaded: the queue is full.
            Unavailable: draining or closed.
        """
        with self._lock:
            if self._refusal is not None:
                raise Unavailable(self._refusal)
            if len(self._threads) < self._num_runners:
                self._start_runners()
            self._queue.admit(request, self._model, on_outcome, self._clock())

    def wake(self) -> None:
        """Wake an idle runner thread, if there is one."""
        with self._lock:
            self._wake.notify()

    def cancel(self, request: Request) -> None:
        """Forget a request whose caller left: its waiting rows never run.

        Does nothing if it had its outcome already, or was never queued.
        """
        with self._lock:
            self._queue.cancel(request)
            self._idle.notify_all()

    def swap(self, model: Model) -> None:
        """Run new requests on `model`; earlier ones finish on the old one."""
        with self._lock:
            self._model = model

    def drain(self, timeout_s: float) -> bool:
        """Refuse new requests and wait until every accepted one has its outcome.

        Returns:
            False if `timeout_s` seconds passed first.
        """
        with self._lock:
            self._refusal = "the server is shutting down"
            return self._idle.wait_for(
                lambda: not self.num_waiting and not self._num_running, timeout_s
            )

    def close(self) -> None:
        """Reject waiting requests as Unavailable, let runs in progress finish, end the threads."""
        with self._lock:
            self._refusal = "the classifier is closed"
            self._closed = True
            self._queue.fail_all(Unavailable("the server was stopped"))
            self._wake.notify_all()
            self._idle.notify_all()
        for thread in self._threads:
            thread.join()

    def _start_runners(self) -> None:
        while len(self._threads) < self._num_runners:
            name = f"runner-{len(self._threads)}"
            thread = threading.Thread(target=self._work, name=name, daemon=True)
            try:
                thread.start()
            except RuntimeError:  # the system has no more threads: fewer will do
                if self._threads:
                    return
                raise Unavailable("the server can't start a thread") from None
            self._threads.append(thread)

    def _work(self) -> None:
        """Run queued requests until the batcher is closed; on a runner's thread."""
        while pieces := self._next():
            for batch, error in run_pieces(pieces, self._clock):
                if error is None:
                    self._finish(batch)
                else:
                    self._fail(batch, error)
            with self._lock:
                self._num_running -= 1
                self._idle.notify_all()

    def _next(self) -> list[Piece]:
        """Wait for rows to run; none if the batcher is closed."""
        with self._lock:
            while not self._closed:
                delay_s = self._delay_s()
                if delay_s != 0:
                    self._wake.wait(delay_s)
                elif pieces := self._take():
                    self._num_running += 1
                    if self.num_waiting:
                        self._wake.notify()  # the next runner takes the next batch
                    return pieces
                else:  # all waiting requests had expired
                    self._idle.notify_all()
            return []

    def _delay_s(self) -> float | None:
        """Return the seconds until a batch may start; None while there is nothing to run."""
        num_waiting, delay_s = self.num_waiting, self._config.max_queue_delay_s
        if not num_waiting:
            return None
        if num_waiting >= self.max_batch_size:
            return 0.0
        return max(0.0, self._queue.waiting_since_s + delay_s - self._clock())

    def _take(self) -> list[Piece]:
        """Take the rows of a run; none if all waiting requests had expired."""
        max_rows, margin_s = self.max_batch_size, 0.0
        if self._config.max_queue_delay_s == 0:  # the free runners share the waiting rows
            share = -(-self.num_waiting // (self._num_runners - self._num_running))
            max_rows = min(max(share, ENOUGH_ROWS), max_rows)
        if self.num_waiting > self.max_batch_size:
            # Otherwise, with a queue longer than its callers' patience, only those would run whose
            # deadline passes during the run. Without a queue every request gets its chance.
            margin_s = 2 * self._usual_s
        return self._queue.take(max_rows, self._clock(), margin_s)

    def _finish(self, batch: Batch) -> None:
        """Deliver the complete answers, after the run has been observed."""
        with self._lock:
            self._usual_s += (batch.finished_s - batch.started_s - self._usual_s) / 8
            answered = batch.finish()
        arrivals = [(answer.arrived_s, None, 1) for _, answer in answered]
        self._observe(
            batch.started_s, batch.finished_s, arrivals, batch.digits, batch.probabilities
        )
        for request, answer in answered:
            request.deliver(answer)

    def _fail(self, batch: Batch, error: BaseException) -> None:
        """Reject the request whose images fail."""
        request, _, num_rows = batch.pieces[0]
        _log.error("a run of %d images failed", num_rows, exc_info=error)
        with self._lock:
            self._queue.fail(request, ModelError())
