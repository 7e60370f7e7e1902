import pytest

from serving.batching.batch import Piece, run_pieces
from serving.batching.fair_queue import FairQueue
from serving.errors import DeadlineExceeded, Overloaded
from serving.signature import DIGITS
from tests.support.fakes import FakeClock, FakeModel, RecordingRequest, images_of

MODEL = FakeModel()


def request(*values: int, **options: object) -> RecordingRequest:
    return RecordingRequest(images_of(*values), **options)


def values_of(pieces: list[Piece]) -> list[int]:
    pixels = b"".join(request.rows(first, rows) for request, first, rows in pieces)
    return list(pixels[:: DIGITS.image_bytes])


def admit(queue: FairQueue, request: RecordingRequest, now_s: float) -> None:
    queue.admit(request, MODEL, request.record, now_s)


def run(pieces: list[Piece]) -> None:
    for batch, error in run_pieces(pieces, FakeClock()):
        assert error is None
        for settled, answer in batch.finish():
            settled.deliver(answer)


def test_take_puts_requests_together_in_order_of_arrival() -> None:
    queue = FairQueue(capacity=100)
    for values in ((1,), (2, 3), (4,)):
        admit(queue, request(*values), 0.0)
    assert values_of(queue.take(128, 0.0)) == [1, 2, 3, 4]
    assert queue.num_rows == 0
    assert not queue.take(128, 0.0)


def test_full_queue_rejects_and_keeps_what_it_has() -> None:
    queue = FairQueue(capacity=3)
    admit(queue, request(1, 2), 0.0)
    with pytest.raises(Overloaded, match="2 of 3 images"):
        admit(queue, request(3, 4), 0.0)
    admit(queue, request(5), 0.0)
    assert values_of(queue.take(128, 0.0)) == [1, 2, 5]


def test_large_request_is_split_and_answered_whole() -> None:
    queue = FairQueue(capacity=100)
    large = request(*range(10))
    admit(queue, large, 0.0)
    batches = [queue.take(4, 0.0) for _ in range(3)]
    for batch in reversed(batches):  # runs may end in any order
        assert large.outcome is None
        run(batch)
    assert large.digits == list(range(10))


def test_callers_take_turns() -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 10_000, caller="many"), 0.0)
    admit(queue, request(2, caller="one"), 0.0)
    assert 2 in values_of(queue.take(64, 0.0))


def test_caller_with_many_requests_does_not_hold_up_another() -> None:
    queue = FairQueue(capacity=20_000)
    for _ in range(10_000):
        admit(queue, request(1, caller="many"), 0.0)
    admit(queue, request(2, caller="one"), 0.0)
    assert 2 in values_of(queue.take(64, 0.0))


def test_large_requests_run_one_after_the_other() -> None:
    queue = FairQueue(capacity=20_000)
    for caller in (1, 2):
        admit(queue, request(*[caller] * 100, caller=caller), 0.0)
        admit(queue, request(*[10 * caller] * 100, caller=caller), 0.0)
    batches = [values_of(queue.take(50, 0.0)) for _ in range(8)]
    assert batches == [[value] * 50 for value in (1, 1, 2, 2, 10, 10, 20, 20)]


def test_runs_of_one_image_go_to_small_and_large_requests_in_turn() -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 100, caller="large"), 0.0)
    for _ in range(3):
        admit(queue, request(2, caller="small"), 0.0)
    taken = [values_of(queue.take(1, 0.0)) for _ in range(6)]
    assert sorted(taken) == [[1]] * 3 + [[2]] * 3


def test_small_request_does_not_wait_where_a_large_one_before_it_has_left() -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 1000, caller="other"), 0.0)
    left = request(*[2] * 1000, caller="mine")
    admit(queue, left, 0.0)
    admit(queue, request(3, caller="mine"), 0.0)
    queue.cancel(left)
    assert 3 in values_of(queue.take(40, 0.0))


def test_small_requests_go_before_large_ones_and_leave_them_half() -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 1000, caller="large"), 0.0)
    for caller in range(20):
        admit(queue, request(2, 2, caller=caller), 0.0)
    assert values_of(queue.take(40, 0.0)) == [2] * 20 + [1] * 20
    assert values_of(queue.take(40, 0.0)) == [2] * 20 + [1] * 20
    assert values_of(queue.take(40, 0.0)) == [1] * 40


def test_large_request_does_not_pass_for_small_where_a_small_one_before_it_has_left() -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 1000, caller="other"), 0.0)
    left = request(2, caller="mine")
    admit(queue, left, 0.0)
    admit(queue, request(*[3] * 1000, caller="mine"), 0.0)
    queue.cancel(left)
    assert values_of(queue.take(40, 0.0)) == [1] * 40


@pytest.mark.parametrize(("num_images", "first"), [(16, 2), (17, 1)])
def test_request_is_small_up_to_sixteen_images(num_images: int, first: int) -> None:
    queue = FairQueue(capacity=20_000)
    admit(queue, request(*[1] * 1000, caller="large"), 0.0)
    admit(queue, request(*[2] * num_images, caller="other"), 0.0)
    assert values_of(queue.take(40, 0.0))[0] == first


def test_rows_wait_since_the_queue_was_last_empty() -> None:
    queue = FairQueue(capacity=100)
    for now_s in (1.0, 2.0):
        admit(queue, request(1), now_s)
    assert queue.waiting_since_s == 1.0
    queue.take(128, 2.0)
    admit(queue, request(1), 3.0)
    assert queue.waiting_since_s == 3.0


def test_expired_request_is_rejected_and_never_taken() -> None:
    queue = FairQueue(capacity=100)
    expired, alive = request(1, deadline_s=5.0), request(2, deadline_s=5.1)
    admit(queue, expired, 0.0)
    admit(queue, alive, 0.0)
    assert values_of(queue.take(128, 5.0)) == [2]
    assert isinstance(expired.outcome, DeadlineExceeded)
    assert queue.num_rows == 0


def test_cancelled_request_is_never_taken_and_frees_its_place() -> None:
    queue = FairQueue(capacity=2)
    cancelled = request(1, 2)
    admit(queue, cancelled, 0.0)
    queue.cancel(cancelled)
    queue.cancel(cancelled)
    admit(queue, request(3, 4), 0.0)
    assert values_of(queue.take(128, 0.0)) == [3, 4]
    assert cancelled.outcome is None


def test_request_cancelled_between_its_runs_gives_up_the_rest() -> None:
    queue = FairQueue(capacity=100)
    large = request(*range(8))
    admit(queue, large, 0.0)
    batch = queue.take(4, 0.0)
    queue.cancel(large)
    assert not queue.take(4, 0.0)
    run(batch)  # what ran is dropped
    assert large.outcome is None


def test_ten_thousand_expired_requests_never_run() -> None:
    queue = FairQueue(capacity=10_000)
    requests = [request(1, deadline_s=1.0, caller=number % 7) for number in range(10_000)]
    for waiting in requests:
        admit(queue, waiting, 0.0)
    assert not queue.take(128, 1.0)
    assert all(isinstance(waiting.outcome, DeadlineExceeded) for waiting in requests)
    assert queue.num_rows == 0
