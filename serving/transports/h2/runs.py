"""Runs the queue a batch at a time, on the loop's own thread, and answers each call."""

import logging
import time

import numpy as np

from serving.classifier import Classifier
from serving.errors import DeadlineExceeded, DigitsError, ModelError
from serving.model.loaded_model import LoadedModel
from serving.predictions import ClassNumbers, class_numbers
from serving.protocols.oip.statistics import Answered, Run
from serving.protocols.plan import frame
from serving.telemetry.tracing import latest_run
from serving.transports.h2.calls import Calls
from serving.transports.h2.queue import Entry, Queue
from serving.transports.h2.stream import Stream

_INLINE_IMAGES = 128
"""The largest request that the loop runs itself: larger batches are hardly cheaper an image, so a
runner thread may take them, on another core."""
_log = logging.getLogger(__name__)

_FAILED = ModelError()
_LATE = DeadlineExceeded()


class Runs:
    """Takes calls from the queue to their answers."""

    def __init__(self, classifier: Classifier, queue: Queue, calls: Calls) -> None:
        """Connect the parts; the classifier has the model."""
        self._classifier = classifier
        self._queue = queue
        self._calls = calls
        self._observe = classifier.metrics.observe_run
        self._image_bytes = classifier.signature.image_bytes
        self._row_bytes = classifier.signature.row_bytes
        self._num_classes = classifier.signature.num_classes
        self._answered: list[tuple[list[Entry], ClassNumbers, bytes, float, float]] = []
        """Batches to be counted: digits, probabilities, begin and end of their run."""
        self._adopt(classifier.served)

    def _adopt(self, model: LoadedModel) -> None:
        self._model = model
        self._engine_run = model.engine.run  # without the lock against forks: a server has none
        self._version = model.version
        batching = self._classifier.batching
        # Nothing is read during a run, so runs are short.
        self._queue.run_rows = min(batching.max_batch_size, model.quick_images) or 1
        self._calls.max_inline_images = min(_INLINE_IMAGES, model.quick_images)

    def refresh(self) -> None:
        """Switch to the version that is served now."""
        if self._classifier.served is not self._model:
            self._adopt(self._classifier.served)

    def run_next(self, now_s: float) -> None:
        """Run and answer the next batch; `count` counts it once its answers have left."""
        self.refresh()
        queue = self._queue
        batch, late = queue.take(queue.run_rows, now_s)
        for entry in late:
            self._end(entry, _LATE)
        if not batch:
            return
        try:
            num_images = self._run(batch)
        except Exception:  # a flaw of ours: it ends these calls, and never the loop
            _log.exception("a batch could not be answered")
            for entry in batch:
                if entry[1] in entry[0].streams:
                    self._end(entry, _FAILED)
            return
        if num_images >= queue.run_rows // 2:  # an image of a small run costs more
            queue.row_s += ((time.monotonic() - now_s) / num_images - queue.row_s) / 8

    def _run(self, batch: list[Entry]) -> int:
        """Run and answer a batch; returns its number of images."""
        started_s = time.monotonic()
        joined = batch[0][2] if len(batch) == 1 else b"".join([entry[2] for entry in batch])
        images = np.frombuffer(joined, np.uint8).reshape(-1, self._image_bytes)
        try:
            probabilities = self._engine_run(images)
        except Exception as err:  # whatever it is, it ends these calls and never the loop
            self._find_guilty(batch, err)
        else:
            finished_s = time.monotonic()
            digits, rows = class_numbers(probabilities), probabilities.tobytes()
            self._answered.append((batch, digits, rows, started_s, finished_s))
            latest_run.set((started_s, finished_s))
            self._answer(batch, digits, rows)
        return len(images)

    def _find_guilty(self, batch: list[Entry], error: Exception) -> None:
        """Run the halves of a failed batch, down to the calls whose images make runs fail."""
        middle = len(batch) // 2
        if middle:
            self._run(batch[:middle])
            self._run(batch[middle:])
            return
        _log.error("a run of %d images failed", batch[0][3].num_rows, exc_info=error)
        self._end(batch[0], _FAILED)

    def _answer(self, batch: list[Entry], digits: ClassNumbers, rows: bytes) -> None:
        """Send each call its rows; answers to one image are cut from one buffer."""
        row_bytes = self._row_bytes
        streams: set[Stream] = set()
        starts: tuple[bytes, ...] = ()
        tail = b""
        last, at = None, 0
        for connection, stream_id, _, plan, _, _, slot in batch:
            end = at + plan.num_rows
            some = rows[at * row_bytes : end * row_bytes]
            if plan.num_rows == 1:
                if plan is not last:
                    last = plan
                    starts, tail = plan.one_image_parts(self._version, self._num_classes)
                response = starts[digits[at]] + some + tail
            else:
                response = frame(plan.write(digits[at:end], some, self._version))
            at = end
            if slot is None:
                connection.http2.answer(stream_id, response)
            else:
                slot.response = response
                streams.add(slot.stream)
            if not connection.touched:
                self._calls.touch(connection)
        for stream in streams:
            stream.flush()

    def count(self) -> None:
        """Count the answered batches."""
        while self._answered:
            batch, digits, rows, started_s, finished_s = self._answered.pop()
            run = Run(len(digits), started_s, finished_s)
            counted: list[tuple[float, str | None, int]] = []
            at = 0
            while at < len(batch):  # calls of one read share a plan and an arrival
                _, _, _, plan, arrived_s, _, _ = batch[at]
                first = at
                while at < len(batch) and batch[at][3] is plan and batch[at][4] == arrived_s:
                    at += 1
                times = at - first
                counted.append((arrived_s, plan.method, times))
                if plan.statistics is not None:
                    answered = Answered(times, times * plan.num_rows, arrived_s, plan.decode_s)
                    plan.statistics.count_success(self._version, answered, run)
            self._observe(started_s, finished_s, counted, digits, rows)

    def _end(self, entry: Entry, error: DigitsError) -> None:
        """End a call without an answer."""
        connection, stream_id, _, _, _, _, slot = entry
        if slot is None:
            self._calls.fail(connection, stream_id, error)
        else:
            slot.stream.fail(slot, error)
