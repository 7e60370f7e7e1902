"""The net below the proof: rows that depend on others are found, their callers answered right."""

import threading
from contextlib import ExitStack
from random import Random
from typing import Any

import numpy as np
import pytest

from serving.batching.batcher import CHECKED, Batcher, Net
from serving.batching.run import Result
from serving.batching.spot_check import (
    FIRST_CALLS,
    FIRST_EVERY,
    FIRST_SHARE,
    FREE_S,
    LATER_EVERY,
    MOST_BATCHES,
    Closeness,
    Compared,
    Drawn,
    SpotChecks,
    nudged,
)
from serving.config import BatchingConfig
from serving.errors import ModelError
from serving.telemetry.metrics import Metrics
from serving.tensors import Tensor, TensorSignature
from tests.support.fakes import (
    TIMEOUT_S,
    FakeClock,
    FakeModel,
    FakeOwner,
    FakeRequest,
    GatedModel,
    joined,
    probabilities_of,
)

CONFIG = BatchingConfig(max_batch_size=64)
ALWAYS = 1.0


class MixingModel(FakeModel):
    """Of rows that share a run, those of a value in `wrong` are answered as another digit."""

    inline_rows = 64

    def __init__(self, wrong, fails_alone=False):
        super().__init__()
        self.wrong, self.fails_alone = wrong, fails_alone

    def classify(self, images):
        values = images[:, 0].tolist()
        self.ran.append(values)
        if len(values) == 1 and values[0] in self.wrong and self.fails_alone:
            raise RuntimeError("alone")
        if len(values) > 1:
            images = images + np.isin(images, [*self.wrong]).astype(np.uint8)
        return probabilities_of(images)


class Owner(FakeOwner):
    """Of a batcher that is checked."""

    records: list[str]
    """What a later start would know."""
    metrics: Metrics


AS_SERVED = Closeness()


class Drawing(Random):
    """Draws each call as soon as it can: the gaps are 1."""

    def random(self):
        return 0.0


@pytest.fixture
def make():
    """Make owners of batchers."""
    with ExitStack() as stack:

        def make(
            model, random=None, is_proved=True, clock=None, closeness=AS_SERVED, num_runners=1
        ):
            records: list[str] = []
            net = Net(random or Drawing(), closeness, "0123", is_proved, records.append)
            metrics = Metrics()
            batcher = Batcher(model, CONFIG, metrics, num_runners, "m", net=net)
            stack.callback(batcher.close)
            if isinstance(model, GatedModel):
                stack.callback(model.open, 1000)
            owner = Owner(batcher, clock or FakeClock())
            owner.records, owner.metrics = records, metrics
            return owner

        yield make


def mismatches(owner):
    counts = owner.metrics.snapshot().models.get(("m", "1"))
    return counts.num_mismatches if counts else 0


def test_call_that_differs_gets_the_answer_alone_and_the_others_theirs(make, caplog):
    model = MixingModel({7})
    owner = make(model)
    requests = [FakeRequest(7), *map(FakeRequest, range(6))]
    owner.submit_all(requests)
    assert [each.digits for each in requests] == [[7], [0], [1], [2], [3], [4], [5]]
    assert model.ran == [[7, 0, 1, 2, 3, 4, 5], [7]]
    assert (mismatches(owner), owner.records) == (1, [])
    (record,) = caplog.records
    assert record.levelname == "ERROR"
    assert "model m version 1 (SHA-256 0123)" in record.message
    assert "probabilities differs by" in record.message
    assert [7] * 3 not in model.ran


def test_counts_of_runs_and_calls_are_those_without_a_check(make):
    owner = make(MixingModel(set()))
    owner.submit_all(map(FakeRequest, range(6)))
    counts = owner.metrics.snapshot().models["m", "1"]
    assert (counts.runs, counts.num_answered, counts.num_failed) == ({6: 1}, 6, 0)
    assert sum(counts.classes.values()) == 6


def test_drawn_call_whose_answer_can_not_leave_is_counted_once(make):
    owner = make(MixingModel({7}))
    broken: Any = FakeRequest(7)
    broken.answer = None
    owner.submit_all([broken, FakeRequest(1)])
    assert isinstance(broken.outcome, ModelError)
    counts = owner.metrics.snapshot().models["m", "1"]
    assert (counts.num_answered, counts.num_failed) == (1, 1)


