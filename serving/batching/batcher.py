"""One model's queue and its runs: batches while busy, never waits while idle.

All waiting calls run at once, up to a limit; calls that arrive meanwhile form the next batch. So
batches grow with the load, and an idle server adds no delay.

Everything but `num_waiting` happens on one thread, its owner's, which reads from callers and
answers them. That thread makes quick runs itself, and hands long ones to threads (`LongRuns`):

    rows that wait                           whose runs are quick          who runs them
    few, and no run in progress              1 row or more (`quick_rows`)  the owner, all at once
    more, or while runners are busy          up to 127 rows                runners, together
    any number                               128 rows or more              the owner, batch by batch
    any number                               none                          runners, together

So a lone caller is spared the way to a thread and back (some 50 us), a row that takes 0.1 ms is
batched as soon as others wait, and no model's runs hold up the callers of another.
"""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, Protocol

import numpy as np

from serving.batching.parallel_run import run_shared
from serving.batching.queue import TURN_ROWS, Caller, Group, Owner, Queue, Result, open_parts
from serving.config import BatchingConfig
from serving.errors import (
    DeadlineExceeded,
    DigitsError,
    InvalidRequest,
    ModelError,
    Unavailable,
)
from serving.signature import Signature
from serving.system.host import Runners, Task, Threads
from serving.telemetry.metrics import Metrics
from serving.tensors import Array, Feeds, TensorSignature

_log = logging.getLogger(__name__)
_LOG_S = 1.0
"""The least time between two lines about calls of a version that can't be run."""

Run = Callable[[Feeds], list[Array]]

_SWEEP_S = 0.1
"""How often calls are looked at that wait or run."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth the way to another thread."""
_LONG_S, _MIN_ROWS = 0.005, 8
"""How long a run of many rows takes at most, and the most rows that may take longer: larger ones
gain nothing, unless all runs take about as long, and their callers are all answered at the end."""

_Outcome = tuple[list[Group], Result | DigitsError]
_Finish = Callable[[list[_Outcome]], object]

_QUICK_ROWS = 128
"""The largest request that the owner runs itself: larger batches are hardly cheaper a row, so
another core may take them."""
_MAX_QUEUE_BYTES = 1 << 30
"""The most bytes of rows of a fixed size that wait, of each kind of call."""


def _nothing() -> None:
    """Do nothing: the run has not begun."""


CHANGED = Unavailable("the model has changed")
"""Why a call is not run whose version has gone since it was read."""
_FAILED = ModelError()
_LATE = DeadlineExceeded()


class Model(Protocol):
    """A model as its runs see it."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    @property
    def tensors(self) -> TensorSignature:
        """Its inputs and outputs."""

    @property
    def signature(self) -> Signature | None:
        """The signature of a classifier of images."""

    @property
    def quick_rows(self) -> int:
        """The most rows of a run that is quick enough for the thread that reads from callers."""

    @property
    def enough_rows(self) -> int:
        """Rows that are worth their own run on another core."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run inputs by name; returns the outputs in order."""

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        """Return `run` for one call of it, and a function that ends it, from any thread."""


