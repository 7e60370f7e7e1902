"""Runs that take long, of many rows or of a slow model, on threads that free the owner's."""

import logging
from collections.abc import Callable
from functools import partial

from serving.batching.execution import Executor
from serving.batching.group import Caller, Group, Owner, open_parts
from serving.batching.parallel_run import run_shared
from serving.batching.queue import TURN_ROWS, Queue
from serving.batching.result import Result
from serving.config import BatchingConfig
from serving.system.host import Runners, Task

_SWEEP_S = 0.1
"""How often calls are looked at that wait."""
_log = logging.getLogger(__name__)

_Finish = Callable[[list[tuple[list[Group], Result | None]]], object]


class LongRuns:
    """Two queues, of small calls and of large ones, and the threads that take turns at them."""

    def __init__(
        self, executor: Executor, config: BatchingConfig, capacity: int, num_runners: int,
        runners: Callable[[int], Runners], finish: _Finish,
    ) -> None:  # fmt: skip
        """Prepare; `owner` is set before the first call."""
        self.owner: Owner
        self.queues = self._small, self._large = Queue(capacity), Queue(capacity)
        for queue in self.queues:
            queue.run_rows = min(config.max_batch_size, config.queue_capacity)
        self.running: dict[int, list[Group]] = {}
        """The groups that the runners have, by number."""
        self._executor, self._config, self._num_runners = executor, config, num_runners
        self._runners, self._finish = runners(num_runners), finish
        self._num_taken = 0
        self._was_small = False
        """Whether a runner took small calls last, while large ones waited."""
        self._next_sweep_s = 0.0

    def queue_of(self, num_rows: int) -> Queue:
        """Return the queue of calls of a size."""
        return self._small if num_rows <= TURN_ROWS else self._large

    @property
    def num_waiting(self) -> int:
        """The rows that wait."""
        return self._small.num_rows + self._large.num_rows

    def streams_of(self, caller: Caller) -> set[bytes]:
        """Return the calls of a caller that run."""
        groups = (group for groups in self.running.values() for group in groups)
        return {stream for group in groups if group.caller is caller for stream in group.streams}

    def hand_out(self, now_s: float) -> list[Group]:
        """Give waiting calls to free runners, which share them; return those that are late."""
        ended: list[Group] = []
        while self.num_waiting and (num_free := self._num_runners - len(self.running)) > 0:
            are_both = bool(self._small.num_rows and self._large.num_rows)
            is_small = bool(self._small.num_rows and not (are_both and self._was_small))
            self._was_small = are_both and is_small
            queue = self._small if is_small else self._large
            share = max(-(-queue.num_rows // num_free), self._executor.model.enough_rows)
            groups, late = queue.take(min(queue.run_rows, share), now_s)
            ended += late
            if not groups:
                continue
            self._num_taken += 1
            self.running[self._num_taken] = groups
            num_threads = 1 if self.num_waiting else num_free
            work = partial(self._run, self._num_taken, groups, num_threads)
            try:
                self._runners.put(work, self.owner.post)
            except RuntimeError:
                _log.error("the server can't start a thread")
                self._finish([(self.running.pop(self._num_taken), None)])
        return ended

    def sweep(self, now_s: float) -> list[Group]:
        """Forget cancelled calls that wait while all runners are busy; return those that are late.

        Now and then only: it may be called often.
        """
        if not self.num_waiting or now_s < self._next_sweep_s:
            return []
        self._next_sweep_s = now_s + _SWEEP_S
        return self._small.sweep(now_s) + self._large.sweep(now_s)

    def _run(self, number: int, groups: list[Group], num_threads: int) -> Task:
        """Run calls, on a runner's thread; return the function that delivers the results."""
        executor, clock = self._executor, self.owner.clock
        begin_s = clock()
        run = None
        if executor.is_batchable:
            run = partial(
                run_shared, executor.model.run, max_batch_size=self._config.max_batch_size,
                enough_rows=executor.model.enough_rows, num_threads=num_threads,
                is_cancelled=lambda: not open_parts(groups),
            )  # fmt: skip
        parts = list(executor.run(groups, clock, run))
        return partial(self._take_results, number, parts, clock() - begin_s)

    def _take_results(
        self, number: int, parts: list[tuple[list[Group], Result | None]], seconds: float
    ) -> None:
        del self.running[number]
        num_rows = sum(result.num_rows for _, result in parts if result is not None)
        for each in self.queues:
            if num_rows > each.run_rows // 2:
                each.note_run(num_rows, seconds / self._num_runners)
        self._finish(parts)

    def close(self) -> None:
        """End the threads once they are idle."""
        self._runners.close()
