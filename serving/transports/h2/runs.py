"""Runs the queue a batch at a time, on the loop's own thread, and answers each call."""

import logging

import numpy as np

from serving.classifier import Classifier
from serving.errors import DeadlineExceeded, DigitsError, ModelError
from serving.model.loaded_model import LoadedModel
from serving.predictions import ClassNumbers, class_numbers
from serving.protocols.oip.statistics import Answered, Run
from serving.protocols.plan import frame
from serving.telemetry.tracing import latest_run
from serving.transports.h2.context import Context
from serving.transports.h2.queue import Group, Queue
from serving.transports.h2.stream import Stream

_INLINE_IMAGES = 128
"""The largest request that the loop runs itself: larger batches are hardly cheaper an image, so a
runner thread may take them, on another core."""
_log = logging.getLogger(__name__)

_FAILED = ModelError()
_LATE = DeadlineExceeded()


class Runs:
    """Takes calls from the queue to their answers."""

    def __init__(self, classifier: Classifier, queue: Queue, context: Context) -> None:
        """Connect the parts; the classifier has the model."""
        self._classifier = classifier
        self._queue = queue
        self._context = context
        self._observe = classifier.metrics.observe_run
        self._image_bytes = classifier.signature.image_bytes
        self._row_bytes = classifier.signature.row_bytes
        self._num_classes = classifier.signature.num_classes
        self._answered: list[tuple[list[Group], ClassNumbers, bytes, float, float]] = []
        """Batches to be counted: digits, probabilities, begin and end of their run."""
        self._adopt(classifier.served)

    def _adopt(self, model: LoadedModel) -> None:
        self._model = model
        self._engine_run = model.engine.run  # without the lock against forks: a server has none
        self._input = model.tensors.inputs[0].name
        self._version = model.version
        batching = self._classifier.batching
        # Nothing is read during a run, so runs are short.
        most = min(batching.max_batch_size, self._queue.capacity)
        self._queue.run_rows = min(most, model.quick_rows) or 1
        before = self._context.max_inline_images
        self._context.max_inline_images = min(_INLINE_IMAGES, model.quick_rows)
        self._context.is_slower |= self._context.max_inline_images < before

    def refresh(self) -> None:
        """Switch to the version that is served now."""
        if self._classifier.served is not self._model:
            self._adopt(self._classifier.served)

    def run_next(self, now_s: float) -> None:
        """Run and answer the next batch; `count` counts it once its answers have left."""
        self.refresh()
        queue = self._queue
        batch, late = queue.take(queue.run_rows, now_s)
        try:
            for group in late:
                self._end(group, _LATE)
            num_images = self._run(batch) if batch else 0
        except Exception:  # a flaw of ours: it ends these calls, and never the loop
            _log.exception("a batch could not be answered")
            alive: list[Group] = []
            for group in batch:
                group.put_open(alive)
            for group in alive:
                self._end(group, _FAILED)
            return
        if num_images > queue.run_rows // 2:  # an image of a small run costs more
            queue.row_s += ((self._context.clock() - now_s) / num_images - queue.row_s) / 8

    def _run(self, batch: list[Group]) -> int:
        """Run and answer a batch; returns its number of images."""
        started_s = self._context.clock()
        messages = batch[0].messages if len(batch) == 1 else _messages(batch)
        joined = messages[0] if len(messages) == 1 else b"".join(messages)
        images = np.frombuffer(joined, np.uint8).reshape(-1, self._image_bytes)
        try:
            probabilities = self._engine_run({self._input: images})[0]
        except Exception as err:  # whatever it is, it ends these calls and never the loop
            self._find_guilty(batch, err)
        else:
            finished_s = self._context.clock()
            digits, rows = class_numbers(probabilities), probabilities.tobytes()
            self._answered.append((batch, digits, rows, started_s, finished_s))
            latest_run.set((started_s, finished_s))
            self._answer(batch, digits, rows)
        return len(images)

    def _find_guilty(self, batch: list[Group], error: Exception) -> None:
        """Run the halves of a failed batch, down to the calls whose images make runs fail."""
        if len(batch) == 1:
            middle = len(batch[0].streams) // 2
            halves = [batch[0].cut(0, middle)], [batch[0].cut(middle, len(batch[0].streams))]
        else:
            middle = len(batch) // 2
            halves = batch[:middle], batch[middle:]
        if middle:
            for half in halves:
                self._run(half)
            return
        _log.error("a run of %d images failed", batch[0].plan.num_rows, exc_info=error)
        self._end(batch[0], _FAILED)

    def _answer(self, batch: list[Group], digits: ClassNumbers, rows: bytes) -> None:
        """Send each call its rows."""
        width, version = self._row_bytes, self._version
        streams: set[Stream] = set()
        starts: tuple[bytes, ...] = ()
        tail, last, at = b"", None, 0
        for group in batch:
            caller, plan, slots, begin = group.caller, group.plan, group.slots, at
            step = plan.num_rows
            at += len(group.streams) * step
            if step == 1:
                if plan is not last:
                    last = plan
                    starts, tail = plan.one_image_parts(version, self._num_classes)
                responses = [
                    starts[digits[i]] + rows[i * width : i * width + width] + tail
                    for i in range(begin, at)
                ]
            else:
                responses = [
                    frame(
                        plan.write(
                            digits[i : i + step], rows[i * width : (i + step) * width], version
                        )
                    )
                    for i in range(begin, at, step)
                ]
            if slots is None:
                caller.http2.answer(group.streams, responses)
            else:
                for slot, response in zip(slots, responses, strict=True):
                    slot.response = response
                    streams.add(slot.stream)
            if not caller.touched:
                self._context.touch(caller)
        for stream in streams:
            stream.flush()

    def count(self) -> None:
        """Count the answered batches."""
        while self._answered:
            batch, digits, rows, started_s, finished_s = self._answered.pop()
            run = Run(len(digits), started_s, finished_s)
            counted: list[tuple[float, str | None, int]] = []
            for group in batch:
                plan, times, arrived_s = group.plan, len(group.streams), group.arrived_s
                counted.append((arrived_s, plan.method, times))
                if plan.statistics is not None:
                    answered = Answered(times, times * plan.num_rows, arrived_s, plan.decode_s)
                    plan.statistics.count_success(self._version, answered, run)
            self._observe(started_s, finished_s, counted, digits, rows)

    def _end(self, group: Group, error: DigitsError) -> None:
        """End calls without an answer."""
        if group.slots is None:
            for stream_id in group.streams:
                self._context.fail(group.caller, stream_id, error)
        else:
            for slot in group.slots:
                slot.stream.fail(slot, error)


def _messages(batch: list[Group]) -> list[bytes | memoryview]:
    return [message for group in batch for message in group.messages]
