"""A batcher whose owner is the test's thread: quick runs happen there, long ones on runners."""

import gc
import threading
import weakref
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from serving.batching.batcher import Batcher
from serving.batching.layout import Layout, Piece
from serving.batching.run import Result, arrays_of, class_numbers
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, Unavailable
from serving.proof.sizes import MOST_SIZE
from serving.router import ServedVersion
from serving.telemetry.metrics import Metrics
from serving.tensors import Tensor, TensorSignature
from tests.support.fakes import (
    FakeCaller,
    FakeClock,
    FakeModel,
    FakeOwner,
    FakeRequest,
    GatedModel,
    images_of,
    joined,
)

SMALL = BatchingConfig(max_batch_size=4, queue_capacity=8, max_request_rows=8)


class QuickModel(FakeModel):
    inline_rows = 128


@pytest.fixture
def model():
    return GatedModel()


@pytest.fixture
def clock():
    return FakeClock()


@pytest.fixture
def owner_of(clock):
    """Make owners of batchers; afterwards their threads end."""
    with ExitStack() as stack:

        def make(model, config=SMALL, num_runners=1, metrics=None):
            batcher = Batcher(model, config, metrics or Metrics(), num_runners)
            stack.callback(batcher.close)
            if isinstance(model, GatedModel):
                stack.callback(model.open, 1000)
            return FakeOwner(batcher, clock)

        yield make


@pytest.fixture
def owner(owner_of, model):
    return owner_of(model)


def occupy(owner, model):
    """Keep a runner busy until the test opens the model's gate."""
    request = owner.submit(0)
    model.wait_until_running()
    return request


# Quick runs


def test_what_comes_together_is_one_batch_and_never_too_large(owner_of):
    model = QuickModel()
    owner = owner_of(model)
    requests = [FakeRequest(value) for value in range(6)]
    for request in requests:
        assert owner.batcher.submit(request.group) == 1
    owner.work()
    assert [request.digits for request in requests] == [[value] for value in range(6)]
    assert model.ran == [[0, 1, 2, 3], [4, 5]]


def test_poison_request_fails_alone(caplog, owner_of):
    model = QuickModel(poison=frozenset({13}))
    owner = owner_of(model, BatchingConfig(max_batch_size=64))
    requests = [FakeRequest(value) for value in (*range(100, 136), *range(28))]
    owner.submit_all(requests)
    failed = [n for n, r in enumerate(requests) if isinstance(r.outcome, ModelError)]
    assert failed == [36 + 13]
    assert all(r.digits for n, r in enumerate(requests) if n not in failed)
    assert caplog.messages == ["a batch of 1 rows failed"]
    assert len(model.ran[0]) == 64


def test_group_is_cut_where_there_is_no_room(clock, owner_of):
    owner = owner_of(QuickModel(), BatchingConfig(queue_capacity=8, max_request_rows=8,
                                                  max_queue_delay_s=1.0))  # fmt: skip
    waiting = [owner.submit(value) for value in range(8)]
    caller = FakeCaller()
    calls = [FakeRequest(value, caller=caller) for value in range(20)]
    assert owner.batcher.submit(joined(calls)) == 8, "kept for callers with few calls"
    assert owner.batcher.submit(FakeRequest(1, caller=caller).group) == 0
    clock.advance(1.0)
    owner.work()
    assert [each.digits for each in waiting] == [[value] for value in range(8)]


def test_calls_wait_as_long_as_the_last_of_their_group_can(clock, owner_of):
    class Slow(QuickModel):
        """Takes a second for a row."""

        def classify(self, images):
            clock.advance(len(images))
            return super().classify(images)

    owner = owner_of(Slow(), BatchingConfig(max_batch_size=4))
    owner.submit_all([FakeRequest(value) for value in range(64)])  # it knows the pace
    caller = FakeCaller()
    calls = [FakeRequest(value, caller=caller) for value in range(20)]
    now_s = clock()
    deadlines_s = [now_s + 1, *[now_s + 1e6] * 19]
    assert owner.batcher.submit(joined(calls, now_s, deadlines_s)) == 20
    owner.work()
    assert [call.digits for call in calls[1:]] == [[value % 10] for value in range(1, 20)]


def test_queue_delay_collects_a_batch(clock, owner_of):
    model = QuickModel()
    owner = owner_of(model, BatchingConfig(max_batch_size=2, max_queue_delay_s=3600.0))
    first = owner.submit(1)
    assert model.ran == []
    second = owner.submit(2)  # the batch is full: no more delay
    assert [first.digits, second.digits] == [[1], [2]]
    assert model.ran == [[1, 2]]
    late = owner.submit(3)
    clock.advance(3600.0)
    owner.work()
    assert late.digits == [3]


def test_flaw_of_an_encoder_ends_its_calls_only(caplog, owner_of):
    owner = owner_of(QuickModel())
    broken = FakeRequest(1)
    broken.encode = None
    owner.batcher.submit(broken.group)
    owner.work()
    assert isinstance(broken.outcome, ModelError)
    assert "a batch could not be answered" in caplog.text
    assert owner.submit(2).digits == [2]


