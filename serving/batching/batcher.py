"""One model's queue and its runs: batches while busy, never waits while idle.

All waiting calls run at once, up to a limit; calls that arrive meanwhile form the next batch. So
batches grow with the load, and an idle server adds no delay.

Everything but `num_waiting` happens on one thread, its owner's, which reads from callers and
answers them. That thread executes short batches inline, and offloads others to runner threads
(`OffloadedBatches`):

    rows that wait                           short batches                  who executes them
    few, and no run in progress              1 row or more (`inline_rows`)  the owner, all at once
    more, or while runners are busy          up to 127 rows                 runners, together
    any number, or of large requests few     128 rows or more               the owner, in batches
    more of large requests                   128 rows or more               runners, together
    any number                               none                           runners, together

A request is large from 64 rows on where several cores are free, else from 129 on.

So a lone caller is spared the way to a thread and back (some 50 us), a row that takes 0.1 ms is
batched as soon as others wait, and no model's runs hold up the callers of another.
"""

import logging
import math
from collections import deque
from collections.abc import Callable
from functools import partial

from serving.batching.runs import (
    FAILED,
    Caller,
    Executor,
    Group,
    Outcome,
    Owner,
    Result,
    Run,
    RunnableModel,
    divide,
    open_parts,
    run_shared,
)
from serving.config import BatchingConfig
from serving.errors import (
    DeadlineExceeded,
    ServingError,
    Unavailable,
)
from serving.system.host import Host, Runners, Task
from serving.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

TURN_ROWS = 16
"""Rows that one caller adds to a batch before the others' turn."""
_SHARE_OF_BUDGET = 0.25
"""How much of its time a call may wait for the runs before its own: under overload reading and
refusing take as long again, and so do the network and the kernel."""
_LONG_WAIT_S, _LONG_WAIT_RUNS = 0.1, 10
"""How long a call may wait, or how many runs if they take longer, for whom others wait already:
callers that send more than can run would only be answered later, and not more of them."""
_OWN_ROWS = 8
"""Rows that a caller, or else an address, may have waiting however many others have."""
_GIVE_UP_MEMORY_S = 1.0
"""How long it is remembered that a caller gave up."""

_SWEEP_S = 0.1
"""How often calls are looked at that wait or run."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth the way to another thread."""
_LONG_S, _MIN_ROWS = 0.005, 8
"""How long a run of many rows takes at most, and the most rows that may take longer: larger ones
gain nothing, unless all runs take about as long, and their callers are all answered at the end."""

_Finish = Callable[[list[Outcome]], object]

_INLINE_ROWS = 128
"""The largest request that the owner runs itself: larger batches are hardly cheaper a row, so
another core may take them."""
_SHARED_ROWS = 63
"""The same where several cores are free: fewer rows take less than the way to a thread and back."""
_MAX_QUEUE_BYTES = 1 << 30
"""The most bytes of rows of a fixed size that wait, of each kind of call."""


def _nothing() -> None:
    """Do nothing: the run has not begun."""


CHANGED = Unavailable("the model has changed")
"""Why a call is not run whose version has gone since it was read."""
_LATE = DeadlineExceeded()


class ClientQueue:
    """The waiting calls of one caller."""

    __slots__ = ("caller", "groups", "num_rows")

    def __init__(self, caller: Caller) -> None:
        self.caller = caller
        self.groups: deque[Group] = deque()
        self.num_rows = 0

    def take(self, number: int, *, newest: bool) -> Group:
        """Take up to a number of calls of the oldest group, or of the newest."""
        group = self.groups.pop() if newest else self.groups.popleft()
        size = len(group.streams)
        if size > number:
            at = size - number if newest else number
            older, newer = group.cut(0, at), group.cut(at, size)
            if newest:
                self.groups.append(older)
                group = newer
            else:
                self.groups.appendleft(newer)
                group = older
        self.num_rows -= group.num_rows
        return group

    def drop_cancelled(self) -> None:
        """Drop the oldest calls, as far as their callers have left."""
        while self.groups:
            group, number = self.groups[0], 0
            while number < len(group.streams) and group.streams[number] not in group.caller.streams:
                number += 1
            if not number:
                break
            self.take(number, newest=False)


