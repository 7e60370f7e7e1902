import gc
import threading
import weakref
from collections.abc import Iterator

import pytest

from serving.batcher import Batcher
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ModelError, Overloaded, Unavailable
from serving.requests import Answer
from tests.fakes import FakeClock, FakeModel, GatedModel, RecordingRequest, images_of


@pytest.fixture
def model() -> GatedModel:
    return GatedModel()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def batcher(model: GatedModel, clock: FakeClock) -> Iterator[Batcher]:
    config = BatchingConfig(max_batch_size=4, queue_capacity=8, max_request_images=8)
    batcher = Batcher(model, config, clock=clock)
    yield batcher
    model.open(1000)
    batcher.close()


def submit(batcher: Batcher, *values: int, **options: object) -> RecordingRequest:
    request = RecordingRequest(images_of(*values), **options)
    batcher.submit(request)
    return request


def occupy(batcher: Batcher, model: GatedModel) -> RecordingRequest:
    """Keep the runner busy until the test opens the model's gate."""
    request = submit(batcher, 0)
    model.wait_until_running()
    return request


def test_idle_engine_runs_at_once(batcher: Batcher, model: GatedModel) -> None:
    request = submit(batcher, 7)
    model.wait_until_running()
    model.open()
    assert request.wait().digits == [7]


def test_what_arrives_during_a_run_forms_the_next_batch(
    batcher: Batcher, model: GatedModel
) -> None:
    first = occupy(batcher, model)
    waiting = [submit(batcher, value) for value in (1, 2, 3)]
    model.open(2)
    assert [request.wait().digits for request in (first, *waiting)] == [[0], [1], [2], [3]]
    assert model.ran == [[0], [1, 2, 3]]


def test_batch_never_exceeds_max_batch_size(batcher: Batcher, model: GatedModel) -> None:
    occupy(batcher, model)
    requests = [submit(batcher, 1, 2, 3), submit(batcher, 4, 5, 6)]
    model.open(3)
    assert [request.wait().digits for request in requests] == [[1, 2, 3], [4, 5, 6]]
    assert [len(values) for values in model.ran] == [1, 4, 2]


def test_full_queue_rejects_request(batcher: Batcher, model: GatedModel) -> None:
    occupy(batcher, model)
    accepted = submit(batcher, *range(8))
    with pytest.raises(Overloaded):
        submit(batcher, 9)
    model.open(3)
    assert accepted.wait().digits == list(range(8))


def test_cancelled_request_never_runs(batcher: Batcher, model: GatedModel) -> None:
    occupy(batcher, model)
    cancelled, mate = submit(batcher, 1), submit(batcher, 2)
    assert batcher.cancel(cancelled)
    model.open(2)
    assert mate.wait().digits == [2]
    assert model.ran == [[0], [2]]


def test_expired_request_never_runs(batcher: Batcher, model: GatedModel, clock: FakeClock) -> None:
    occupy(batcher, model)
    expired, mate = submit(batcher, 1, deadline_s=1.0), submit(batcher, 2)
    clock.advance(1.0)
    model.open(2)
    assert mate.wait().digits == [2]
    assert isinstance(expired.wait().outcome, DeadlineExceeded)
    assert model.ran == [[0], [2]]