# Long runs


def test_what_arrives_during_a_run_forms_the_next_batch(owner, model):
    first = occupy(owner, model)
    waiting = [owner.submit(value) for value in (1, 2, 3)]
    model.open(2)
    owner.wait(first, *waiting)
    assert [request.digits for request in (first, *waiting)] == [[0], [1], [2], [3]]
    assert model.ran == [[0], [1, 2, 3]]


def test_small_requests_and_large_ones_take_turns(model, owner_of):
    owner = owner_of(model, BatchingConfig(max_batch_size=4))
    first = occupy(owner, model)
    large = [owner.submit(*[value] * 17) for value in (1, 2)]
    small = [owner.submit(value) for value in (3, 4, 5, 6, 7)]
    model.open(1000)
    owner.wait(first, *large, *small)
    assert [sorted(set(values)) for values in model.ran] == [
        [0], [3, 4, 5, 6], *[[1]] * 5, [7], *[[2]] * 5
    ]  # fmt: skip


def test_full_queue_refuses_a_request(owner, model):
    occupy(owner, model)
    accepted = owner.submit(*range(8))
    assert not owner.batcher.submit(FakeRequest(*range(9)).group)
    model.open(1000)
    owner.wait(accepted)
    assert accepted.digits == list(range(8))


def test_largest_request_is_accepted_by_an_idle_model_however_slow(owner_of):
    owner = owner_of(QuickModel(), BatchingConfig(max_batch_size=4))
    owner.batcher._large.row_s = 10.0
    request = owner.submit(*range(100), deadline_s=1.0)
    owner.wait(request)
    assert request.digits == [value % 10 for value in range(100)]


def test_request_that_would_wait_longer_than_the_objective_is_refused(owner_of):
    model = GatedModel()
    owner = owner_of(model, BatchingConfig(max_batch_size=4, slo_s=0.8))
    owner.batcher._small.row_s = 0.01
    accepted = occupy(owner, model), owner.submit(*range(15))
    assert not owner.batcher.submit(FakeRequest(*range(9)).group)  # 0.2 s may wait, a quarter
    model.open(1000)
    owner.wait(*accepted)


def test_expired_request_ends_while_the_runner_is_busy(owner, model, clock):
    occupy(owner, model)
    expired, patient = owner.submit(1, deadline_s=1.0), owner.submit(2)
    clock.advance(1.0)
    owner.batcher.tick(clock.now_s)
    assert isinstance(expired.outcome, DeadlineExceeded)
    model.open(2)
    owner.wait(patient)
    assert model.ran == [[0], [2]]


def test_caller_that_left_during_the_run_is_neither_answered_nor_counted(owner_of):
    model = GatedModel()
    owner = owner_of(model, metrics=(metrics := Metrics()))
    first = occupy(owner, model)
    left, mate = owner.submit(1), owner.submit(2)
    left.method = mate.method = "Classify"
    model.open()
    owner.wait(first)
    model.wait_until_running()
    left.leave()
    model.open()
    owner.wait(mate)
    assert left.outcome is None
    assert metrics.snapshot().requests == {("Classify", "OK"): 1}


def test_calls_that_stay_have_their_outcome_though_others_left_a_run_that_fails(owner_of):
    """One of each group has left when a poison request makes the run fail."""
    model = GatedModel(poison=frozenset({13}))
    owner = owner_of(model, BatchingConfig(max_batch_size=64))
    first, callers = occupy(owner, model), [FakeCaller() for _ in range(3)]
    calls = [FakeRequest(value, caller=callers[value % 3]) for value in range(9, 18)]
    for caller in callers:
        own = [call for call in calls if call.caller is caller]
        assert owner.batcher.submit(joined(own)) == 3
    owner.work()
    model.open()
    owner.wait(first)
    model.wait_until_running()
    left = [calls[0], calls[1], calls[2]]
    for call in left:
        call.leave()
    model.open(1000)
    stayed = [call for call in calls if call not in left]
    owner.wait(*stayed)
    assert [type(call.outcome) for call in left] == [type(None)] * 3
    failed = [call for call in stayed if isinstance(call.outcome, ModelError)]
    assert failed == [calls[4]]


@pytest.mark.parametrize("sizes", [(1, 17), (17, 1)])
def test_calls_that_have_left_hold_up_none_of_the_other_kind(sizes, model, owner_of):
    owner = owner_of(model, BatchingConfig())
    first = occupy(owner, model)
    gone, stays = (owner.submit(*[3] * size) for size in sizes)
    gone.leave()
    model.open(1000)
    owner.wait(first, stays)
    assert gone.outcome is None
    assert not owner.batcher.is_busy


def test_run_that_nobody_waits_for_is_given_up(owner_of):
    model = GatedModel()
    owner = owner_of(model, BatchingConfig(max_batch_size=2))
    request = owner.submit(*range(20))
    model.wait_until_running()
    request.leave()
    model.open(1000)
    owner.wait(owner.submit(5))
    assert len(model.ran) <= 3