class Executor:
    """Runs calls of one version of a model."""

    def __init__(self, model: Model) -> None:
        """Prepare to run `model`."""
        self.model = model
        self._run = model.run
        self._version, self._signature = model.version, model.signature
        self._tensors = tensors = model.tensors
        self.is_batchable = tensors.is_batchable
        """Whether rows of several calls can run together."""
        self._are_rows = bool(tensors.row_bytes)
        self._logged_s = -math.inf
        self._num_unlogged = 0
        if self._are_rows:
            only = tensors.inputs[0]
            self._name, self._dtype, self._shape = only.name, only.dtype, (-1, *only.shape[1:])

    def run(
        self, groups: list[Group], clock: Callable[[], float],
        begin: Callable[[list[Group]], Run] | None = None,
    ) -> Iterator[_Outcome]:  # fmt: skip
        """Run calls: all at once where that can be.

        If a run fails, its halves are run, until the call is known that makes runs fail. A run that
        was ended is not repeated.

        Args:
            groups: in the order of their rows.
            clock: monotonic, in seconds.
            begin: takes calls that are about to run; returns how, if not by `model.run`.

        Yields:
            Calls that ran together, and their result; or calls that can't be run, and why.
        """
        todo = [groups] if self._are_rows else _alike(groups, is_batchable=self.is_batchable)
        while todo:
            part = todo.pop()
            started_s = clock()
            try:
                run = begin(part) if begin else self._run
                feeds, num_rows = self._feeds(part)
                outputs = run(feeds)
                # Else its outputs may have any shape.
                if self._signature or len(part) > 1 or len(part[0].streams) > 1:
                    for output in outputs:
                        if len(output) != num_rows:
                            raise ValueError(f"{num_rows} rows were answered with {len(output)}")
                facts = self._version, self._signature, started_s, clock()
                result = Result(outputs, num_rows, *facts)
            except DeadlineExceeded as err:
                yield open_parts(part), err
            except BaseException as err:  # any error ends these calls and never the thread
                alive = open_parts(part)
                if _num_calls(alive) < _num_calls(part):  # it was given up, or failed by the others
                    todo += [alive] if alive else []
                elif halves := _halves(part):
                    todo += halves
                elif isinstance(err, InvalidRequest):
                    yield part, err
                else:
                    self._log_failure(part[0].encoder.num_rows, err, clock())
                    yield part, _FAILED
            else:
                yield part, result

    def _log_failure(self, num_rows: int, error: BaseException, now_s: float) -> None:
        """Log a call that can't be run; of many in a second only the first."""
        if now_s - self._logged_s < _LOG_S:
            self._num_unlogged += 1
            return
        more = f", and {self._num_unlogged} more before" if self._num_unlogged else ""
        _log.error("a run of %d rows failed%s", num_rows, more, exc_info=error)
        self._logged_s, self._num_unlogged = now_s, 0

    def _feeds(self, groups: list[Group]) -> tuple[Feeds, int]:
        """Join the inputs of calls; returns them, and their number of rows."""
        if self._are_rows:
            messages: Sequence[Any]
            if len(groups) == 1:
                messages = groups[0].messages
            else:
                messages = [message for group in groups for message in group.messages]
            data = messages[0] if len(messages) == 1 else b"".join(messages)
            array = np.frombuffer(data, self._dtype)
            if self._dtype.itemsize > 1 and not array.flags.aligned:
                array = array.copy()
            array = array.reshape(self._shape)
            return {self._name: array}, len(array)
        columns: list[Sequence[Array]] = list(zip(*_parts(groups), strict=True))
        feeds = {
            tensor.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for tensor, arrays in zip(self._tensors.inputs, columns, strict=True)
        }
        return feeds, sum(group.num_rows for group in groups)


def _parts(groups: list[Group]) -> Iterator[Sequence[Array]]:
    """Yield the inputs of one call after the other, or of many with one layout."""
    at = 0
    while at < len(groups):
        layout, messages = groups[at].encoder.layout, list(groups[at].messages)
        at += 1
        if layout is None:
            yield from messages
            continue
        while at < len(groups) and groups[at].encoder.layout is layout:
            messages += groups[at].messages
            at += 1
        yield layout.arrays(messages)


def _alike(groups: list[Group], *, is_batchable: bool) -> list[list[Group]]:
    """Divide calls into those that can run together, the last first."""
    if not is_batchable:
        calls = [group.cut(i, i + 1) for group in groups for i in range(len(group.streams))]
        return [[call] for call in reversed(calls)]
    alike: dict[object, list[Group]] = {}
    for group in groups:
        if (layout := group.encoder.layout) is not None:
            shapes = tuple(piece.shape[1:] for piece in layout.pieces)
            alike.setdefault(shapes, []).append(group)
            continue
        for at, arrays in enumerate(group.messages):
            shapes = tuple(array.shape[1:] for array in arrays)
            # Rows are proved independent for axes of one or more.
            key = shapes if all(map(all, shapes)) else object()
            alike.setdefault(key, []).append(group.cut(at, at + 1))
    return list(reversed(alike.values()))


def _num_calls(groups: list[Group]) -> int:
    return sum(len(group.streams) for group in groups)