def test_deadline_that_would_pass_during_the_run_is_not_run_while_others_wait(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    clock.advance(8.0)  # a run takes long: 1.0 is what is expected of the next
    hasty = [submit(batcher, value, deadline_s=9.0) for value in (1, 2, 3)]
    patient = [submit(batcher, value, deadline_s=99.0) for value in (4, 5, 6)]
    model.open(2)
    assert [request.wait().digits for request in patient] == [[4], [5], [6]]
    assert all(isinstance(request.wait().outcome, DeadlineExceeded) for request in hasty)
    assert model.ran == [[0], [4, 5, 6]]


def test_deadline_that_is_close_gets_its_chance_when_nobody_else_waits(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    clock.advance(8.0)
    hasty = submit(batcher, 1, deadline_s=9.0)
    model.open(2)
    assert hasty.wait().digits == [1]


def test_failed_run_fails_only_the_guilty_request() -> None:
    model = GatedModel(poison=frozenset({13}))
    batcher = Batcher(model, BatchingConfig(max_batch_size=64))
    model.open(1000)
    occupied = GatedModel()  # hold the runner so that all 64 meet in one batch
    batcher.swap(occupied)
    occupy(batcher, occupied)
    batcher.swap(model)
    requests = [submit(batcher, value) for value in range(100, 136)] + [
        submit(batcher, value) for value in range(28)
    ]
    occupied.open()
    outcomes = [request.wait().outcome for request in requests]
    batcher.close()
    failed = [number for number, outcome in enumerate(outcomes) if isinstance(outcome, ModelError)]
    assert failed == [36 + 13]
    assert len(model.ran[0]) == 64


def test_swap_lets_accepted_requests_finish_on_their_model(
    batcher: Batcher, model: GatedModel
) -> None:
    occupy(batcher, model)
    before = submit(batcher, 1)
    newer = FakeModel(version="2")
    batcher.swap(newer)
    after = submit(batcher, 2)
    model.open(2)
    versions = [
        request.outcome.batch.model.version
        for request in (before.wait(), after.wait())
        if isinstance(request.outcome, Answer)
    ]
    assert versions == ["1", "2"]
    assert (model.ran, newer.ran) == ([[0], [1]], [[2]])


def test_drain_refuses_new_requests_and_finishes_the_accepted(
    batcher: Batcher, model: GatedModel
) -> None:
    running, waiting = occupy(batcher, model), submit(batcher, 1)
    assert not batcher.drain(timeout_s=0.0)
    with pytest.raises(Unavailable):
        submit(batcher, 2)
    model.open(2)
    assert batcher.drain(timeout_s=10.0)
    assert [running.digits, waiting.digits] == [[0], [1]]


def test_close_rejects_what_waits(batcher: Batcher, model: GatedModel) -> None:
    running, waiting = occupy(batcher, model), submit(batcher, 1)
    closing = threading.Thread(target=batcher.close)
    closing.start()
    assert isinstance(waiting.wait().outcome, Unavailable)
    model.open()
    closing.join()
    assert running.wait().digits == [0]


def test_idle_engine_runs_a_request_past_the_queue() -> None:
    model = FakeModel()
    batcher = Batcher(model, BatchingConfig(max_batch_size=4))
    request = RecordingRequest(images_of(1, 2))
    assert batcher.run_at_once(request)
    assert request.digits == [1, 2]
    assert not batcher.run_at_once(RecordingRequest(images_of(*range(5))))  # larger than a run
    assert batcher.drain(timeout_s=0.0)
    assert not batcher.run_at_once(RecordingRequest(images_of(1)))
    batcher.close()
    assert model.ran == [[1, 2]]


def test_nothing_passes_those_who_wait(batcher: Batcher, model: GatedModel) -> None:
    occupied, waiting = occupy(batcher, model), submit(batcher, 1)
    assert not batcher.run_at_once(RecordingRequest(images_of(2)))
    model.open(2)
    assert [occupied.wait().digits, waiting.wait().digits] == [[0], [1]]


def test_what_came_while_one_ran_past_the_queue_is_run(model: GatedModel) -> None:
    batcher = Batcher(model, BatchingConfig(max_batch_size=4))
    first = RecordingRequest(images_of(1))
    caller = threading.Thread(target=lambda: batcher.run_at_once(first))
    caller.start()
    model.wait_until_running()
    second = submit(batcher, 2)  # wakes a runner, which finds no place free
    model.open(2)
    caller.join()
    assert [first.wait().digits, second.wait().digits] == [[1], [2]]
    batcher.close()


def test_free_runners_share_what_waits() -> None:
    model = GatedModel()
    batcher = Batcher(model, BatchingConfig(), num_runners=2)
    request = RecordingRequest(images_of(*[1] * 256))
    batcher.submit(request)
    model.wait_until_running()
    model.wait_until_running()
    model.open(2)
    request.wait()
    assert [len(values) for values in model.ran] == [128, 128]
    batcher.close()


def test_what_waits_for_its_delay_outlasts_the_helper_that_kept_the_place() -> None:
    model = GatedModel()
    batcher = Batcher(model, BatchingConfig(max_queue_delay_s=0.01))
    first, second = RecordingRequest(images_of(1)), RecordingRequest(images_of(2))
    helper = threading.Thread(target=lambda: run_helping(batcher, first))
    helper.start()
    model.wait_until_running()
    batcher.submit(second)  # no place is free: left to whoever runs
    model.open(2)
    helper.join()
    assert [first.wait().digits, second.wait().digits] == [[1], [2]]
    batcher.close()


def run_helping(batcher: Batcher, request: RecordingRequest) -> None:
    """Run a request on this thread once its delay is over, before a runner does."""
    batcher.submit_all([request])
    while not batcher.help() and request.outcome is None:
        pass


def test_queue_delay_collects_a_batch(model: GatedModel, clock: FakeClock) -> None:
    config = BatchingConfig(max_batch_size=2, max_queue_delay_s=3600.0)
    batcher = Batcher(model, config, clock=clock)
    first = submit(batcher, 1)
    assert model.ran == []
    second = submit(batcher, 2)  # the batch is full: no more delay
    model.open()
    assert [first.wait().digits, second.wait().digits] == [[1], [2]]
    assert model.ran == [[1, 2]]
    batcher.close()


class TraceableRequest(RecordingRequest):
    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("num_images", [3, 7])  # at once; in two runs
def test_answered_requests_do_not_wait_for_the_garbage_collector(num_images: int) -> None:
    batcher = Batcher(FakeModel(), BatchingConfig(max_batch_size=4))
    request = TraceableRequest(images_of(*range(num_images)))
    trace = weakref.ref(request)
    gc.disable()
    try:
        batcher.submit(request)
        request.wait()
        batcher.close()
        del request
        assert trace() is None
    finally:
        gc.enable()
