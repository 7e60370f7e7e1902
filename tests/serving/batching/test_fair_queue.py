import pytest

from serving.batching.fair_queue import Backlog
from serving.batching.request import Batch
from serving.errors import DeadlineExceeded, Overloaded
from tests.support.fakes import FakeModel, RecordingRequest, images_of, probabilities_of


def request(*values: int, **options: object) -> RecordingRequest:
    return RecordingRequest(images_of(*values), **options)


def values_of(batch: Batch | None) -> list[int]:
    assert batch is not None
    return [int(value) for value in batch.images()[:, 0]]


def admit(backlog: Backlog, request: RecordingRequest, now_s: float) -> None:
    backlog.admit(request, request.record, now_s)


def finish(batch: Batch) -> None:
    probabilities = probabilities_of(batch.images())
    digits = probabilities.argmax(axis=1).astype("uint8").tobytes()
    for settled, answer in batch.finish(digits, probabilities.tobytes()):
        settled.deliver(answer)


def test_take_puts_requests_together_in_order_of_arrival() -> None:
    backlog = Backlog(FakeModel(), capacity=100)
    for values in ((1,), (2, 3), (4,)):
        admit(backlog, request(*values), 0.0)
    assert values_of(backlog.take(128, 0.0)) == [1, 2, 3, 4]
    assert backlog.num_rows == 0
    assert backlog.take(128, 0.0) is None


def test_full_backlog_rejects_and_keeps_what_it_has() -> None:
    backlog = Backlog(FakeModel(), capacity=3)
    admit(backlog, request(1, 2), 0.0)
    with pytest.raises(Overloaded, match="2 of 3 images"):
        admit(backlog, request(3, 4), 0.0)
    admit(backlog, request(5), 0.0)
    assert values_of(backlog.take(128, 0.0)) == [1, 2, 5]


def test_large_request_is_split_and_answered_whole() -> None:
    backlog = Backlog(FakeModel(), capacity=100)
    large = request(*range(10))
    admit(backlog, large, 0.0)
    batches = [backlog.take(4, 0.0) for _ in range(3)]
    for batch in reversed(batches):  # runs may end in any order
        assert batch is not None
        assert large.outcome is None
        finish(batch)
    assert large.digits == list(range(10))


def test_callers_take_turns() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 10_000, caller="many"), 0.0)
    admit(backlog, request(2, caller="one"), 0.0)
    assert 2 in values_of(backlog.take(64, 0.0))


def test_caller_with_many_requests_does_not_hold_up_another() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    for _ in range(10_000):
        admit(backlog, request(1, caller="many"), 0.0)
    admit(backlog, request(2, caller="one"), 0.0)
    assert 2 in values_of(backlog.take(64, 0.0))


def test_large_requests_run_one_after_the_other() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    for caller in (1, 2):
        admit(backlog, request(*[caller] * 100, caller=caller), 0.0)
        admit(backlog, request(*[10 * caller] * 100, caller=caller), 0.0)
    batches = [values_of(backlog.take(50, 0.0)) for _ in range(8)]
    assert batches == [[value] * 50 for value in (1, 1, 2, 2, 10, 10, 20, 20)]


def test_runs_of_one_image_go_to_small_and_large_requests_in_turn() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 100, caller="large"), 0.0)
    for _ in range(3):
        admit(backlog, request(2, caller="small"), 0.0)
    taken = [values_of(backlog.take(1, 0.0)) for _ in range(6)]
    assert sorted(taken) == [[1]] * 3 + [[2]] * 3


def test_small_request_does_not_wait_where_a_large_one_before_it_has_left() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 1000, caller="other"), 0.0)
    left = request(*[2] * 1000, caller="mine")
    admit(backlog, left, 0.0)
    admit(backlog, request(3, caller="mine"), 0.0)
    backlog.cancel(left)
    assert 3 in values_of(backlog.take(40, 0.0))


def test_small_requests_go_before_large_ones_and_leave_them_half() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 1000, caller="large"), 0.0)
    for caller in range(20):
        admit(backlog, request(2, 2, caller=caller), 0.0)
    assert values_of(backlog.take(40, 0.0)) == [2] * 20 + [1] * 20
    assert values_of(backlog.take(40, 0.0)) == [2] * 20 + [1] * 20
    assert values_of(backlog.take(40, 0.0)) == [1] * 40


def test_large_request_does_not_pass_for_small_where_a_small_one_before_it_has_left() -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 1000, caller="other"), 0.0)
    left = request(2, caller="mine")
    admit(backlog, left, 0.0)
    admit(backlog, request(*[3] * 1000, caller="mine"), 0.0)
    backlog.cancel(left)
    assert values_of(backlog.take(40, 0.0)) == [1] * 40


@pytest.mark.parametrize(("num_images", "first"), [(16, 2), (17, 1)])
def test_request_is_small_up_to_sixteen_images(num_images: int, first: int) -> None:
    backlog = Backlog(FakeModel(), capacity=20_000)
    admit(backlog, request(*[1] * 1000, caller="large"), 0.0)
    admit(backlog, request(*[2] * num_images, caller="other"), 0.0)
    assert values_of(backlog.take(40, 0.0))[0] == first


def test_rows_wait_since_the_backlog_was_last_empty() -> None:
    backlog = Backlog(FakeModel(), capacity=100)
    for now_s in (1.0, 2.0):
        admit(backlog, request(1), now_s)
    assert backlog.waiting_since_s == 1.0
    backlog.take(128, 2.0)
    admit(backlog, request(1), 3.0)
    assert backlog.waiting_since_s == 3.0


def test_expired_request_is_rejected_and_never_taken() -> None:
    backlog = Backlog(FakeModel(), capacity=100)
    expired, alive = request(1, deadline_s=5.0), request(2, deadline_s=5.1)
    admit(backlog, expired, 0.0)
    admit(backlog, alive, 0.0)
    assert values_of(backlog.take(128, 5.0)) == [2]
    assert isinstance(expired.outcome, DeadlineExceeded)
    assert backlog.num_rows == 0


def test_cancelled_request_is_never_taken_and_frees_its_place() -> None:
    backlog = Backlog(FakeModel(), capacity=2)
    cancelled = request(1, 2)
    admit(backlog, cancelled, 0.0)
    backlog.cancel(cancelled)
    backlog.cancel(cancelled)
    admit(backlog, request(3, 4), 0.0)
    assert values_of(backlog.take(128, 0.0)) == [3, 4]
    assert cancelled.outcome is None


def test_request_cancelled_between_its_runs_gives_up_the_rest() -> None:
    backlog = Backlog(FakeModel(), capacity=100)
    large = request(*range(8))
    admit(backlog, large, 0.0)
    batch = backlog.take(4, 0.0)
    assert batch is not None
    backlog.cancel(large)
    assert backlog.take(4, 0.0) is None
    finish(batch)  # what ran is dropped
    assert large.outcome is None


def test_ten_thousand_expired_requests_never_run() -> None:
    backlog = Backlog(FakeModel(), capacity=10_000)
    requests = [request(1, deadline_s=1.0, caller=number % 7) for number in range(10_000)]
    for waiting in requests:
        admit(backlog, waiting, 0.0)
    assert backlog.take(128, 1.0) is None
    assert all(isinstance(waiting.outcome, DeadlineExceeded) for waiting in requests)
    assert backlog.num_rows == 0
