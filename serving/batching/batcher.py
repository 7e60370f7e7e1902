"""One model's queue and its runs: batches while busy, never waits while idle.

All waiting calls run at once, up to a limit; calls that arrive meanwhile form the next batch. So
batches grow with the load, and an idle server adds no delay.

Everything but `num_waiting` happens on one thread, its owner's, which reads from callers and
answers them. That thread makes quick runs itself, and hands long ones to threads (long_runs.py).
"""

import logging
from collections.abc import Callable
from functools import partial

from serving.batching.execution import Executor, Model
from serving.batching.group import Caller, Group, Owner, open_parts
from serving.batching.long_runs import LongRuns
from serving.batching.queue import Queue
from serving.batching.result import Result
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, DigitsError, ModelError, Unavailable
from serving.system.host import Runners, Threads
from serving.telemetry.metrics import Metrics
from serving.telemetry.tracing import latest_run

_QUICK_ROWS = 128
"""The largest request that the owner runs itself: larger batches are hardly cheaper a row, so
another core may take them."""
_MAX_QUEUE_BYTES = 1 << 30
"""The most bytes of rows of a fixed size that wait, of each kind of call."""
_log = logging.getLogger(__name__)

CHANGED = Unavailable("the model has changed")
"""Why a call is not run whose version has gone since it was read."""
_FAILED = ModelError()
_LATE = DeadlineExceeded()


