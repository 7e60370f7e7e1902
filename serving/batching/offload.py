"""Batches that run on other threads than their owner's."""

import logging
import math
from collections.abc import Callable
from functools import partial

from serving.batching.parallel import run_parallel
from serving.batching.queue import Queue
from serving.batching.run import (
    FAILED,
    Executor,
    Group,
    Outcome,
    Owner,
    Result,
    Run,
    divide,
    open_calls,
)
from serving.batching.spot_check import Compared
from serving.config import BatchingConfig
from serving.system.batch_threads import Runners, Task

_log = logging.getLogger(__name__)

_SWEEP_S = 0.1
"""How often calls are looked at that wait or run."""
_ENOUGH_S = 0.0004
"""How long a run takes at least that is worth the way to another thread."""
_LONG_S, _MIN_ROWS = 0.005, 8
"""How long a run of many rows takes at most, and the most rows that may take longer: larger ones
gain nothing, unless all runs take about as long, and their callers are all answered at the end."""

_Finish = Callable[[list[Outcome]], object]
_Look = Callable[[list[Outcome], Run], Compared | None]
_FinishAlone = Callable[[list[Outcome], Compared | None], object]


def _nothing() -> None:
    """Do nothing: the run has not begun."""


class _RunnerBatch:
    """The calls that a runner has."""

    __slots__ = ("groups", "run")

    def __init__(self, groups: list[Group], now_s: float) -> None:
        self.groups = groups
        self.run: tuple[list[Group], float, Callable[[], object]] = groups, now_s, _nothing
        """Those that run, since when, and a function that ends the run; replaced as a whole, for
        the owner reads it meanwhile."""

    def end_if_over(self, now_s: float, max_run_s: float) -> None:
        """End the run if nobody waits for it any longer, or it takes too long."""
        calls, started_s, end = self.run
        is_late = now_s - started_s > max_run_s
        if is_late or not open_calls(divide(calls, now_s)[0]):
            end()


class OffloadedBatches:
    """Two queues, of small calls and of large ones, and the threads that take turns at them."""

    def __init__(
        self,
        executor: Executor,
        config: BatchingConfig,
        capacity: int,
        num_runners: int,
        runners: Callable[[int], Runners],
    ) -> None:
        """Prepare; `owner` is set before the first call."""
        self.owner: Owner
        self.queues = self._small, self._large = Queue(capacity), Queue(capacity)
        self._most_rows = min(config.max_batch_size, config.queue_capacity)
        for queue in self.queues:
            queue.run_rows = self._most_rows
        self.running: dict[int, _RunnerBatch] = {}
        """The groups that the runners have, by number."""
        self.max_run_s = config.max_run_s
        self._executor, self._num_runners = executor, num_runners
        self._runners = runners(num_runners)
        self._num_taken = 0
        self._was_small = False
        """Whether a runner took small calls last, while large ones waited."""
        self._next_sweep_s = 0.0
        self._row_s = 0.0
        """Seconds that a row takes in the latest runs: a moving average."""
        self._least_s = math.inf
        """Seconds of the shortest run."""

    @property
    def num_waiting(self) -> int:
        """The rows that wait."""
        return self._small.num_rows + self._large.num_rows

    def hand_out(self, now_s: float, finish: _Finish) -> list[Group]:
        """Give waiting calls to free runners, which share them; return those that are late.

        `finish` takes the outcomes. It is not kept: its owner has this, and a version that is gone
        would wait for the collector of such circles, which looks at old objects once in a while.
        """
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
            self.running[self._num_taken] = running = _RunnerBatch(groups, now_s)
            num_threads = 1 if self.num_waiting else num_free
            is_free = not self.num_waiting and num_free == self._num_runners
            facts = self._num_taken, running, num_threads, finish
            work = partial(self._run, *facts, is_free=is_free)
            try:
                self._runners.put(work, self.owner.post)
            except RuntimeError:
                _log.error("the server can't start a thread")
                del self.running[self._num_taken]
                finish([(groups, FAILED)])
        return ended

    def run_alone(self, call: Group, look: _Look, finish: _FinishAlone) -> None:
        """Have a runner run one call by itself; `finish` takes the outcome, and what `look` says.

        If all runners are busy, it runs once one is free, before what waits in the queues.

        Args:
            call: the call.
            look: gets the outcome and the model's run, on the runner's thread.
            finish: called on the owner's thread.
        """
        self._num_taken += 1
        self.running[self._num_taken] = running = _RunnerBatch([call], self.owner.clock())
        try:
            self._runners.put(
                partial(self._run_one, self._num_taken, running, look, finish), self.owner.post
            )
        except RuntimeError:
            _log.error("the server can't start a thread")
            del self.running[self._num_taken]
            finish([], None)

    def _run_one(
        self, number: int, running: _RunnerBatch, look: _Look, finish: _FinishAlone
    ) -> Task:
        """Run a call by itself, on a runner's thread; return the function that delivers it."""

        def begin(calls: list[Group]) -> Run:
            run, end = self._executor.stoppable(is_alone=False)
            running.run = calls, self.owner.clock(), end
            return run

        waiting = open_calls(running.groups)  # while it waited for this runner it may have left
        outcomes = self._executor.run(waiting, self.owner.clock, begin) if waiting else []
        compared = look(outcomes, lambda feeds: begin(waiting)(feeds))

        def deliver() -> None:
            del self.running[number]
            finish(outcomes, compared)

        return deliver

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

    def _run(
        self,
        number: int,
        running: _RunnerBatch,
        num_threads: int,
        finish: _Finish,
        *,
        is_free: bool,
    ) -> Task:
        """Run calls, on a runner's thread; return the function that delivers the results.

        Args:
            number: of the run.
            running: the calls.
            num_threads: how many runs may share them.
            finish: takes the outcomes.
            is_free: whether nothing else waits or runs.
        """
        executor, clock = self._executor, self.owner.clock

        def begin(calls: list[Group]) -> Run:
            num_rows = sum(group.num_rows for group in calls) if executor.is_batchable else 1
            # Cores that are free share the rows, or the one run that is worth no more slices.
            is_alone = is_free and num_rows < 2 * self._enough_rows
            run, end = executor.stoppable(is_alone=is_alone)
            running.run = calls, clock(), end
            if not executor.is_batchable:
                return run
            return partial(
                run_parallel,
                run,
                max_batch_size=self._small.run_rows,
                enough_rows=self._enough_rows,
                num_threads=1 if is_alone else num_threads,
                is_cancelled=lambda: not open_calls(calls),
            )

        begin_s = clock()
        outcomes = executor.run(running.groups, clock, begin)
        return partial(self._take_results, number, outcomes, clock() - begin_s, finish)

    def _take_results(
        self, number: int, outcomes: list[Outcome], seconds: float, finish: _Finish
    ) -> None:
        del self.running[number]
        num_rows = sum(result.num_rows for _, result in outcomes if isinstance(result, Result))
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
        finish(outcomes)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._runners.close()