def test_it_is_busy_until_a_run_has_ended(owner, model):
    first = occupy(owner, model)
    assert owner.batcher.is_busy
    waiting: set[Any] = owner.batcher.streams_of(first.caller)
    assert waiting == {first.stream}
    model.open()
    owner.wait(first)
    assert not owner.batcher.is_busy


def test_free_runners_share_what_waits(owner_of):
    model = GatedModel()
    owner = owner_of(model, BatchingConfig(), num_runners=2)
    requests = [FakeRequest(1) for _ in range(400)]
    owner.submit_all(requests)
    model.wait_until_running()
    model.wait_until_running()
    model.open(2)
    owner.wait(*requests)
    assert [len(values) for values in model.ran] == [200, 200]


def test_slow_rows_run_in_parts_that_end_soon(owner_of, clock):
    """A row takes 1 ms: 8 at once are enough, and callers of the first are not kept waiting."""

    class Slow(FakeModel):
        def classify(self, images):
            clock.advance(0.001 * len(images))
            return super().classify(images)

    model = Slow()
    owner = owner_of(model, BatchingConfig())
    owner.wait(owner.submit(1))
    requests = [FakeRequest(*[value] * rows) for value, rows in ((2, 20), *(((3, 1),) * 20))]
    owner.submit_all(requests)
    owner.wait(*requests)
    assert [len(values) for values in model.ran] == [1, 8, 8, 8, 4, 8, 4]


def test_runs_grow_as_rows_become_quick(owner_of, clock):
    """The time of a row moves a fourth of the way with each run, and a run is to take 5 ms."""

    class Changing(FakeModel):
        row_s = 0.001

        def classify(self, images):
            clock.advance(self.row_s * len(images))
            return super().classify(images)

    model = Changing()
    owner = owner_of(model, BatchingConfig(max_batch_size=32))
    owner.wait(owner.submit(1))
    model.row_s = 0.0
    requests = [FakeRequest(*[1] * 5) for _ in range(32)]
    owner.submit_all(requests)
    owner.wait(*requests)
    sizes = [len(values) for values in model.ran]
    row_s, most = 0.001, [1]
    while len(most) < len(sizes):
        most.append(min(32, max(8, int(0.005 / row_s))))
        row_s *= 0.75
    assert sizes[:-1] == [size - size % 5 if size > 1 else 1 for size in most[:-1]]
    assert sum(sizes) == 161


class Elsewhere(GatedModel):
    """Two rows are quick; only runs on other threads wait for the gate."""

    inline_rows = 2

    def __init__(self):
        super().__init__()
        self.elsewhere: list[list[int]] = []

    def classify(self, images):
        if threading.current_thread() is threading.main_thread():
            return FakeModel.classify(self, images)
        probabilities = super().classify(images)
        self.elsewhere.append(self.ran[-1])
        return probabilities


def test_few_inline_rows_run_at_once_and_more_run_together_elsewhere(owner_of):
    model = Elsewhere()
    owner = owner_of(model, BatchingConfig())
    assert owner.submit(1, 2).digits == [1, 2]
    assert not model.elsewhere
    together = [FakeRequest(value) for value in (3, 4, 5)]
    owner.submit_all(together)
    model.wait_until_running()
    later = [
        owner.submit(value) for value in (6, 7, 8)
    ]  # quick alone, but batched while it is busy
    assert not any(request.outcome for request in later)
    model.open(2)
    owner.wait(*together, *later)
    assert model.elsewhere == [[3, 4, 5], [6, 7, 8]]
    assert owner.submit(9).digits == [9]
    assert model.elsewhere == [[3, 4, 5], [6, 7, 8]]


class Stuck(GatedModel):
    """Runs end only if they are ended, as ONNX Runtime's do."""

    def end(self):
        self.poison = frozenset({0})
        self.open()

    def classify(self, images):
        try:
            return super().classify(images)
        except RuntimeError as err:
            raise DeadlineExceeded("ended") from err


@pytest.mark.parametrize("reason", ["deadline", "limit", "left"])
def test_run_is_ended_once_nobody_waits_or_it_takes_too_long(reason, clock, owner_of):
    model = Stuck()
    owner = owner_of(model)
    deadlines_s = (1.0, 1.5) if reason == "deadline" else (1e9, 1e9)
    requests = [FakeRequest(0, deadline_s=deadline_s) for deadline_s in deadlines_s]
    owner.submit_all(requests)
    model.wait_until_running()
    if reason == "left":
        requests[0].leave()
    clock.advance(1.2)
    owner.batcher.tick(clock.now_s)
    assert owner.batcher.oldest_run_s == 0.0
    assert not model.ran, "one of them still waits"
    if reason == "left":
        requests[1].leave()
    clock.advance(60.0 if reason == "limit" else 0.5)
    owner.batcher.tick(clock.now_s)
    if reason == "left":
        while owner.batcher.is_busy:
            owner.work()
    else:
        owner.wait(*requests)
        assert [type(request.outcome) for request in requests] == [DeadlineExceeded] * 2
    assert owner.batcher.oldest_run_s == float("inf")
    model.poison = frozenset()
    model.open()
    last = owner.submit(5)
    owner.wait(last)
    assert last.digits == [5]