class Queue:
    """Calls that were read and have not run; used by one thread only."""

    def __init__(self, capacity: int) -> None:
        """Start empty; `capacity` counts rows."""
        self.num_rows = 0
        self.oldest_s = 0.0
        """When the first call arrived in the empty queue, in monotonic seconds."""
        self.capacity = capacity
        self.run_rows = 1
        """The most rows of a run."""
        self.row_s = 0.0
        """Seconds for a row in full runs, with the reading before: a moving average."""
        self._ring: deque[ClientQueue] = deque()
        """Those with calls that wait, the next one's turn first."""
        self._addresses: dict[str, int] = {}
        """Rows that wait, by where their callers are."""

    def room(self, caller: Caller, left_s: float) -> float:
        """Return how many more rows of calls that have so much time left may wait.

        Calls that fit in the next run are never refused, however long the last runs took. Nor is a
        caller with few calls for those of others: half as much again is reserved for callers with
        few calls, and as much for addresses with few. A caller that sends its next call after the
        answer to the last does not wait long for its own calls; one that has many waiting would.
        """
        most: float = self.capacity
        if self.row_s:
            wait_s = left_s * _SHARE_OF_BUDGET
            if self._num_waiting(caller):
                wait_s = min(
                    wait_s, max(_LONG_WAIT_S, _LONG_WAIT_RUNS * self.run_rows * self.row_s)
                )
            most = min(most, max(self.run_rows, wait_s / self.row_s))
        room = most - self.num_rows
        if room < _OWN_ROWS:
            if room < -most / 2:
                own = self._addresses.get(caller.address, 0)
            else:
                own = self._num_waiting(caller)
            room = max(room, min(_OWN_ROWS - own, room + most))
        return room

    def _num_waiting(self, caller: Caller) -> int:
        """Return how many rows of a caller wait."""
        waiting = caller.queues.get(self)
        return waiting.num_rows if waiting else 0

    def note_run(self, num_rows: int, seconds: float) -> None:
        """Learn the time of a row from a run of more than half of `run_rows`; fewer take longer."""
        self.row_s += (seconds / num_rows - self.row_s) / 8

    @property
    def room_for_streams(self) -> int:
        """How many rows streams may add: half is left for unary calls, which can't be stalled."""
        return max(self.capacity // 2 - self.num_rows, not self.num_rows)

    def put(self, group: Group) -> None:
        """Add calls."""
        caller = group.caller
        waiting = caller.queues.get(self)
        if waiting is None:
            waiting = caller.queues[self] = ClientQueue(caller)
        if not waiting.groups:
            if not self._ring:
                self.oldest_s = group.arrived_s
            self._ring.append(waiting)
        num_rows, address = group.num_rows, caller.address
        waiting.groups.append(group)
        waiting.num_rows += num_rows
        self._addresses[address] = self._addresses.get(address, 0) + num_rows
        self.num_rows += num_rows

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait."""
        waiting = caller.queues.get(self)
        return (
            {stream for group in waiting.groups for stream in group.streams} if waiting else set()
        )

    def take(self, max_rows: int, now_s: float) -> tuple[list[Group], list[Group]]:
        """Take up to `max_rows` rows, or one call that is larger.

        The newest of a caller that gives up go first, for its deadlines are not known: the oldest
        are about to be cancelled, so first come, first served would answer nothing in time.

        Returns:
            The calls to run, and those whose deadline has passed. Cancelled ones are in neither.
        """
        taken: list[Group] = []
        if self.num_rows <= max_rows:
            for waiting in self._ring:
                for group in waiting.groups:  # not open_parts: this is the way of most calls
                    if (found := group.open_part()) is not None:
                        taken.append(found)  # noqa: PERF401
                waiting.groups.clear()
                waiting.num_rows = 0
            self._ring.clear()
            self._addresses.clear()
            self.num_rows = 0
        else:
            room = max_rows
            while self._ring and room > 0:
                room -= self._take_turn(taken, room, now_s)
        for group in taken:
            if group.deadline_s <= now_s:
                return divide(taken, now_s)
        return taken, []

    def _take_turn(self, taken: list[Group], room: int, now_s: float) -> int:
        """Take the next caller's share of a batch: a few rows, or one call of any size.

        Returns:
            The rows taken; `room` if the next call is for another batch.
        """
        waiting = self._ring.popleft()
        before = waiting.num_rows
        newest_first = now_s - waiting.caller.gave_up_s < _GIVE_UP_MEMORY_S
        if newest_first:  # else the cancelled ones at the other end would count as waiting
            waiting.drop_cancelled()
        turn = min(TURN_ROWS, room) if self._ring else room
        num_rows = 0
        while waiting.groups:
            rows = waiting.groups[-1 if newest_first else 0].encoder.num_rows
            number = max(0, turn - num_rows) // rows
            if not number and num_rows:
                self._ring.append(waiting)
                break
            if not number and taken and rows > room:
                self._ring.appendleft(waiting)
                num_rows = room
                break
            if (found := waiting.take(max(1, number), newest=newest_first).open_part()) is not None:
                taken.append(found)
                num_rows += found.num_rows
        self._note_taken(waiting, before - waiting.num_rows)
        return num_rows

    def _note_taken(self, waiting: ClientQueue, num_rows: int) -> None:
        self.num_rows -= num_rows
        if self.num_rows:
            self._addresses[waiting.caller.address] -= num_rows
        else:
            self._addresses.clear()

    def forget(self, caller: Caller) -> None:
        """Drop the calls of a closed connection."""
        waiting = caller.queues.pop(self, None)
        if waiting is not None and waiting.groups:
            self._ring.remove(waiting)
            self._note_taken(waiting, waiting.num_rows)

    def clear(self) -> list[Group]:
        """Take all calls, without a turn."""
        taken = [group for waiting in self._ring for group in waiting.groups]
        for waiting in self._ring:
            waiting.groups.clear()
            waiting.num_rows = 0
        self._ring.clear()
        self._addresses.clear()
        self.num_rows = 0
        return taken

    def sweep(self, now_s: float) -> list[Group]:
        """Drop the calls whose callers have left, and take those whose deadline has passed."""
        late: list[Group] = []
        for waiting in list(self._ring):
            before = waiting.num_rows
            kept, gone = divide(open_parts(waiting.groups), now_s)
            late += gone
            waiting.groups = deque(kept)
            waiting.num_rows = sum(group.num_rows for group in kept)
            if not kept:
                self._ring.remove(waiting)
            self._note_taken(waiting, before - waiting.num_rows)
        return late


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
        if is_late or not open_parts(divide(part, now_s)[0]):
            end()


class OffloadedBatches:
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
                self._finish([(groups, FAILED)])
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
            run, end = executor.stoppable()
            running.run = part, clock(), end
            if not executor.is_batchable:
                return run
            return partial(
                run_shared, run, max_batch_size=self._small.run_rows,
                enough_rows=self._enough_rows, num_threads=num_threads,
                is_cancelled=lambda: not open_parts(part),
            )  # fmt: skip

        begin_s = clock()
        parts = executor.run(running.groups, clock, begin)
        return partial(self._take_results, number, parts, clock() - begin_s)

    def _take_results(self, number: int, parts: list[Outcome], seconds: float) -> None:
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
        self, model: RunnableModel, config: BatchingConfig, metrics: Metrics, num_runners: int = 1,
        name: str = "", host: Host | None = None,
    ) -> None:  # fmt: skip
        """Prepare; `attach` comes before the first call."""
        host = host or Host()
        self.model = model
        self.label = name, model.version
        """The name and the version, as metrics have them."""
        self._config = config
        self._metrics = metrics
        self.max_delay_s = config.max_queue_delay_s
        """How long to wait for more rows before a run; see `delay_s`."""
        self.owner: Owner
        capacity = config.queue_capacity
        if row_bytes := model.tensors.row_bytes:
            capacity = min(capacity, max(1, _MAX_QUEUE_BYTES // row_bytes))
        self._executor = Executor(model, partial(host.guard, self.label))
        finish = self._finish_offloaded
        self._offloaded = OffloadedBatches(
            self._executor, config, capacity, num_runners, host.runners, finish
        )
        self._inline = Queue(capacity)
        # Nothing is read during an inline run.
        most = min(config.max_batch_size, config.queue_capacity)
        self._inline.run_rows = min(most, model.inline_rows) or 1
        self._small, self._large = self._offloaded.queues
        self._queues = self._inline, self._small, self._large
        self._refusal: ServingError | None = None
        """Why no call is run: the version is gone, or its runs have ended processes."""
        self._is_closed = self._is_scheduled = False
        are_all_inline = model.inline_rows >= min(_INLINE_ROWS, most)
        largest = _INLINE_ROWS if num_runners == 1 else _SHARED_ROWS
        self.inline_rows = min(largest, model.inline_rows) if are_all_inline else 0
        """The largest request that the owner always runs itself."""
        self._few_rows = min(_INLINE_ROWS, model.inline_rows)
        """The most rows that the owner runs where no others wait or run."""

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self.owner = self._offloaded.owner = owner

    @property
    def num_waiting(self) -> int:
        """The rows that wait for a run; a moment old on other threads."""
        return self._inline.num_rows + self._offloaded.num_waiting

    @property
    def is_busy(self) -> bool:
        """Whether calls wait or run."""
        return bool(self.num_waiting or self._offloaded.running)

    @property
    def oldest_run_s(self) -> float:
        """When the oldest run on a thread began, in monotonic seconds; infinite without any."""
        return self._offloaded.oldest_run_s

    @property
    def max_run_s(self) -> float:
        """The longest run, in seconds: it is ended then."""
        return self._offloaded.max_run_s

    def submit(self, group: Group, *, is_final: bool = True) -> int:
        """Let calls wait for a run, as far as there is room; return how many, the first ones.

        Args:
            group: the calls.
            is_final: whether nobody else takes the others.
        """
        if self._refusal is not None:
            self._fail(group, self._refusal)
            return len(group.streams)
        rows, number = group.encoder.num_rows, len(group.streams)
        queue = self._inline if rows <= self.inline_rows else self._offloaded.queue_of(rows)
        if queue.num_rows + group.num_rows > queue.run_rows:
            now_s = self.owner.clock()
            last_s = max(group.deadlines_s or (group.deadline_s,))
            left_s = min(last_s, group.arrived_s + self._config.slo_s) - now_s
            room = queue.room(group.caller, left_s)
            # However slow the model is: a call may always be the only one.
            fitting = max(int(not queue.num_rows), int(min(room, group.num_rows) // rows))
            if fitting < number:
                if is_final:
                    self._metrics.count_failure(self.label, 0.0, number - fitting)
                if not fitting:
                    return 0
                number = fitting
                group = group.cut(0, number)
        self._schedule()
        queue.put(group)
        return number

    def add(self, group: Group) -> None:
        """Let calls wait for a run, even if there is no room."""
        if self._refusal is not None:
            self._fail(group, self._refusal)
            return
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
        return self._inline if num_rows <= self.inline_rows else self._offloaded.queue_of(num_rows)

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that wait or run."""
        waiting = (each.streams_of(caller) for each in self._queues)
        return self._offloaded.streams_of(caller).union(*waiting)

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
        """Hand batches to free runners, and execute the next inline one.

        Returns:
            Whether calls wait for a runner, or have one.
        """
        self._is_scheduled = False
        offloaded, inline = self._offloaded, self._inline
        if num_rows := offloaded.num_waiting:
            if num_rows <= self._few_rows and not offloaded.running:
                for each in (self._small, self._large):
                    self._run(each, now_s)
            else:
                self._end_late(offloaded.hand_out(now_s))
        if inline.num_rows:
            num_rows = self._run(inline, now_s)
            if num_rows > inline.run_rows // 2:
                inline.note_run(num_rows, self.owner.clock() - now_s)
            if inline.num_rows:
                self._schedule()
        return bool(offloaded.running)

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
        self._end_late(self._offloaded.sweep(now_s))

    def _finish_offloaded(self, parts: list[Outcome]) -> None:
        for groups, result in parts:
            self._deliver(groups, result, have_left=True)
        if self._offloaded.num_waiting:
            self._schedule()

    def _end_late(self, groups: list[Group]) -> None:
        for group in groups:
            self._fail(group, _LATE)

    def _fail(self, group: Group, error: ServingError) -> None:
        duration_s = self.owner.clock() - group.arrived_s
        self._metrics.count_failure(self.label, duration_s, len(group.streams))
        own = type(error)(str(error))  # others may have the same one
        own.model = self.label
        group.sink.fail(group, own)

    def _deliver(
        self, groups: list[Group], result: Result | ServingError, *, have_left: bool = False
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
            run = result.started_s, result.finished_s, *self.label, result.num_rows
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
            self.owner.defer(partial(self._metrics.observe_run, result, answered, self.label))
            return at
        except Exception:  # a bug of ours: it ends these calls, and never the owner
            _log.exception("a batch could not be answered")
            for group in open_parts(groups):
                self._fail(group, FAILED)
            return 0

    @property
    def is_blocked(self) -> bool:
        """Whether its calls are refused for now, since its runs have ended processes."""
        return self._refusal is not None and not self._is_closed

    def block(self, refusal: ServingError | None) -> None:
        """Refuse all calls that have not begun to run, and later ones; None runs them again."""
        if self._is_closed:
            return
        self._refusal = refusal
        if refusal is not None:
            for queue in self._queues:
                for group in open_parts(queue.clear()):
                    self._fail(group, refusal)

    def close(self) -> None:
        """End the threads once they are idle; later calls are asked to retry."""
        self._is_closed, self._refusal = True, CHANGED
        self._offloaded.close()
