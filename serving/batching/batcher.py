"""One model's queue and its runs: batches while busy, never waits while idle.

All waiting calls run at once, up to a limit; calls that arrive meanwhile form the next batch. So
batches grow with the load, and an idle server adds no delay.

The owner's thread, which reads from callers and answers them, executes short batches inline, and
offloads others to runner threads (`OffloadedBatches`): see `place`. So a lone caller is spared the
way to a thread and back (some 50 us), a row that takes 0.1 ms is batched as soon as others wait,
and no model's runs hold up the callers of another.
"""

import logging
from collections.abc import Callable, Iterable
from functools import partial
from random import Random
from typing import Any, NamedTuple

from serving.batching.entry import Entry
from serving.batching.offload import OffloadedBatches
from serving.batching.place import Cost, Place, place
from serving.batching.queue import Queue
from serving.batching.run import (
    FAILED,
    Executor,
    Group,
    Outcome,
    Owner,
    Ran,
    Result,
    Run,
    RunnableModel,
    open_calls,
)
from serving.batching.spot_check import (
    MOST_BATCHES,
    Closeness,
    Compared,
    Drawn,
    SpotChecks,
)
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ServingError
from serving.system.host import Host
from serving.telemetry.metrics import Metrics

_log = logging.getLogger(__name__)

CHECKED = "in each of %d batches a row had another answer than alone"
"""Why a version runs calls alone whose graph was proved to keep rows apart."""
_MAX_QUEUE_BYTES = 1 << 30
"""The most bytes of rows of a fixed size that wait, of each kind of call."""


class Net(NamedTuple):
    """How the answers of a version's batches are checked; see `spot_check`."""

    random: Random
    """Draws the calls."""
    closeness: Closeness
    """How far apart answers may be."""
    digest: str
    """The SHA-256 of the model's file, for the log."""
    is_proved: bool
    """Whether a proof let rows be batched: else an operator did, and all stays as it is."""
    record: Callable[[str], object]
    """Has a later start know that rows depend on one another; takes the reason."""