def test_values_that_are_refused_fail_their_call_alone(owner_of):
    class Refusing(QuickModel):
        def classify(self, images):
            if 13 in images[:, 0]:
                raise InvalidRequest("13")
            return super().classify(images)

    owner = owner_of(Refusing(), BatchingConfig(max_batch_size=64))
    requests = [FakeRequest(value) for value in range(30)]
    owner.submit_all(requests)
    failed = [n for n, r in enumerate(requests) if isinstance(r.outcome, InvalidRequest)]
    assert failed == [13]


class DyingModel(FakeModel):
    """Raises a BaseException, as bindings of other languages do; only the first time."""

    def run(self, feeds):
        if not self.ran:
            self.ran.append([])
            raise SystemExit
        return super().run(feeds)


def test_runner_outlives_whatever_a_run_raises(owner_of):
    owner = owner_of(DyingModel(), metrics=(metrics := Metrics()))
    failed = owner.submit(1)
    owner.wait(failed)
    assert isinstance(failed.outcome, ModelError)
    assert metrics.snapshot().models["", "1"].num_failed == 1
    well = owner.submit(2)
    owner.wait(well)
    assert well.digits == [2]


def test_call_fails_where_there_is_no_thread_and_later_ones_do_not(monkeypatch, owner_of):
    def refuse(thread):
        raise RuntimeError("can't start new thread")

    owner = owner_of(FakeModel())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        assert isinstance(owner.submit(1).outcome, ModelError)
    assert not owner.batcher.is_busy
    well = owner.submit(2)
    owner.wait(well)
    assert well.digits == [2]


def test_fewer_runners_serve_where_threads_are_scarce(monkeypatch, owner_of):
    start = threading.Thread.start
    started: list[threading.Thread] = []

    def start_first(thread):
        if started:
            raise RuntimeError("can't start new thread")
        started.append(thread)
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_first)
    model = GatedModel()
    owner = owner_of(model, num_runners=4)
    requests = [owner.submit(value) for value in range(4)]
    model.open(4)
    owner.wait(*requests)
    assert [request.digits for request in requests] == [[0], [1], [2], [3]]


def test_a_call_has_all_cores_only_while_it_is_alone(owner_of):
    model = GatedModel()
    owner = owner_of(model, BatchingConfig(), num_runners=2)
    first = occupy(owner, model)
    second = owner.submit(1)
    model.wait_until_running()
    model.open(2)
    owner.wait(first, second)
    third = owner.submit(2)
    model.open()
    owner.wait(third)
    assert model.were_alone == [True, False, True]


def test_calls_that_others_wait_behind_have_a_core_each(owner_of):
    model = GatedModel()
    owner = owner_of(model, num_runners=1)
    first = occupy(owner, model)
    requests = [owner.submit(value) for value in range(6)]
    model.open(3)
    owner.wait(first, *requests)
    assert model.ran == [[0], [0, 1, 2, 3], [4, 5]]
    assert model.were_alone == [True, False, True]


def test_rows_that_the_cores_share_are_no_run_that_is_alone(owner_of):
    model = GatedModel()
    owner = owner_of(model, BatchingConfig(), num_runners=2)
    request = owner.submit(*[0] * 2 * model.enough_rows)
    model.open(2)
    owner.wait(request)
    assert model.were_alone == [False]
    assert [len(values) for values in model.ran] == [model.enough_rows] * 2


def test_call_that_became_late_before_a_runner_was_free_is_told_so(model, owner_of, clock):
    """Nothing sweeps in between: who takes it from the queue looks at its deadline."""
    owner = owner_of(model)
    running = occupy(owner, model)
    late, other = owner.submit(1, deadline_s=1.0), owner.submit(2)
    clock.advance(1.5)
    model.open()
    owner.wait(running)
    model.open()
    owner.wait(other, late)
    assert isinstance(late.outcome, DeadlineExceeded)
    assert other.digits == [2]
    assert model.ran[1:] == [[2]]


# Any model


class Sum(FakeModel):
    """Adds two inputs; `is_batchable` as the test says."""

    inline_rows = 64

    def __init__(self, *, is_batchable):
        super().__init__()
        both = Tensor("a", "FP32", (-1, -1)), Tensor("b", "FP32", (-1, -1))
        self.tensors = TensorSignature(both, (Tensor("sum", "FP32", (-1, -1)),), is_batchable)
        self.signature = None
        self.shapes: list[tuple[int, ...]] = []

    def run(self, feeds):
        self.shapes.append(feeds["a"].shape)
        return [feeds["a"] + feeds["b"]]