class Batcher:
    """Runs the calls of one model, and gives each exactly one outcome."""

    def __init__(
        self, model: Model, config: BatchingConfig, metrics: Metrics, num_runners: int = 1,
        name: str = "", runners: Callable[[int], Runners] = Threads,
    ) -> None:  # fmt: skip
        """Prepare; `attach` comes before the first call."""
        self.model = model
        self._name = name, model.version
        self._config = config
        self._metrics = metrics
        self.max_delay_s = config.max_queue_delay_s
        """How long to wait for more rows before a run; see `delay_s`."""
        self.owner: Owner
        capacity = config.queue_capacity
        if row_bytes := model.tensors.row_bytes:
            capacity = min(capacity, max(1, _MAX_QUEUE_BYTES // row_bytes))
        self._executor = Executor(model)
        finish = self._finish_long
        self._long = LongRuns(self._executor, config, capacity, num_runners, runners, finish)
        self._quick = Queue(capacity)
        # Nothing is read during a quick run.
        most = min(config.max_batch_size, config.queue_capacity)
        self._quick.run_rows = min(most, model.quick_rows) or 1
        self._small, self._large = self._long.queues
        self._queues = self._quick, self._small, self._large
        self._is_closed = self._is_scheduled = False
        self.quick_rows = min(_QUICK_ROWS, model.quick_rows)
        """The largest request that the owner runs itself; 0 where a run takes long."""

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self.owner = self._long.owner = owner

    @property
    def num_waiting(self) -> int:
        """The rows that wait for a run; a moment old on other threads."""
        return self._quick.num_rows + self._long.num_waiting

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or run."""
        return bool(self.num_waiting or self._long.running)

    def submit(self, group: Group, *, is_final: bool = True) -> int:
        """Let calls wait for a run, as far as there is room; return how many, the first ones.

        Args:
            group: the calls.
            is_final: whether nobody else takes the others.
        """
        if self._is_closed:
            group.sink.fail(group, CHANGED)
            return len(group.streams)
        rows, number = group.encoder.num_rows, len(group.streams)
        queue = self._quick if rows <= self.quick_rows else self._long.queue_of(rows)
        if queue.num_rows + group.num_rows > queue.run_rows:
            timeout_s = min(group.deadline_s - group.arrived_s, self._config.slo_s)
            room = queue.room(group.caller, timeout_s)
            # However slow the model is: a call may always be the only one.
            fitting = max(int(not queue.num_rows), int(min(room, group.num_rows) // rows))
            if fitting < number:
                if is_final:
                    self._metrics.count_failure(self._name, 0.0, number - fitting)
                if not fitting:
                    return 0
                number = fitting
                group = group.cut(0, number)
        queue.put(group)
        self._schedule()
        return number

    def add(self, group: Group) -> None:
        """Let calls wait for a run, even if there is no room."""
        if self._is_closed:
            group.sink.fail(group, CHANGED)
        else:
            self._queue_of(group.encoder.num_rows).put(group)
            self._schedule()

    def _schedule(self) -> None:
        if not self._is_scheduled:
            self._is_scheduled = True
            self.owner.schedule(self)

    def room_for_stream(self, num_rows: int) -> int:
        """Return how many messages a stream may add; streams wait where unary calls are refused."""
        return -(-self._queue_of(num_rows).room_for_streams // max(num_rows, 1))

    def _queue_of(self, num_rows: int) -> Queue:
        return self._quick if num_rows <= self.quick_rows else self._long.queue_of(num_rows)

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait or run."""
        waiting = (each.streams_of(caller) for each in self._queues)
        return self._long.streams_of(caller).union(*waiting)

    def forget(self, caller: Caller) -> None:
        """Drop the calls of a caller that has left."""
        for each in self._queues:
            each.forget(caller)

    def delay_s(self, now_s: float) -> float:
        """Return how long to wait for more rows before `turn`."""
        waiting = [each for each in self._queues if each.num_rows]
        # Nothing waits if callers have left: then the turn has nothing to do, and is over.
        if not waiting or any(each.num_rows >= each.run_rows for each in waiting):
            return 0.0
        return max(0.0, min(each.oldest_s for each in waiting) + self.max_delay_s - now_s)

    def turn(self, now_s: float) -> bool:
        """Hand long runs to free runners, and make the next quick one.

        Returns:
            Whether calls wait for a runner.
        """
        self._is_scheduled = is_waiting = False
        if self._small.num_rows or self._large.num_rows:
            self._end_late(self._long.hand_out(now_s))
            is_waiting = bool(self._long.num_waiting)
        quick = self._quick
        if not quick.num_rows:
            return is_waiting
        groups, late = quick.take(quick.run_rows, now_s)
        if late:
            self._end_late(late)
        if groups:
            num_rows = 0
            for part, result in self._executor.run(groups, self.owner.clock):
                num_rows += self._deliver(part, result)
            if num_rows > quick.run_rows // 2:
                quick.note_run(num_rows, self.owner.clock() - now_s)
        if quick.num_rows:
            self._schedule()
        return is_waiting

    def tick(self, now_s: float) -> None:
        """End the calls that are late while all runners are busy, and forget cancelled ones."""
        self._end_late(self._long.sweep(now_s))

    def _finish_long(self, parts: list[tuple[list[Group], Result | None]]) -> None:
        for groups, result in parts:
            self._deliver(groups, result, have_left=True)
        if self._long.num_waiting:
            self._schedule()

    def _end_late(self, groups: list[Group]) -> None:
        for group in groups:
            self._fail(group, _LATE)

    def _fail(self, group: Group, error: DigitsError) -> None:
        duration_s = self.owner.clock() - group.arrived_s
        self._metrics.count_failure(self._name, duration_s, len(group.streams))
        group.sink.fail(group, error)

    def _deliver(
        self, groups: list[Group], result: Result | None, *, have_left: bool = False
    ) -> int:
        """Give calls their outcome; during a runner's run some callers may have left.

        Returns:
            The rows that were answered.
        """
        try:
            if result is None:
                for group in groups:
                    self._fail(group, _FAILED)
                return 0
            latest_run.set((result.started_s, result.finished_s, *self._name, result.num_rows))
            at, answered = 0, groups
            if have_left:
                answered = []
            for group in groups:
                responses = group.encoder.encode(result, at, len(group.streams))
                at += group.num_rows
                if have_left:
                    group, responses = group.open_answers(responses)
                    answered.append(group)
                group.sink.answer(group, responses)
            self.owner.defer(partial(self._count, answered, result))
            return at
        except Exception:  # a flaw of ours: it ends these calls, and never the owner
            _log.exception("a batch could not be answered")
            for group in open_parts(groups):
                self._fail(group, _FAILED)
            return 0

    def _count(self, groups: list[Group], result: Result) -> None:
        """Count answered calls."""
        calls = [(group.arrived_s, group.encoder.method, len(group.streams)) for group in groups]
        classified = None if result.classes is None else (result.classes, result.rows)
        times_s = result.started_s, result.finished_s
        self._metrics.observe_run(*times_s, result.num_rows, calls, classified, self._name)

    def close(self) -> None:
        """End the threads once they are idle; later calls are asked to retry."""
        self._is_closed = True
        self._long.close()
