"""Any order of submit, cancel, advance, take, finish and fail keeps the promises of the backlog."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.batching.fair_queue import Backlog
from serving.batching.request import Answer, Batch
from serving.errors import DeadlineExceeded, ModelError, Overloaded
from tests.support.fakes import FakeModel, RecordingRequest, images_of, probabilities_of

CAPACITY, MAX_BATCH = 60, 8


class BacklogMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.backlog = Backlog(FakeModel(), CAPACITY)
        self.now_s = 0.0
        self.accepted: list[RecordingRequest] = []
        self.cancelled: set[RecordingRequest] = set()
        self.running: list[Batch] = []
        self.next_value = 0

    @rule(
        num_rows=st.integers(1, 40),
        caller=st.sampled_from("abc"),
        patience_s=st.sampled_from([1.0, 3.0, math.inf]),
    )
    def submit(self, num_rows: int, caller: str, patience_s: float) -> None:
        values = [(self.next_value + row) % 251 for row in range(num_rows)]
        request = RecordingRequest(
            images_of(*values), caller=caller, deadline_s=self.now_s + patience_s
        )
        before = self.backlog.num_rows
        try:
            self.backlog.admit(request, request.record, self.now_s)
        except Overloaded:
            assert before + num_rows > CAPACITY
            assert self.backlog.num_rows == before
            return
        self.next_value += num_rows
        self.accepted.append(request)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.accepted))
        self.backlog.cancel(request)
        if request.outcome is None:
            self.cancelled.add(request)

    @rule()
    def advance(self) -> None:
        self.now_s += 1.0

    @rule()
    def take(self) -> None:
        waiting = self.backlog.num_rows
        batch = self.backlog.take(MAX_BATCH, self.now_s)
        if batch is None:
            assert self.backlog.num_rows == 0
            return
        assert 1 <= batch.num_rows <= MAX_BATCH
        assert batch.num_rows == MAX_BATCH or self.backlog.num_rows == 0
        assert self.backlog.num_rows <= waiting - batch.num_rows
        for request, _, _ in batch.pieces:
            assert request.deadline_s > self.now_s
            assert request not in self.cancelled
        self.running.append(batch)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        batch = self._end_one(data)
        probabilities = probabilities_of(batch.images())
        digits = probabilities.argmax(axis=1).astype("uint8").tobytes()
        for request, answer in batch.finish(digits, probabilities.tobytes()):
            request.deliver(answer)

    @precondition(lambda self: self.running)
    @rule(data=st.data())
    def fail(self, data: st.DataObject) -> None:
        batch = self._end_one(data)
        for half in batch.halves() or [batch]:
            for request, _, _ in half.pieces:
                self.backlog.fail(request, ModelError("planted"))

    def _end_one(self, data: st.DataObject) -> Batch:
        return self.running.pop(data.draw(st.integers(0, len(self.running) - 1)))

    @invariant()
    def counts_the_rows_that_wait(self) -> None:
        waiting = sum(
            request.num_rows - request.rows_taken
            for request in self.accepted
            if not request.settled
        )
        assert self.backlog.num_rows == waiting
        assert 0 <= waiting <= CAPACITY

    @invariant()
    def answers_are_those_of_the_images(self) -> None:
        for request in self.accepted:
            if isinstance(request.outcome, Answer):
                assert request.digits == [value % 10 for value in request.values]
            if isinstance(request.outcome, DeadlineExceeded):
                assert request.deadline_s <= self.now_s

    def teardown(self) -> None:
        """Let everything end: each accepted request has exactly one outcome or was cancelled."""
        while (batch := self.backlog.take(MAX_BATCH, self.now_s)) is not None:
            self.running.append(batch)
        for batch in self.running:
            probabilities = probabilities_of(batch.images())
            digits = probabilities.argmax(axis=1).astype("uint8").tobytes()
            for request, answer in batch.finish(digits, probabilities.tobytes()):
                request.deliver(answer)
        for request in self.accepted:
            assert (request.outcome is None) == (request in self.cancelled)


TestBacklogMachine = BacklogMachine.TestCase
TestBacklogMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