class SumRequest(FakeRequest):
    def __init__(self, a, caller=None):
        super().__init__(0, caller=caller)
        self.a = np.array(a, np.float32)
        self.num_rows = self.group.num_rows = len(self.a)
        self.group.messages = [(self.a, self.a)]

    def encode(self, result, at, number):
        return [result.cut(at, self.num_rows)[0].tolist()]


ROWS: list[list[list[int]]] = [[[1, 2]], [[3, 4], [5, 6]], [[7, 8, 9]], [[1, 1, 1]], [[]], [[]]]
"""Rows without elements run alone: the proof of batching is for axes of one or more."""


def test_rows_longer_than_the_proof_is_about_run_alone(owner_of):
    model = Sum(is_batchable=True)
    owner = owner_of(model, BatchingConfig())
    requests = [SumRequest(np.zeros((1, MOST_SIZE + more))) for more in (0, 0, 1, 1)]
    owner.submit_all(requests)
    assert model.shapes == [(2, MOST_SIZE), (1, MOST_SIZE + 1), (1, MOST_SIZE + 1)]


@pytest.mark.parametrize(("size", "num_runs"), [(1, 1), (0, 4)])
def test_messages_of_one_layout_without_elements_run_alone(size, num_runs, owner_of):
    model = Sum(is_batchable=True)
    owner, caller = owner_of(model, BatchingConfig()), FakeCaller()
    piece = Piece(0, 4 * size, np.dtype(np.float32), (1, size))
    layout, requests = Layout((piece, piece), ()), []
    for number in range(4):
        request = SumRequest(np.full((1, size), number), caller)
        request.layout = layout
        request.group.messages = [request.a.tobytes()]
        requests.append(request)
    requests[0].encode = lambda result, at, number: result.outputs[0][at : at + number].tolist()
    owner.batcher.submit(joined(requests[:3]))
    owner.submit_all(requests[3:])
    outcomes: list[Any] = [[request.outcome] for request in requests[:3]]
    assert [*outcomes, requests[3].outcome] == [(2 * each.a).tolist() for each in requests]
    assert len(model.shapes) == num_runs


@pytest.mark.parametrize(
    ("is_batchable", "shapes"),
    [
        (True, [(3, 2), (2, 3), (1, 0), (1, 0)]),
        (False, [(1, 2), (2, 2), (1, 3), (1, 3), (1, 0), (1, 0)]),
    ],
)
def test_requests_of_several_inputs_run_with_those_of_their_shape(is_batchable, shapes, owner_of):
    model = Sum(is_batchable=is_batchable)
    owner = owner_of(model, BatchingConfig())
    requests = [SumRequest(rows) for rows in ROWS]
    if not is_batchable:
        for request in requests:
            request.num_rows = request.group.num_rows = 1
    owner.submit_all(requests)
    assert [r.outcome for r in requests] == [(2 * np.array(rows)).tolist() for rows in ROWS]
    assert model.shapes == shapes


class Forgetful(FakeModel):
    """Answers a row less where there are several: random inputs at load may not have shown it."""

    inline_rows = 64

    def run(self, feeds):
        (answers,) = super().run(feeds)
        return [answers[: max(1, len(answers) - 1)]]


def test_calls_whose_rows_are_not_all_answered_run_alone(owner_of):
    owner = owner_of(Forgetful(), BatchingConfig())
    requests = [FakeRequest(value) for value in (3, 3, 7)]
    owner.submit_all(requests)
    assert [request.digits for request in requests] == [[3], [3], [7]]


class Naming(Sum):
    """Answers each row in words."""

    def __init__(self):
        super().__init__(is_batchable=True)
        texts = Tensor("names", "BYTES", (-1, 1)), Tensor("sum", "FP32", (-1, 1))
        self.tensors = replace(self.tensors, outputs=texts)

    def run(self, feeds):
        names = [["no" if row[0] else "größe"] for row in feeds["a"]]
        return [np.array(names, object), feeds["a"]]


@pytest.mark.parametrize(("row", "num_bytes"), [([[1]], 4 + 2), ([[0]], 4 + 7)])
def test_texts_of_an_answer_count_by_their_bytes_and_a_length_each(row, num_bytes, owner_of):
    for limit in (num_bytes + 4, num_bytes + 3):
        owner = owner_of(Naming(), BatchingConfig(max_response_bytes=limit))
        requests: list[Any] = [SumRequest(row), SumRequest([[1]])]
        owner.submit_all(requests)
        if limit >= 4 + 2 + 4:  # it has room, even if the answer beside it has none
            assert requests[1].outcome == [["no"]]
        if limit == num_bytes + 4:
            assert not isinstance(requests[0].outcome, Exception)
        else:
            assert str(requests[0].outcome).startswith(
                f"the answer is too large: names has {num_bytes} bytes"
            )


# Nothing is left behind