class Batcher(Entry):
    """Runs the calls of one model, and gives each exactly one outcome."""

    def __init__(
        self,
        model: RunnableModel,
        config: BatchingConfig,
        metrics: Metrics,
        num_runners: int = 1,
        name: str = "",
        host: Host | None = None,
        net: Net | None = None,
        *,
        counts_calls: bool = True,
    ) -> None:
        """Prepare; `attach` comes before the first call."""
        host = host or Host()
        self._net = net
        self._answers: Any = getattr(model, "answers", None)
        """Which outputs are classes and probabilities, if the model knows: an `Answers`."""
        capacity = config.queue_capacity
        if row_bytes := model.tensors.row_bytes:
            capacity = min(capacity, max(1, _MAX_QUEUE_BYTES // row_bytes))
        label = name, model.version
        guard = partial(host.guard, label)
        self._executor = Executor(model, guard, config.max_response_bytes)
        self._offloaded = OffloadedBatches(
            self._executor, config, capacity, num_runners, host.runners
        )
        self._small, self._large = self._offloaded.queues
        queues = Queue(capacity), self._small, self._large
        super().__init__(label, model.tensors, config, metrics, queues, counts_calls=counts_calls)
        self.max_delay_s = config.max_queue_delay_s
        # Nothing is read during an inline run.
        most = min(config.max_batch_size, config.queue_capacity)
        self._queue.run_rows = min(most, model.inline_rows) or 1
        self._queue_at = dict(zip(Place, queues, strict=True))
        self._cost = Cost.of(model.inline_rows, most, num_runners)
        self._always_rows = self._cost.always_rows
        self._checks: SpotChecks | None = None
        if net is not None and model.tensors.is_batchable:
            outputs = model.tensors.outputs
            self._checks = SpotChecks(net.random, outputs, net.closeness, most)

    def attach(self, owner: Owner) -> None:
        super().attach(owner)
        self._offloaded.owner = owner

    @property
    def is_busy(self) -> bool:
        return bool(self.num_waiting or self._offloaded.running)

    @property
    def oldest_run_s(self) -> float:
        return self._offloaded.oldest_run_s

    @property
    def max_run_s(self) -> float:
        return self._offloaded.max_run_s

    def _queue_of(self, num_rows: int) -> Queue:
        return self._queue_at[place(num_rows, self._cost, is_busy=True)]

    def _running(self) -> Iterable[Group]:
        return (group for each in self._offloaded.running.values() for group in each.groups)

    def turn(self, now_s: float) -> bool:
        """Hand batches to free runners, and execute the next inline one.

        Returns:
            Whether calls wait for a runner, or have one.
        """
        self._is_scheduled = False
        offloaded, inline = self._offloaded, self._queue
        if num_rows := self._small.num_rows + self._large.num_rows:
            if place(num_rows, self._cost, is_busy=bool(offloaded.running)) is Place.INLINE:
                for each in (self._small, self._large):
                    self._run(each, now_s)
            else:
                self.end_late(offloaded.hand_out(now_s, self._finish_offloaded))
        if inline.num_rows:
            num_rows = self._run(inline, now_s)
            if num_rows > inline.run_rows // 2:
                inline.note_run(num_rows, self.owner.clock() - now_s)
            if inline.num_rows:
                self.schedule()
        return bool(offloaded.running)

    def _run(self, queue: Queue, now_s: float) -> int:
        """Make a run on this thread, and answer its calls; return its rows."""
        groups, late = queue.take(queue.run_rows, now_s)
        if late:
            self.end_late(late)
        num_rows = 0
        if groups:
            for calls, result in self._executor.run(groups, self.owner.clock):
                num_rows += self._deliver(calls, result)
        return num_rows

    def tick(self, now_s: float) -> None:
        """End the runs and calls that are late, and forget cancelled calls."""
        self.end_late(self._offloaded.sweep(now_s))

    def _finish_offloaded(self, outcomes: list[Outcome]) -> None:
        for groups, result in outcomes:
            self._deliver(groups, result, have_left=True)
        if self._offloaded.num_waiting:
            self.schedule()

    def _look_again(self, drawn: Drawn) -> Drawn | None:
        """Run a call once more in this turn, if that is quick; None if it needs nothing further.

        All answers of a turn leave by one write, so that the others wait for no more than this run.
        Calls that stay together are answered together, which costs less.
        """
        is_busy = bool(self._offloaded.running)
        if place(drawn.call.num_rows, self._cost, is_busy=is_busy) is not Place.INLINE:
            return drawn
        if not open_calls([drawn.call]):  # it has left, during a runner's run
            return None
        outcomes = self._executor.run([drawn.call], self.owner.clock)
        compared = self._compare(drawn, outcomes, self._executor.run_feeds)
        drawn = drawn._replace(alone=self._judged(outcomes, compared))
        return None if drawn.alone is None else drawn

    def _end_drawn(self, drawn: Drawn) -> None:
        """Answer a call that was drawn, or have it run once more by a runner before."""
        if drawn.alone is not None:
            self._answer_drawn(drawn, drawn.alone)
        elif open_calls([drawn.call]):
            compare, finish = partial(self._compare, drawn), partial(self._finish_alone, drawn)
            self._offloaded.run_alone(drawn.call, compare, finish)

    def _finish_alone(
        self, drawn: Drawn, outcomes: list[Outcome], compared: Compared | None
    ) -> None:
        if open_calls([drawn.call]):
            self._answer_drawn(drawn, self._judged(outcomes, compared))
        if self._offloaded.num_waiting:
            self.schedule()

    def _compare(self, drawn: Drawn, outcomes: list[Outcome], run: Run) -> Compared | None:
        """Compare a call's answers, on the thread that has run it alone; None if it was ended."""
        alone = _alone_of(outcomes)
        if alone is None:
            return None
        assert self._checks is not None
        inputs = partial(self._executor.feeds, [drawn.call])
        return self._checks.compare(drawn, alone, lambda: inputs()[0], run, self.owner.clock)

    def _judged(
        self, outcomes: list[Outcome], compared: Compared | None
    ) -> Result | ServingError | None:
        """Return the outcome of a call alone that its caller gets; None for that of the batch."""
        alone = _alone_of(outcomes)
        if alone is None or compared is None:
            return None
        assert self._checks is not None
        assert self._net is not None
        is_close = self._checks.is_close(alone, compared, self._note_difference)
        return None if is_close or not self._net.is_proved else alone

    def _answer_drawn(self, drawn: Drawn, alone: Result | ServingError | None) -> None:
        """Answer a call by its run alone, or by the batch's if there is none."""
        if isinstance(alone, ServingError):
            self.fail(drawn.call, alone)
            return
        answer, at = (drawn.result, drawn.at) if alone is None else (alone, 0)
        try:
            responses = drawn.call.encoder.encode(answer, at, 1)
            run = answer.started_s, answer.finished_s, *self.label, answer.num_rows
            drawn.call.sink.answer(drawn.call, responses, run)
            if self._counts_calls:
                counted = answer, [drawn.call], self.label
                self.owner.defer(partial(self._metrics.observe_calls, *counted))
        except Exception:  # a bug of ours: it ends this call, and never the owner
            _log.exception("a call could not be answered")
            self.fail(drawn.call, FAILED)

    def _note_difference(self, text: str, number: int) -> None:
        """Note that a row of a batch had another answer than alone."""
        assert self._net is not None
        self._metrics.count_mismatch(self.label)
        name, version = self.label
        known = name, version, self._net.digest, text
        if not self._net.is_proved:
            _log.warning(
                "model %s version %s (SHA-256 %s): in a batch a row has another answer than alone: "
                "%s; it is batched by the operator's setting",
                *known,
            )
        elif number < MOST_BATCHES:
            _log.error(
                "model %s version %s (SHA-256 %s): in a batch a row has another answer than alone: "
                "%s; its caller has the answer alone",
                *known,
            )
        else:
            self.stop_batching()
            _log.error(
                "model %s version %s (SHA-256 %s): in a batch a row has another answer than alone: "
                "%s; calls run alone from now on",
                *known,
            )

    def stop_batching(self) -> None:
        """Run each call alone from now on: rows were found to depend on one another."""
        if self._net is None or not self._net.is_proved or not self._executor.is_batchable:
            return
        self._executor.is_batchable = False
        self._net.record(CHECKED % MOST_BATCHES)

    def _deliver(
        self, groups: list[Group], result: Result | ServingError, *, have_left: bool = False
    ) -> int:
        """Give calls their outcome, but for one that runs once more at first, now and then.

        Args:
            groups: the calls, in the order of their rows.
            result: their outcome.
            have_left: whether callers may have left since the run began, as during a runner's.

        Returns:
            The rows of these calls; 0 if there was no answer to them.
        """
        try:
            if not isinstance(result, Result):
                for group in groups:
                    self.fail(group, result)
                return 0
            run = result.started_s, result.finished_s, *self.label, result.num_rows
            at, drawn, answered = 0, None, groups
            if result.num_rows > 1 and self._checks is not None and self._executor.is_batchable:
                drawn = self._checks.draw(groups, result, self.owner.clock())
                if drawn is not None:
                    drawn = self._look_again(drawn)
            if drawn is None and not have_left:  # the way of most
                for group in groups:
                    responses = group.encoder.encode(result, at, len(group.streams))
                    at += group.num_rows
                    group.sink.answer(group, responses, run)
            else:
                groups = groups if drawn is None else drawn.groups
                at = sum(group.num_rows for group in groups)
                answered = self._answer_others(groups, drawn, result, run, have_left=have_left)
            counted = answered if self._counts_calls else ()
            self.owner.defer(partial(self._metrics.observe_run, result, counted, self.label))
            if self._answers is not None:
                facts = self._answers, result.outputs, self.label
                self.owner.defer(partial(self._metrics.observe_answers, *facts))
        except Exception:  # a bug of ours: it ends these calls, and never the owner
            _log.exception("a batch could not be answered")
            for group in open_calls(groups):
                self.fail(group, FAILED)
            return 0
        if drawn is not None:
            self._end_drawn(drawn)
        return at

    def _answer_others(
        self,
        groups: list[Group],
        drawn: Drawn | None,
        result: Result,
        run: Ran,
        *,
        have_left: bool,
    ) -> list[Group]:
        """Answer the calls of a run but for the drawn one; return them."""
        answered, at = [], 0
        for group in groups:
            first, at = at, at + group.num_rows
            if drawn is not None and group is drawn.call:
                continue
            responses = group.encoder.encode(result, first, len(group.streams))
            if have_left:
                group, responses = group.open_answers(responses)
            answered.append(group)
            group.sink.answer(group, responses, run)
        return answered

    def close(self) -> None:
        self._offloaded.close()


def _alone_of(outcomes: list[Outcome]) -> Result | ServingError | None:
    """Return the outcome of a call's own run; None without one, or if it was ended.

    Then it is as good as not drawn.
    """
    alone = next((found for groups, found in outcomes if groups), None)
    return None if isinstance(alone, DeadlineExceeded) else alone