def test_after_three_batches_calls_run_alone_and_a_later_start_knows_it(make, caplog):
    model = MixingModel({7})
    owner = make(model)
    for number in range(MOST_BATCHES + 2):
        requests = [FakeRequest(7), FakeRequest(1)]
        owner.submit_all(requests)
        assert [each.digits for each in requests] == [[7], [1]], number
    assert model.ran[-4:] == [[7], [1], [7], [1]]
    assert (mismatches(owner), owner.records) == (MOST_BATCHES, [CHECKED % MOST_BATCHES])
    assert caplog.records[-1].message.endswith("calls run alone from now on")
    assert len(caplog.records) == MOST_BATCHES


def test_unproved_version_is_counted_and_stays_as_its_operator_wants_it(make, caplog):
    model = MixingModel({7})
    owner = make(model, is_proved=False)
    for _ in range(MOST_BATCHES + 2):
        requests = [FakeRequest(7), FakeRequest(1)]
        owner.submit_all(requests)
        assert [each.digits for each in requests] == [[8], [1]]
    owner.batcher.stop_batching()  # as other workers would have it
    owner.submit_all([FakeRequest(7), FakeRequest(1)])
    assert [7, 1] in model.ran[-2:]
    assert (mismatches(owner), owner.records) == (MOST_BATCHES + 3, [])
    assert {each.levelname for each in caplog.records} == {"WARNING"}


def test_call_that_fails_alone_fails(make):
    owner = make(MixingModel({7}, fails_alone=True))
    requests = [FakeRequest(7), FakeRequest(1)]
    owner.submit_all(requests)
    assert isinstance(requests[0].outcome, ModelError)
    assert requests[1].digits == [1]
    assert mismatches(owner) == 1


def test_other_workers_are_followed(make):
    model = MixingModel(set())
    owner = make(model)
    owner.batcher.stop_batching()
    owner.submit_all([FakeRequest(7), FakeRequest(1)])
    assert model.ran == [[7], [1]]
    assert owner.records == [CHECKED % MOST_BATCHES]


def test_lone_calls_are_not_drawn(make):
    model = MixingModel({7})
    owner = make(model)
    for _ in range(5):
        assert owner.submit(7).digits == [7]
    assert model.ran == [[7]] * 5


def test_call_of_many_rows_is_compared_as_a_whole(make):
    model = MixingModel({7})
    owner = make(model)
    requests = [FakeRequest(1, 7, 2), FakeRequest(3)]
    owner.submit_all(requests)
    assert model.ran == [[1, 7, 2, 3], [1, 7, 2]]
    assert mismatches(owner) == 0  # alone its rows share a run, too
    assert requests[0].digits == [1, 8, 2]


def test_call_whose_deadline_leaves_no_time_is_not_drawn(make):
    clock = FakeClock()

    class SlowModel(MixingModel):
        def classify(self, images):
            clock.advance(1.0)
            return super().classify(images)

    model = SlowModel({7})
    owner = make(model, clock=clock)
    owner.submit_all([FakeRequest(7, deadline_s=2.9), FakeRequest(1, deadline_s=2.9)])
    assert model.ran == [[7, 1]]
    owner.submit_all([FakeRequest(7, deadline_s=4.1), FakeRequest(1, deadline_s=4.1)])
    assert model.ran == [[7, 1]] * 2 + [[7]]


class LongModel(GatedModel):
    """Runs on a runner, and answers 7 as 8 beside others."""

    def classify(self, images):
        found = super().classify(images)
        return probabilities_of(images + (images == 7)) if len(images) > 1 else found