def _halves(groups: list[Group]) -> list[list[Group]]:
    """Divide calls, the last half first; none if it is one call."""
    if len(groups) > 1:
        middle = len(groups) // 2
        return [groups[middle:], groups[:middle]]
    group, number = groups[0], len(groups[0].streams)
    if number == 1:
        return []
    return [[group.cut(number // 2, number)], [group.cut(0, number // 2)]]


class _Running:
    """The calls that a runner has."""

    __slots__ = ("groups", "run")

    def __init__(self, groups: list[Group], now_s: float) -> None:
        self.groups = groups
        self.run: tuple[list[Group], float, Callable[[], object]] = groups, now_s, _nothing
        """Those that run, since when, and a function that ends the run; replaced as a whole, for
        the owner reads it meanwhile."""

    def end_if_over(self, now_s: float, max_run_s: float) -> None:
        """End the run if nobody waits for it any longer, or it takes too long."""
        part, started_s, end = self.run
        is_late = now_s - started_s > max_run_s
        if is_late or all(each.deadline_s <= now_s or not each.open_part() for each in part):
            end()


class LongRuns:
    """Two queues, of small calls and of large ones, and the threads that take turns at them."""

    def __init__(
        self, executor: Executor, config: BatchingConfig, capacity: int, num_runners: int,
        runners: Callable[[int], Runners], finish: _Finish,
    ) -> None:  # fmt: skip
        """Prepare; `owner` is set before the first call."""
        self.owner: Owner
        self.queues = self._small, self._large = Queue(capacity), Queue(capacity)
        self._most_rows = min(config.max_batch_size, config.queue_capacity)
        for queue in self.queues:
            queue.run_rows = self._most_rows
        self.running: dict[int, _Running] = {}
        """The groups that the runners have, by number."""
        self.max_run_s = config.max_run_s
        self._executor, self._num_runners = executor, num_runners
        self._runners, self._finish = runners(num_runners), finish
        self._num_taken = 0
        self._was_small = False
        """Whether a runner took small calls last, while large ones waited."""
        self._next_sweep_s = 0.0
        self._row_s = 0.0
        """Seconds that a row takes in the latest runs: a moving average."""
        self._least_s = math.inf
        """Seconds of the shortest run."""

    def queue_of(self, num_rows: int) -> Queue:
        """Return the queue of calls of a size."""
        return self._small if num_rows <= TURN_ROWS else self._large

    @property
    def num_waiting(self) -> int:
        """The rows that wait."""
        return self._small.num_rows + self._large.num_rows

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that run."""
        groups = (group for running in self.running.values() for group in running.groups)
        return {stream for group in groups if group.caller is caller for stream in group.streams}

    def hand_out(self, now_s: float) -> list[Group]:
        """Give waiting calls to free runners, which share them; return those that are late."""
        ended: list[Group] = []
        while self.num_waiting and (num_free := self._num_runners - len(self.running)) > 0:
            are_both = bool(self._small.num_rows and self._large.num_rows)
            is_small = bool(self._small.num_rows and not (are_both and self._was_small))
            self._was_small = are_both and is_small
            queue = self._small if is_small else self._large
            share = self._enough_rows
            if self._executor.is_batchable:  # else they would only wait for one another
                share = max(-(-queue.num_rows // num_free), share)
            groups, late = queue.take(min(queue.run_rows, share), now_s)
            ended += late
            if not groups:
                continue
            self._num_taken += 1
            self.running[self._num_taken] = running = _Running(groups, now_s)
            num_threads = 1 if self.num_waiting else num_free
            work = partial(self._run, self._num_taken, running, num_threads)
            try:
                self._runners.put(work, self.owner.post)
            except RuntimeError:
                _log.error("the server can't start a thread")
                del self.running[self._num_taken]
                self._finish([(groups, _FAILED)])
        return ended

    @property
    def _enough_rows(self) -> int:
        """Rows that are worth a run of their own on another core."""
        enough = self._executor.model.enough_rows
        return min(enough, int(_ENOUGH_S / self._row_s) + 1) if self._row_s else enough

    @property
    def oldest_run_s(self) -> float:
        """When the oldest run began, in monotonic seconds; infinite if there is none."""
        return min((each.run[1] for each in self.running.values()), default=math.inf)

    def sweep(self, now_s: float) -> list[Group]:
        """End runs that take too long, and forget cancelled calls that wait; return the late ones.

        Now and then only: it may be called often.
        """
        if not (self.num_waiting or self.running) or now_s < self._next_sweep_s:
            return []
        self._next_sweep_s = now_s + _SWEEP_S
        for each in self.running.values():
            each.end_if_over(now_s, self.max_run_s)
        return self._small.sweep(now_s) + self._large.sweep(now_s)

    def _run(self, number: int, running: _Running, num_threads: int) -> Task:
        """Run calls, on a runner's thread; return the function that delivers the results."""
        executor, clock = self._executor, self.owner.clock

        def begin(part: list[Group]) -> Run:
            run, end = executor.model.stoppable()
            running.run = part, clock(), end
            if not executor.is_batchable:
                return run
            return partial(
                run_shared, run, max_batch_size=self._small.run_rows,
                enough_rows=self._enough_rows, num_threads=num_threads,
                is_cancelled=lambda: not open_parts(part),
            )  # fmt: skip

        begin_s = clock()
        parts = list(executor.run(running.groups, clock, begin))
        return partial(self._take_results, number, parts, clock() - begin_s)

    def _take_results(self, number: int, parts: list[_Outcome], seconds: float) -> None:
        del self.running[number]
        num_rows = sum(result.num_rows for _, result in parts if isinstance(result, Result))
        if num_rows:
            self._least_s = min(self._least_s, seconds)
            self._row_s += (seconds / num_rows - self._row_s) / (4 if self._row_s else 1)
        if self._row_s:
            most = max(_MIN_ROWS, int(_LONG_S / self._row_s))
            if seconds < 2 * self._least_s:  # most of its time is that of any run: more rows gain
                most = max(most, 2 * num_rows)
            self._small.run_rows = self._large.run_rows = min(self._most_rows, most)
        for each in self.queues:
            if num_rows > each.run_rows // 2:
                each.note_run(num_rows, seconds / self._num_runners)
        self._finish(parts)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._runners.close()


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
        are_all_quick = model.quick_rows >= min(_QUICK_ROWS, most)
        self.quick_rows = min(_QUICK_ROWS, model.quick_rows) if are_all_quick else 0
        """The largest request that the owner always runs itself."""
        self._few_rows = 0 if are_all_quick else model.quick_rows
        """The most rows that the owner runs where no others wait or run."""

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

    @property
    def oldest_run_s(self) -> float:
        """When the oldest run on a thread began, in monotonic seconds; infinite without any."""
        return self._long.oldest_run_s

    @property
    def max_run_s(self) -> float:
        """The longest run, in seconds: it is ended then."""
        return self._long.max_run_s

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
        self._schedule()
        queue.put(group)
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
        # Nothing waits if callers have left: then the turn has nothing to do, and is over. Streams
        # add no more to a queue that has no room for them, so it would never fill.
        if not waiting or any(
            each.num_rows >= each.run_rows or each.room_for_streams <= 0 for each in waiting
        ):
            return 0.0
        return max(0.0, min(each.oldest_s for each in waiting) + self.max_delay_s - now_s)

    def turn(self, now_s: float) -> bool:
        """Hand long runs to free runners, and make the next quick one.

        Returns:
            Whether calls wait for a runner, or have one.
        """
        self._is_scheduled = False
        long, quick = self._long, self._quick
        if num_rows := long.num_waiting:
            if num_rows <= self._few_rows and not long.running:
                for each in (self._small, self._large):
                    self._run(each, now_s)
            else:
                self._end_late(long.hand_out(now_s))
        if quick.num_rows:
            num_rows = self._run(quick, now_s)
            if num_rows > quick.run_rows // 2:
                quick.note_run(num_rows, self.owner.clock() - now_s)
            if quick.num_rows:
                self._schedule()
        return bool(long.running)

    def _run(self, queue: Queue, now_s: float) -> int:
        """Make a run on this thread, and answer its calls; return its rows."""
        groups, late = queue.take(queue.run_rows, now_s)
        if late:
            self._end_late(late)
        num_rows = 0
        if groups:
            for part, result in self._executor.run(groups, self.owner.clock):
                num_rows += self._deliver(part, result)
        return num_rows

    def tick(self, now_s: float) -> None:
        """End the runs and calls that are late, and forget cancelled calls."""
        self._end_late(self._long.sweep(now_s))

    def _finish_long(self, parts: list[_Outcome]) -> None:
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
        self, groups: list[Group], result: Result | DigitsError, *, have_left: bool = False
    ) -> int:
        """Give calls their outcome; during a runner's run some callers may have left.

        Returns:
            The rows that were answered.
        """
        try:
            if not isinstance(result, Result):
                for group in groups:
                    self._fail(group, result)
                return 0
            run = result.started_s, result.finished_s, *self._name, result.num_rows
            at, answered = 0, groups
            if have_left:
                answered = []
            for group in groups:
                responses = group.encoder.encode(result, at, len(group.streams))
                at += group.num_rows
                if have_left:
                    group, responses = group.open_answers(responses)
                    answered.append(group)
                group.sink.answer(group, responses, run)
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