@pytest.mark.parametrize("num_images", [3, 7])  # at once; in two runs
@pytest.mark.parametrize("fate", ["answered", "expired", "cancelled", "refused"])
def test_settled_requests_do_not_wait_for_the_garbage_collector(num_images, fate, owner_of, clock):
    model = GatedModel()
    config = BatchingConfig(max_batch_size=4, queue_capacity=7, max_request_rows=7)
    owner = owner_of(model, config)
    last = occupy(owner, model)
    images = images_of(*range(num_images))
    trace = weakref.ref(images)
    gc.disable()
    try:
        if fate == "refused":
            last = owner.submit(*range(7))
        request = FakeRequest(*range(num_images), deadline_s=1.0)
        request.group.messages = [images]
        del images
        owner.batcher.submit(request.group)
        if fate == "expired":
            clock.advance(1.0)
            owner.batcher.tick(clock.now_s)
        if fate == "cancelled":
            request.leave()
        model.open(1000)
        owner.wait(last, *([request] if fate == "answered" else []))
        last = owner.submit(1)
        owner.wait(last)
        owner.batcher.close()
        request.caller.streams.clear()
        del request.group
        assert trace() is None
    finally:
        gc.enable()


# Calls that are refused for a while


def test_blocked_model_refuses_what_waits_and_what_comes(owner, model):
    running = occupy(owner, model)
    waiting = owner.submit(1)
    refusal = Unavailable("it rests")
    owner.batcher.refuse(refusal)
    assert owner.batcher.is_refusing
    for refused in (waiting, owner.submit(2)):
        assert str(refused.outcome) == "it rests"
    assert running.outcome is None, "a run that has begun goes on"
    owner.batcher.refuse(None)
    assert not owner.batcher.is_refusing
    later = owner.submit(3)
    model.open(2)
    owner.wait(running, later)
    assert not any(isinstance(each.outcome, Exception) for each in (running, later))


def test_closed_model_is_not_blocked_and_stays_closed(owner, model):
    served = ServedVersion(model, owner.batcher)
    served.close()
    served.block(Unavailable("it rests"))
    assert not served.is_blocked
    served.block(None)
    assert "changed" in str(owner.submit(1).outcome)


# Numbers


@pytest.mark.parametrize(
    ("capacity", "waiting", "num_rows", "room"),
    [(8, 0, 1, 4), (8, 0, 3, 2), (8, 1, 3, 1), (8, 0, 4, 1), (8, 0, 5, 1), (8, 4, 1, 0),
     (8, 3, 1, 1), (8, 3, 9, 1), (1, 0, 1, 1), (1, 1, 1, 0), (8, 0, 0, 4)],
)  # fmt: skip
def test_stream_may_add_messages_until_half_of_the_queue_is_full(
    capacity, waiting, num_rows, room, owner_of
):
    sizes = BatchingConfig(queue_capacity=capacity, max_request_rows=capacity)
    batcher = owner_of(QuickModel(), sizes).batcher
    if waiting:
        batcher.add(FakeRequest(*range(waiting)).group)
    assert batcher.room_for_stream(num_rows) == room


@pytest.mark.parametrize(("num_rows", "is_learned"), [(4, False), (5, True), (8, True)])
@pytest.mark.parametrize("is_quick", [False, True])
def test_time_of_a_row_is_learned_from_runs_that_are_half_full(
    num_rows, is_learned, is_quick, owner_of, clock
):
    """Of 8 rows: 2 s a row. Rows of smaller runs take longer, and refuse calls for nothing."""

    class Slow(FakeModel):
        inline_rows = 128 * is_quick

        def classify(self, images):
            clock.advance(2.0 * len(images))
            return super().classify(images)

    owner = owner_of(Slow(), BatchingConfig(max_batch_size=8))
    owner.wait(owner.submit(*range(num_rows)))
    queue = owner.batcher._queue if is_quick else owner.batcher._small
    assert queue.row_s == (2.0 if is_learned else 0.0)


def test_rows_of_a_fixed_size_that_wait_are_at_most_a_gibibyte(owner_of):
    model = QuickModel()
    pixels = Tensor("images", "UINT8", (-1, 1 << 28))
    model.tensors = TensorSignature((pixels,), model.tensors.outputs, is_batchable=True)
    batcher = owner_of(model, BatchingConfig()).batcher
    assert batcher.room_for_stream(1) == 2
    model.tensors = TensorSignature((replace(pixels, shape=(-1, 1 << 31)),), (), True)
    assert owner_of(model, BatchingConfig()).batcher.room_for_stream(1) == 1, "at least one"