def test_offloaded_call_runs_once_more_on_a_runner_after_the_others_are_answered(make):
    model = LongModel()
    owner = make(model)
    first = owner.submit(0)  # the runner has it
    model.wait_until_running()
    requests = [owner.submit(7), owner.submit(1)]
    model.open()
    owner.wait(first)
    model.wait_until_running()
    model.open()
    owner.wait(requests[1])
    assert requests[0].outcome is None
    assert owner.batcher.is_busy
    model.wait_until_running()
    waiting = owner.submit(2)  # until the runner has run the drawn one
    model.open()
    owner.wait(requests[0])
    model.open()
    owner.wait(waiting)
    assert (requests[0].digits, requests[1].digits) == ([7], [1])
    assert model.ran == [[0], [7, 1], [7], [2]]
    assert not owner.batcher.is_busy


def test_call_of_a_caller_that_has_left_before_its_second_run_is_not_run(make):
    model = LongModel()
    owner = make(model)
    first = owner.submit(0)  # the runner has it
    model.wait_until_running()
    requests = [owner.submit(7), owner.submit(1)]
    model.open()
    owner.wait(first)
    model.wait_until_running()
    requests[0].leave()
    model.open()
    owner.wait(requests[1])
    last = owner.submit(2)
    model.open()
    owner.wait(last)
    assert model.ran == [[0], [7, 1], [2]]
    assert requests[0].outcome is None
    assert not owner.batcher.is_busy


class HeldModel(MixingModel):
    """Of long runs, each of which the test ends by its values."""

    inline_rows = 0

    def __init__(self, *runs):
        super().__init__({7})
        self.held = {values: threading.Event() for values in runs}
        self.begun = {values: threading.Event() for values in runs}

    def classify(self, images):
        values = tuple(images[:, 0].tolist())
        self.begun[values].set()
        assert self.held[values].wait(TIMEOUT_S)
        return super().classify(images)

    def end(self, *values):
        self.held[values].set()


def test_call_that_runs_once_more_is_none_of_those_that_run_beside_it(make):
    model = HeldModel((0,), (5,), (7, 1), (3,), (7,))
    owner = make(model, num_runners=2)
    first, second = owner.submit(0), owner.submit(5)
    pair = owner.submit(7), owner.submit(1)
    model.end(0)
    owner.wait(first)
    assert model.begun[7, 1].wait(TIMEOUT_S)
    last = owner.submit(3)
    model.end(5)
    owner.wait(second)
    assert model.begun[3,].wait(TIMEOUT_S)
    model.end(7, 1)
    owner.wait(pair[1])
    model.end(7)
    owner.wait(pair[0])
    model.end(3)
    owner.wait(last)
    assert [each.digits for each in (*pair, last)] == [[7], [1], [3]]
    assert not owner.batcher.is_busy


def test_each_call_of_a_run_is_drawn_as_often():
    outputs, found = (Tensor("y", "FP32", (-1, 1)),), [0] * 8
    calls = [FakeRequest(value) for value in range(8)]
    result = Result([np.zeros((8, 1), np.float32)], 8, "1", None, 0.0, 0.0)
    checks = SpotChecks(Random(3), outputs, Closeness(), 8)
    num_runs = FIRST_CALLS // 8
    for _ in range(num_runs):
        if drawn := checks.draw([joined(calls[:5]), joined(calls[5:])], result, 0.0):
            found[drawn.at] += 1
            assert drawn.call.num_rows == 1
            assert [each.num_rows for each in drawn.groups].count(1) >= 1
            assert sum(each.num_rows for each in drawn.groups) == 8
    often = sum(found)
    assert often == pytest.approx(FIRST_CALLS / FIRST_EVERY, rel=0.2)
    assert min(found) > often / 16
    later = sum(checks.draw([joined(calls)], result, 0.0) is not None for _ in range(20 * num_runs))
    assert later == pytest.approx(20 * FIRST_CALLS / LATER_EVERY, rel=0.25)


@pytest.mark.slow
def test_graph_that_answers_one_call_in_25_wrongly_is_found_within_10_000():
    num_found = 0
    for seed in range(100):
        random, wrong = Random(seed), Random(1000 + seed)
        records: list[str] = []
        model = MixingModel({7})
        net = Net(random, Closeness(), "0123", True, records.append)
        owner = FakeOwner(Batcher(model, CONFIG, Metrics(), 1, "m", net=net), FakeClock())
        num_calls = 0
        while num_calls < FIRST_CALLS and not records:
            values = [7 if wrong.random() < 0.04 else 1 for _ in range(wrong.randint(2, 40))]
            num_calls += len(values)
            owner.submit_all(map(FakeRequest, values))
        num_found += bool(records)
    assert num_found >= 99


