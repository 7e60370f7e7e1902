"""Any order of submit, cancel, advance, take, finish and fail keeps the promises of the queue."""

import math

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from serving.batching.batch import Piece, run_pieces
from serving.batching.fair_queue import FairQueue
from serving.batching.request import Answer
from serving.errors import DeadlineExceeded, ModelError, Overloaded
from tests.support.fakes import FakeModel, RecordingRequest, images_of

CAPACITY, MAX_BATCH = 60, 8


class QueueMachine(RuleBasedStateMachine):
    def __init__(self) -> None:
        super().__init__()
        self.model = FakeModel()
        self.queue = FairQueue(CAPACITY)
        self.now_s = 0.0
        self.accepted: list[RecordingRequest] = []
        self.cancelled: set[RecordingRequest] = set()
        self.running: list[list[Piece]] = []
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
        before = self.queue.num_rows
        try:
            self.queue.admit(request, self.model, request.record, self.now_s)
        except Overloaded:
            assert before + num_rows > CAPACITY
            assert self.queue.num_rows == before
            return
        self.next_value += num_rows
        self.accepted.append(request)

    @precondition(lambda self: self.accepted)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.accepted))
        self.queue.cancel(request)
        if request.outcome is None:
            self.cancelled.add(request)

    @rule()
    def advance(self) -> None:
        self.now_s += 1.0

    @rule()
    def take(self) -> None:
        waiting = self.queue.num_rows
        pieces = self.queue.take(MAX_BATCH, self.now_s)
        if not pieces:
            assert self.queue.num_rows == 0
            return
        num_rows = sum(rows for _, _, rows in pieces)
        assert 1 <= num_rows <= MAX_BATCH
        assert num_rows == MAX_BATCH or self.queue.num_rows == 0
        assert self.queue.num_rows <= waiting - num_rows
        for request, _, _ in pieces:
            assert request.deadline_s > self.now_s
            assert request not in self.cancelled
        self.running.append(pieces)

    @precondition(lambda self: self.running)
    @rule(data=st.data(), poison=st.frozensets(st.integers(0, 250), max_size=3))
    def run(self, data: st.DataObject, poison: frozenset[int]) -> None:
        self.model.poison = poison
        self._run(self.running.pop(data.draw(st.integers(0, len(self.running) - 1))))
        self.model.poison = frozenset()

    def _run(self, pieces: list[Piece]) -> None:
        for batch, error in run_pieces(pieces, lambda: self.now_s):
            if error is not None:
                ((request, first, rows),) = batch.pieces
                assert self.model.poison.intersection(request.rows(first, rows))
                self.queue.fail(request, ModelError("planted"))
            for request, answer in batch.finish() if error is None else ():
                request.deliver(answer)

    @invariant()
    def counts_the_rows_that_wait(self) -> None:
        waiting = sum(
            request.num_rows - request.rows_taken
            for request in self.accepted
            if not request.settled
        )
        assert self.queue.num_rows == waiting
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
        while pieces := self.queue.take(MAX_BATCH, self.now_s):
            self.running.append(pieces)
        for pieces in self.running:
            self._run(pieces)
        for request in self.accepted:
            assert (request.outcome is None) == (request in self.cancelled)


TestQueueMachine = QueueMachine.TestCase
TestQueueMachine.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