@pytest.mark.parametrize("num_classes", [2, 255, 256, 257, 70_000])
def test_classes_are_numbers_of_a_byte_where_that_holds_them(num_classes):
    """And of four otherwise: those of a response as protobuf has it."""
    rows = np.zeros((3, num_classes), np.float32)
    for row, best in zip(rows, (0, num_classes - 1, num_classes // 2), strict=True):
        row[best] = 1.0
    found = class_numbers(rows)
    assert [*found] == [0, num_classes - 1, num_classes // 2]
    assert isinstance(found, bytes) == (num_classes <= 256)


def test_result_gives_each_call_its_rows():
    outputs = [np.arange(6).reshape(3, 2), np.arange(3), np.zeros((1, 7))]
    result = Result(outputs, 3, "1", None, 0.0, 0.0)
    assert result.cut(0, 3) is outputs, "those of a call that ran alone may have any shape"
    parts = result.cut(1, 2)
    assert [each.tolist() for each in parts] == [[[2, 3], [4, 5]], [1, 2], []]
    assert (result.rows, result.classes) == (b"", None)


def test_calls_of_several_layouts_run_together_if_their_rows_are_alike(owner_of):
    """Layouts are of one number of rows each."""
    model = Sum(is_batchable=True)
    owner, requests, layouts = owner_of(model, BatchingConfig()), [], {}
    for num_rows, size in ((1, 3), (1, 3), (1, 3), (1, 3), (2, 3), (1, 3), (1, 2)):
        number = 4 * num_rows * size
        shape, dtype = (num_rows, size), np.dtype(np.float32)
        pieces = Piece(0, number, dtype, shape), Piece(number, 2 * number, dtype, shape)
        request = SumRequest(np.full(shape, len(requests)))
        request.layout = layouts.setdefault(shape, Layout(pieces, ()))
        request.group.messages = [2 * request.a.tobytes()]
        requests.append(request)
    owner.submit_all(requests)
    assert [each.outcome for each in requests] == [(2 * each.a).tolist() for each in requests]
    assert model.shapes == [(7, 3), (1, 2)]


def test_caller_is_asked_about_its_own_calls_alone(owner, model):
    """Those that run, and those that wait for a place of any kind."""
    first = occupy(owner, model)
    mine, others = FakeCaller(), FakeCaller()
    calls = [FakeRequest(*range(rows), caller=mine) for rows in (1, 2)]
    owner.submit_all([*calls, FakeRequest(3, caller=others)])
    assert owner.batcher.streams_of(mine) == {call.stream for call in calls}
    assert owner.batcher.num_waiting == 4
    owner.batcher.forget(mine)
    assert owner.batcher.streams_of(mine) == set()
    assert owner.batcher.num_waiting == 1
    assert owner.batcher.streams_of(first.caller) == {first.stream}


def test_failures_of_a_second_are_one_line(caplog, owner_of, clock):
    model = QuickModel(poison=frozenset({13}))
    owner = owner_of(model)
    lines = []
    for seconds in (0.0, 0.5, 0.49, 0.01, 2.0):
        clock.advance(seconds)
        owner.submit(13)
        lines.append(len(caplog.messages))
    assert lines == [1, 1, 1, 2, 3]
    assert caplog.messages == [
        "a batch of 1 rows failed", "a batch of 1 rows failed, and 2 more before",
        "a batch of 1 rows failed",
    ]  # fmt: skip


def test_refused_and_failed_calls_are_counted(owner_of):
    metrics = Metrics()
    owner = owner_of(QuickModel(poison=frozenset({13})), metrics=metrics)
    owner.submit(13)
    owner.submit(1)
    assert metrics.snapshot().models["", "1"].num_failed == 1
    calls = [FakeRequest(value, caller=FakeCaller()) for value in range(17)]
    taken = sum(owner.batcher.submit(call.group) for call in calls)
    assert metrics.snapshot().models["", "1"].num_failed == 1 + 17 - taken
    owner.batcher.submit(calls[0].group, is_final=False)
    assert metrics.snapshot().models["", "1"].num_failed == 1 + 17 - taken, "others take it"
    owner.batcher.refuse(Unavailable("it rests"))
    assert metrics.snapshot().models["", "1"].num_failed == 1 + 17


def test_sweep_ends_runs_and_calls_ten_times_a_second(owner, model, clock):
    """It may be called more often, and does nothing then."""
    occupy(owner, model)
    late = [owner.submit(1, deadline_s=deadline_s) for deadline_s in (0.5, 1.05, 1.1)]
    for now_s, num_ended in ((0.49, 0), (0.5, 0), (0.6, 1), (1.06, 2), (1.1, 2), (1.17, 3)):
        clock.now_s = now_s
        owner.batcher.tick(now_s)
        assert sum(each.outcome is not None for each in late) == num_ended, now_s
    model.open()


def test_limit_of_a_run_counts_from_its_start(clock, owner_of):
    model = Stuck()
    owner = owner_of(model, BatchingConfig(max_run_s=60.0))
    clock.advance(1000.0)
    request = owner.submit(0)
    model.wait_until_running()
    assert owner.batcher.oldest_run_s == 1000.0
    for seconds in (59.9, 0.1):
        clock.advance(seconds)
        owner.batcher.tick(clock.now_s)
        assert not model.poison, "it may take as long"
    clock.advance(0.2)
    owner.batcher.tick(clock.now_s)
    assert model.poison
    owner.wait(request)
    assert isinstance(request.outcome, DeadlineExceeded)


@pytest.mark.parametrize(("num_calls", "num_runs"), [(1, 1), (2, 3)])
def test_outputs_of_a_call_that_runs_alone_may_have_any_shape(num_calls, num_runs, owner_of):
    """Those of several are divided by their rows, so there must be as many."""

    class Total(Sum):
        def run(self, feeds):
            self.shapes.append(feeds["a"].shape)
            return [feeds["a"].sum().reshape(1, 1)]

    model = Total(is_batchable=True)
    owner = owner_of(model, BatchingConfig())
    requests = [SumRequest([[1, 2], [3, 4]]) for _ in range(num_calls)]
    owner.submit_all(requests)
    outcomes: list[Any] = [each.outcome for each in requests]
    assert outcomes == [[[10.0]]] * num_calls
    assert len(model.shapes) == num_runs


def test_message_of_a_call_that_runs_alone_is_not_copied(owner_of):
    """It may be some megabytes."""
    seen = []

    class Noting(QuickModel):
        def run(self, feeds):
            seen.append(feeds["images"])
            return super().run(feeds)

    owner, request = owner_of(Noting()), FakeRequest(1, 2)
    message = memoryview(request.group.messages[0])
    request.group.messages = [message]
    owner.submit_all([request])
    assert np.shares_memory(seen[0], np.frombuffer(message, np.uint8))
    assert request.digits == [1, 2]


@pytest.mark.parametrize(
    ("message", "shape", "layout"),
    [
        (bytes(range(12)), (-1, 2, 3), None),
        ([np.arange(6, dtype=np.uint8).reshape(1, 2, 3)], (-1, -1, 3), None),
        (bytes(range(6)), (-1, -1, 3), Layout((Piece(0, 6, np.dtype("u1"), (1, 2, 3)),), ())),
    ],
)
def test_inputs_of_one_call_are_arrays_whatever_it_brought(message, shape, layout):
    tensors = TensorSignature((Tensor("x", "UINT8", shape),), (), is_batchable=True)
    request = FakeRequest(1)
    request.group.messages, request.layout = [message], layout
    (array,) = arrays_of(request.group, tensors)
    assert array.dtype == np.uint8
    assert array.shape == (array.size // 6, 2, 3)
    assert [*array.ravel()] == [*range(array.size)]


def test_failed_calls_are_counted_with_their_time(owner_of, clock):
    """And a refused one with none."""
    metrics = Metrics()
    owner = owner_of(QuickModel(), metrics=metrics)
    taken = sum(owner.batcher.submit(FakeRequest(1, deadline_s=1.0).group) for _ in range(17))
    clock.advance(1.5)
    owner.work()
    counts = metrics.snapshot().models["", "1"]
    assert (counts.num_failed, counts.failed_s) == (17, 1.5 * taken)


def test_batcher_has_one_runner_and_counts_its_calls_unless_it_is_told_otherwise(clock):
    model, metrics = GatedModel(), Metrics()
    batcher = Batcher(model, SMALL, metrics)
    owner = FakeOwner(batcher, clock)
    first = occupy(owner, model)
    second = owner.submit(1)
    assert batcher.num_waiting == 1, "another runner would have it"
    model.open(2)
    owner.wait(first, second)
    batcher.close()
    counts = metrics.snapshot().models["", "1"]
    assert (counts.num_answered, counts.num_failed, counts.runs) == (2, 0, {1: 2})


def test_stage_counts_its_runs_and_none_of_its_calls(clock):
    """A later stage's: callers are counted where they came in."""
    metrics = Metrics()
    model = QuickModel(poison=frozenset({13}))
    owner = FakeOwner(Batcher(model, SMALL, metrics, counts_calls=False), clock)
    calls = [FakeRequest(value) for value in (1, 13)]
    for call in calls:
        call.method = "Classify"
        owner.submit_all([call])
    assert calls[0].digits == [1]
    assert isinstance(calls[1].outcome, ModelError)
    found = metrics.snapshot()
    counts = found.models["", "1"]
    assert (counts.num_answered, counts.num_failed, counts.runs) == (0, 0, {1: 1})
    assert found.requests == {}


def test_run_of_a_model_that_is_not_batched_is_ended_too(clock, owner_of):
    model = Stuck()
    model.tensors = replace(FakeModel.tensors, is_batchable=False)
    owner = owner_of(model)
    request = FakeRequest(0, deadline_s=1.0)
    request.group.messages = [[images_of(0)]]
    owner.submit_all([request])
    model.wait_until_running()
    clock.advance(1.5)
    owner.batcher.tick(clock.now_s)
    assert model.poison, "it was ended"
    owner.wait(request)
    assert isinstance(request.outcome, DeadlineExceeded)


@pytest.mark.parametrize(
    ("row_s", "enough"), [(0.0, 128), (1e-6, 128), (3e-5, 14), (0.0003, 2), (0.001, 1)]
)
def test_rows_that_take_as_long_as_the_way_to_a_core_are_worth_one(row_s, enough, owner_of):
    """0.4 ms; no more than the model's own runs show."""
    offloaded = owner_of(FakeModel()).batcher._offloaded
    offloaded._row_s = row_s
    assert offloaded._enough_rows == enough