def test_runs_of_drawn_calls_take_a_share_of_the_time(make):
    clock = FakeClock()

    class EvenModel(MixingModel):
        def classify(self, images):
            clock.advance(0.01)  # a row takes as long as a batch
            return super().classify(images)

    model = EvenModel(set())
    owner = make(model, clock=clock)
    for _ in range(2_000):
        owner.submit_all([FakeRequest(1), FakeRequest(2)])
    num_alone = sum(len(each) == 1 for each in model.ran)
    assert num_alone == pytest.approx(FREE_S / 0.01 + FIRST_SHARE * 2_000, abs=2)
    model.wrong = {1}
    for _ in range(200):
        owner.submit_all([FakeRequest(1), FakeRequest(2)])
    assert owner.records  # once suspected, it has more time


def test_comparisons_count_in_that_share(make):
    clock = FakeClock()

    class SlowToCompare(Closeness):
        def difference(self, tensor, alone, shared):
            clock.advance(0.01)
            return

    class EvenModel(MixingModel):
        def classify(self, images):
            clock.advance(0.01)
            return super().classify(images)

    model = EvenModel(set())
    owner = make(model, clock=clock, closeness=SlowToCompare())
    for _ in range(2_000):
        owner.submit_all([FakeRequest(1), FakeRequest(2)])
    num_alone = sum(len(each) == 1 for each in model.ran)
    assert num_alone == pytest.approx((FREE_S / 0.01 + FIRST_SHARE * 2_000) / 2, abs=2)


def no_run(feeds):
    raise ModelError


def is_same(checks, shared, alone, feeds=dict, run=no_run):
    """Return whether the second of two rows has the same answer alone."""
    one = Result(alone, 1, "1", None, 0.0, 0.0)
    compared = checks.compare(drawn_of(shared), one, feeds, run, FakeClock())
    return checks.is_close(one, compared, lambda *_: None)


def drawn_of(shared):
    result = Result(shared, 2, "1", None, 0.0, 0.0)
    return Drawn(FakeRequest(1).group, result, 1, [])


@pytest.mark.parametrize(
    ("shared", "alone", "is_close"),
    [
        ([[0.5], [1.0]], [[1.00001]], True),
        ([[0.5], [1.0]], [[1.001]], False),
        ([[0.5], [np.nan]], [[np.nan]], True),
        ([[0.5], [np.nan]], [[1.0]], False),
        ([[0.5], [1.0]], [[1.0, 1.0]], False),
    ],
)
def test_floats_are_close_up_to_rounding(shared, alone, is_close):
    outputs = (Tensor("y", "FP32", (-1, -1)),)
    checks = SpotChecks(Random(0), outputs, Closeness(), 8)
    arrays = [np.array(shared, np.float32)], [np.array(alone, np.float32)]
    assert is_same(checks, *arrays) == is_close


def test_one_step_of_a_quantised_output_is_close():
    outputs = (Tensor("y", "FP32", (-1, 1)),)
    checks = SpotChecks(Random(0), outputs, Closeness(step=0.1), 8)
    for alone, is_close in ((1.1, True), (1.15, False)):
        arrays = [np.array([[0], [1.0]], np.float32)], [np.array([[alone]], np.float32)]
        assert is_same(checks, *arrays) == is_close


@pytest.mark.parametrize(("score", "is_close"), [(0.500001, True), (0.6, False), (None, False)])
def test_class_that_changes_by_a_near_tie_is_no_difference(score, is_close):
    outputs: tuple[Tensor, ...] = (Tensor("label", "INT64", (-1,)), Tensor("p", "FP32", (-1, 1)))
    shared = [np.array([3, 4]), np.array([[0.1], [0.5]], np.float32)]
    alone = [np.array([5]), np.array([[score]], np.float32)]
    if score is None:  # a model without scores
        outputs, shared, alone = outputs[:1], shared[:1], alone[:1]
    checks = SpotChecks(Random(0), outputs, Closeness(), 8)
    assert is_same(checks, shared, alone) == is_close


