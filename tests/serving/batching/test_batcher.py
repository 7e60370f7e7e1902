import gc
import threading
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import pytest

from serving.batching.batcher import Batcher
from serving.batching.request import Answer
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ModelError, Overloaded, Unavailable
from serving.images import Images
from serving.predictions import Probabilities
from tests.support.fakes import (
    TIMEOUT_S,
    FakeClock,
    FakeModel,
    GatedModel,
    RecordingRequest,
    images_of,
)


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
    batcher.put(request, request.record)
    batcher.wake()
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
    batcher.cancel(cancelled)
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
    clock.advance(8.0)  # a run takes long: 1.0 is expected of the next, and twice that is kept
    hasty = [submit(batcher, value, deadline_s=10.0) for value in (1, 2, 3)]
    patient = [submit(batcher, value, deadline_s=10.1) for value in (4, 5, 6)]
    model.open(2)
    assert [request.wait().digits for request in patient] == [[4], [5], [6]]
    assert all(isinstance(request.wait().outcome, DeadlineExceeded) for request in hasty)
    assert model.ran == [[0], [4, 5, 6]]


def test_deadline_that_is_close_gets_its_chance_when_nobody_else_waits(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    clock.advance(8.0)
    hasty = [submit(batcher, value, deadline_s=9.0) for value in range(4)]  # one run's images
    model.open(2)
    assert [request.wait().digits for request in hasty] == [[0], [1], [2], [3]]


def test_failed_run_fails_only_the_guilty_request(caplog: pytest.LogCaptureFixture) -> None:
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
    assert caplog.messages == ["a run of 1 images failed"]
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


def test_drain_waits_for_a_run_though_nothing_waits(batcher: Batcher, model: GatedModel) -> None:
    running = occupy(batcher, model)
    assert not batcher.drain(timeout_s=0.0)
    model.open()
    assert batcher.drain(TIMEOUT_S)
    assert running.digits == [0]


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
    closing.join(0.05)
    assert closing.is_alive(), "the run goes on"
    model.open()
    closing.join()
    assert running.digits == [0]


def test_free_runners_share_what_waits() -> None:
    model = GatedModel()
    batcher = Batcher(model, BatchingConfig(), num_runners=2)
    request = submit(batcher, *[1] * 600)
    model.wait_until_running()
    model.wait_until_running()
    model.open(2)
    request.wait()
    assert [len(values) for values in model.ran] == [300, 300]
    batcher.close()


def test_runner_that_leaves_images_wakes_another(model: GatedModel) -> None:
    batcher = Batcher(model, BatchingConfig(max_batch_size=4), num_runners=2)
    model.open()
    submit(batcher, 1).wait()  # both runners have started; what comes now wakes one
    requests = [RecordingRequest(images_of(value)) for value in range(8)]
    for request in requests:
        batcher.put(request, request.record)
    batcher.wake()
    for _ in range(3):
        model.wait_until_running()
    model.open(1000)
    assert [request.wait().digits[0] for request in requests] == list(range(8))
    batcher.close()


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


def test_lone_request_runs_after_its_delay() -> None:
    batcher = Batcher(FakeModel(), BatchingConfig(max_queue_delay_s=0.01))
    assert submit(batcher, 1).wait().digits == [1]
    waiting = submit(batcher, 2)
    batcher.swap(FakeModel(version="2"))
    assert waiting.wait().digits == [2]
    assert submit(batcher, 3).wait().digits == [3]
    batcher.close()


def test_cancel_of_a_request_that_was_never_queued_does_nothing(
    batcher: Batcher, model: GatedModel
) -> None:
    occupy(batcher, model)
    batcher.cancel(RecordingRequest(images_of(1)))
    assert batcher.num_waiting == 0


def test_new_model_runs_though_all_that_waited_for_the_old_one_has_expired(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    expired = submit(batcher, 1, deadline_s=1.0)
    batcher.swap(FakeModel(version="2"))
    alive = submit(batcher, 2)
    clock.advance(1.0)
    model.open()
    assert isinstance(expired.wait().outcome, DeadlineExceeded)
    assert alive.wait().digits == [2]


def wait_until_draining(batcher: Batcher) -> None:
    """Wait until a drain has begun, which then waits for what was accepted."""
    with suppress(Unavailable):
        while True:
            request = RecordingRequest(images_of(1))
            batcher.put(request, request.record)
            batcher.cancel(request)


def test_drain_ends_when_what_waits_expires(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    submit(batcher, 1, deadline_s=1.0)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(batcher.drain, TIMEOUT_S)
        wait_until_draining(batcher)
        clock.advance(1.0)
        model.open()
        assert drained.result()


def test_runner_goes_on_after_all_that_waited_has_expired(
    batcher: Batcher, model: GatedModel, clock: FakeClock
) -> None:
    occupy(batcher, model)
    expired = submit(batcher, 1, deadline_s=1.0)
    clock.advance(1.0)
    model.open(2)
    assert isinstance(expired.wait().outcome, DeadlineExceeded)
    assert submit(batcher, 2).wait().digits == [2]


@pytest.fixture
def patient_batcher(clock: FakeClock) -> Iterator[Batcher]:
    """A batcher whose requests wait, since the clock stands still."""
    batcher = Batcher(FakeModel(), BatchingConfig(max_queue_delay_s=1.0), clock=clock)
    yield batcher
    batcher.close()


def test_drain_ends_when_what_waits_is_cancelled(patient_batcher: Batcher) -> None:
    request = submit(patient_batcher, 1)
    assert not patient_batcher.drain(timeout_s=0.0), "it waits, though nothing runs"
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(patient_batcher.drain, TIMEOUT_S)
        wait_until_draining(patient_batcher)
        patient_batcher.cancel(request)
        assert drained.result()


def test_close_ends_a_drain(patient_batcher: Batcher) -> None:
    request = submit(patient_batcher, 1)
    with ThreadPoolExecutor(1) as pool:
        drained = pool.submit(patient_batcher.drain, TIMEOUT_S)
        wait_until_draining(patient_batcher)
        patient_batcher.close()
        assert drained.result()
    assert isinstance(request.outcome, Unavailable)


def test_closed_batcher_refuses_and_may_be_closed_again(batcher: Batcher) -> None:
    batcher.close()
    with pytest.raises(Unavailable, match="closed"):
        submit(batcher, 1)
    batcher.close()


class DyingModel(FakeModel):
    """Raises what is no Exception, as bindings of other languages do."""

    def classify(self, images: Images) -> Probabilities:
        raise SystemExit


def test_runner_outlives_whatever_a_run_raises(batcher: Batcher, model: GatedModel) -> None:
    batcher.swap(DyingModel())
    assert isinstance(submit(batcher, 1).wait().outcome, ModelError)
    batcher.swap(FakeModel())
    assert submit(batcher, 2).wait().digits == [2]


def test_runner_outlives_an_outcome_that_nobody_takes(
    batcher: Batcher, model: GatedModel, clock: FakeClock, caplog: pytest.LogCaptureFixture
) -> None:
    def raise_error(outcome: object) -> None:
        raise RuntimeError("the event loop is closed")

    occupy(batcher, model)
    batcher.put(RecordingRequest(images_of(1)), raise_error)
    batcher.put(RecordingRequest(images_of(2), deadline_s=1.0), raise_error)
    clock.advance(1.0)
    model.open(3)
    assert submit(batcher, 3).wait().digits == [3]
    assert caplog.text.count("failed to deliver an outcome") == 2


def test_server_without_a_thread_refuses_and_tries_again(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(thread: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    batcher = Batcher(FakeModel(), BatchingConfig())
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "start", refuse)
        with pytest.raises(Unavailable, match="thread"):
            submit(batcher, 1)
    assert batcher.num_waiting == 0
    assert submit(batcher, 2).wait().digits == [2]
    batcher.close()


def test_fewer_runners_serve_where_threads_are_scarce(monkeypatch: pytest.MonkeyPatch) -> None:
    start = threading.Thread.start

    def start_first(thread: threading.Thread) -> None:
        if thread.name != "runner-0":
            raise RuntimeError("can't start new thread")
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_first)
    batcher = Batcher(FakeModel(), BatchingConfig(), num_runners=4)
    assert submit(batcher, 2).wait().digits == [2]
    batcher.close()


def test_run_is_observed_before_its_answers_are_handed_over(
    model: GatedModel, clock: FakeClock
) -> None:
    events: list[object] = []

    def observe(started_s: float, finished_s: float, *rest: object) -> None:
        events.append((started_s, finished_s, *rest[:2]))

    batcher = Batcher(model, BatchingConfig(), clock=clock, observe=observe)
    occupied = occupy(batcher, model)
    clock.advance(1.0)
    for values in ((1, 2), (3,)):
        batcher.put(RecordingRequest(images_of(*values)), events.append)
    clock.advance(1.0)
    model.open()
    occupied.wait()
    model.wait_until_running()
    clock.advance(1.0)
    model.open()
    assert batcher.drain(TIMEOUT_S)
    batcher.close()
    assert events[:2] == [
        (0.0, 2.0, [(0.0, None, 1)], b"\x00"),
        (2.0, 3.0, [(1.0, None, 1)] * 2, b"\x01\x02\x03"),
    ]
    answers = [list(event.digits) for event in events if isinstance(event, Answer)]
    assert answers == [[1, 2], [3]]


class TraceableRequest(RecordingRequest):
    __slots__ = ("__weakref__",)


@pytest.mark.parametrize("num_images", [3, 7])  # at once; in two runs
@pytest.mark.parametrize("fate", ["answered", "expired", "cancelled", "refused"])
def test_settled_requests_do_not_wait_for_the_garbage_collector(num_images: int, fate: str) -> None:
    clock, model = FakeClock(), GatedModel()
    config = BatchingConfig(max_batch_size=4, queue_capacity=7, max_request_images=7)
    batcher = Batcher(model, config, clock=clock)
    occupy(batcher, model)
    request = TraceableRequest(images_of(*range(num_images)), deadline_s=1.0)
    trace = weakref.ref(request)
    gc.disable()
    try:
        if fate == "refused":
            submit(batcher, *range(7))
            with pytest.raises(Overloaded):
                batcher.put(request, request.record)
        else:
            batcher.put(request, request.record)
        if fate == "expired":
            clock.advance(1.0)
        if fate == "cancelled":
            batcher.cancel(request)
        model.open(1000)
        assert batcher.drain(TIMEOUT_S)
        batcher.close()
        del request
        assert trace() is None
    finally:
        gc.enable()