class Summing(FakeModel):
    """Answers with the sum of a row, one rounding off where there are several rows."""

    signature = None
    tensors = TensorSignature(
        (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 1)),), is_batchable=True
    )

    def __init__(self, mixed=0.0, by_number=0.0, inline_rows=64):
        super().__init__()
        self.mixed, self.by_number, self.inline_rows = mixed, by_number, inline_rows

    def run(self, feeds):
        (rows,) = feeds.values()
        self.ran.append(len(rows))
        many = np.float32(len(rows) > 1)
        others = rows.max(axis=0, keepdims=True).sum(axis=1, keepdims=True)
        rounded = np.abs(rows).max(axis=1, keepdims=True) * np.float32(2e-7) * many
        total = rows.sum(axis=1, keepdims=True, dtype=np.float32)
        return [total + rounded + self.mixed * others + self.by_number * many]


class RowRequest(FakeRequest):
    """A call of one row of floats; its outcome is the answer."""

    def __init__(self, row):
        super().__init__(0)
        self.group.messages = [np.array([row], np.float32).tobytes()]

    def encode(self, result, at, number):
        return [result.cut(at, 1)[0].tolist()]


@pytest.mark.parametrize("inline_rows", [64, 0])
@pytest.mark.parametrize("mixed", [0.0, 1.0])
def test_caller_whose_terms_cancel_out_ends_no_batches(mixed, inline_rows, make):
    model = Summing(mixed, inline_rows=inline_rows)
    owner = make(model)
    for _ in range(MOST_BATCHES + 1):
        requests = [RowRequest(CANCELLED), RowRequest([7e6, 1.0, 2.0, 3.0])]
        owner.submit_all(requests)
        owner.wait(*requests)
    assert bool(owner.records) == bool(mixed)
    assert (mismatches(owner) > 0) == bool(mixed)


CANCELLED = [1e5, -1e5, 3e4, -3e4]
STEADY = [1.0, 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("model", "row", "is_close"),
    [
        (Summing(), STEADY, True),
        (Summing(), CANCELLED, True),  # its sum is nothing but rounding
        (Summing(mixed=1.0), STEADY, False),
        (Summing(mixed=1.0), CANCELLED, False),  # the other row made it
        (Summing(by_number=1.0), STEADY, False),  # nothing but the number of rows, and not rounding
    ],
)
def test_row_whose_terms_cancel_out_is_no_difference(model, row, is_close):
    checks = SpotChecks(Random(0), (Tensor("y", "FP32", (-1, 1)),), Closeness(), 8)
    rows = np.array([[7e6, 1.0, 2.0, 3.0], row], np.float32)
    shared, alone = model.run({"x": rows}), model.run({"x": rows[1:]})
    assert is_same(checks, shared, alone, lambda: {"x": rows[1:]}, model.run) == is_close


def test_sum_that_overflows_in_one_order_is_no_difference():
    """Both answers are as good: no finite number is the sum."""

    def run(feeds):
        (rows,) = feeds.values()
        return [np.full((len(rows), 1), np.inf if len(rows) > 1 else 1e38, np.float32)]

    checks = SpotChecks(Random(0), (Tensor("y", "FP32", (-1, 1)),), Closeness(), 8)
    rows = np.ones((2, 4), np.float32)
    shared, alone = run({"x": rows}), run({"x": rows[1:]})
    assert is_same(checks, shared, alone, lambda: {"x": rows[1:]}, run)


@pytest.mark.parametrize(("number", "is_close"), [(1e20, True), (1.0, False)])
def test_row_whose_squares_overflow_is_no_difference(number, is_close):
    """Inside, a sum may be infinite in one order, and what is made of it is finite again."""

    def run(feeds):
        (rows,) = feeds.values()
        return [np.full((len(rows), 1), len(rows) > 1, np.float32)]

    checks = SpotChecks(Random(0), (Tensor("y", "FP32", (-1, 1)),), Closeness(), 8)
    rows = np.full((2, 4), number, np.float32)
    shared, alone = run({"x": rows}), run({"x": rows[1:]})
    assert is_same(checks, shared, alone, lambda: {"x": rows[1:]}, run) == is_close


def test_inputs_without_floats_excuse_nothing():
    assert nudged({"x": np.ones((1, 4), np.int64)}) is None
    ones = np.ones((1, 4, 8), np.float32)
    changed = nudged({"x": ones, "n": np.ones(1, np.int64)})
    assert changed is not None
    assert 0 < np.abs(changed["x"] - ones).max() < 1e-5
    assert not np.array_equal(changed["x"][0, 0], changed["x"][0, 1])
    assert changed["n"].tolist() == [1]


def lasting(seconds, num_rows=2):
    return Result([np.zeros((num_rows, 1), np.float32)], num_rows, "1", None, 0.0, seconds)


def suspected(checks):
    """Have a difference found."""
    assert not checks.is_close(lasting(0.0, 1), Compared("it differs", 0.0), lambda *_: None)


def test_calls_are_drawn_as_often_as_the_documentation_says():
    """One of 50 of the first 10,000, then of 1,000; of 10 behind a difference, for as long."""
    checks = SpotChecks(Random(5), (Tensor("y", "FP32", (-1, 1)),), Closeness(), 8)
    run, calls = lasting(0.0), joined([FakeRequest(1), FakeRequest(2)])

    def num_drawn(num_calls):
        return sum(checks.draw([calls], run, 0.0) is not None for _ in range(num_calls // 2))

    assert num_drawn(10_000) == pytest.approx(200, rel=0.25)
    assert num_drawn(40_000) == pytest.approx(40, rel=0.5)
    suspected(checks)
    assert num_drawn(10_000) == pytest.approx(1_000, rel=0.15)
    assert num_drawn(40_000) == pytest.approx(40, rel=0.5)


@pytest.mark.parametrize(
    ("num_calls", "is_suspect", "most_s"),
    [(0, False, 2.05), (10_000, False, 1.05), (0, True, 10.05)],
)
def test_drawn_calls_take_as_much_time_as_the_documentation_says(num_calls, is_suspect, most_s):
    """Of 100 s of all runs 2 %, later 1 %, behind a difference 10 %, and 50 ms."""
    calls = joined([FakeRequest(1), FakeRequest(2)])
    for seconds, is_drawn in ((most_s - 0.001, True), (most_s + 0.001, False)):
        checks = SpotChecks(Drawing(), (Tensor("y", "FP32", (-1, 1)),), Closeness(), 8)
        for _ in range(num_calls // 2):
            checks.draw([calls], lasting(0.0), 0.0)
        if is_suspect:
            suspected(checks)
        assert checks.is_close(lasting(seconds, 1), Compared(None, 0.0), lambda *_: None)
        assert (checks.draw([calls], lasting(100.0), 0.0) is not None) == is_drawn


@pytest.mark.parametrize(("kind", "tolerance"), [("f2", 1e-2), ("f4", 1e-4), ("f8", 1e-6)])
def test_floats_differ_by_no_more_than_their_type_allows(kind, tolerance):
    tensor = Tensor("y", "FP32", (-1, 1))
    one = np.ones((1, 1), kind)
    for factor, is_close in ((0.5, True), (2.0, False)):
        text = Closeness().difference(tensor, one, one * np.array(1 + factor * tolerance, kind))
        assert (text is None) == is_close


def test_floats_of_another_size_are_equal_or_differ():
    tensor, one = Tensor("y", "FP64", (-1, 1)), np.ones((1, 1), np.longdouble)
    assert Closeness().difference(tensor, one, one) is None
    assert Closeness().difference(tensor, one, one + np.longdouble(0.5)) == "y differs by 0.5"
    assert Closeness() == ({2: 1e-2, 4: 1e-4, 8: 1e-6}, 0.0)


@pytest.mark.filterwarnings("error")
@pytest.mark.parametrize("kind", ["f2", "f4", "f8"])
def test_inputs_are_changed_by_rounding_without_a_word(kind):
    most = np.finfo(kind).max
    changed = nudged({"x": np.array([[np.inf, -np.inf, np.nan, most, -most]], kind)})
    assert changed is not None
    assert changed["x"].dtype == kind
