import pytest

from serving.backlog import Backlog
from serving.errors import ModelError
from serving.requests import Batch
from tests.fakes import FakeModel, RecordingGroup, RecordingRequest, images_of, probabilities_of


def finish(batch: Batch) -> None:
    probabilities = probabilities_of(batch.images())
    digits = probabilities.argmax(axis=1).astype("uint8").tobytes()
    for settled, answer in batch.finish(digits, probabilities.tobytes()):
        settled.resolve(answer)


@pytest.fixture
def backlog() -> Backlog:
    return Backlog(FakeModel(), capacity=100)


def test_calls_of_a_group_are_answered_as_their_rows_are(backlog: Backlog) -> None:
    group = RecordingGroup(*range(10))
    backlog.admit(group, 0.0)
    for expected in (4, 8, 10):
        batch = backlog.take(4, 0.0)
        assert batch is not None
        finish(batch)
        assert group.digits == {value: value for value in range(expected)}
    assert group.settled


def test_withdrawn_call_never_runs_and_frees_its_place(backlog: Backlog) -> None:
    group = RecordingGroup(1, 2, 3)
    backlog.admit(group, 0.0)
    backlog.withdraw(group, 2)
    backlog.withdraw(group, 99)  # nobody's
    assert backlog.num_rows == 2
    batch = backlog.take(128, 0.0)
    assert batch is not None
    backlog.withdraw(group, 3)  # too late: it runs
    finish(batch)
    assert group.digits == {1: 1, 3: 3}


def test_group_whose_calls_all_left_is_gone(backlog: Backlog) -> None:
    group = RecordingGroup(1, 2)
    backlog.admit(group, 0.0)
    for key in group.keys.copy():
        backlog.withdraw(group, key)
    assert group.settled
    assert backlog.take(128, 0.0) is None
    assert not backlog.num_rows


def test_last_waiting_call_of_a_running_group_may_leave(backlog: Backlog) -> None:
    group = RecordingGroup(1, 2, 3)
    backlog.admit(group, 0.0)
    batch = backlog.take(2, 0.0)
    backlog.withdraw(group, 3)
    assert backlog.take(2, 0.0) is None
    assert not group.settled
    assert batch is not None
    finish(batch)
    assert group.digits == {1: 1, 2: 2}
    assert group.settled


def test_suspects_of_a_failed_run_are_single_calls(backlog: Backlog) -> None:
    group = RecordingGroup(*range(5))
    mate = RecordingRequest(images_of(7, 8))
    backlog.admit(group, 0.0)
    backlog.admit(mate, 0.0)
    batch = backlog.take(128, 0.0)
    assert batch is not None
    halves = batch.suspects()
    assert [half.num_rows for half in halves] == [3, 4]
    finish(halves[1])
    while suspects := halves[0].suspects():
        finish(suspects[1])
        halves = suspects
    (guilty, _, _) = halves[0].pieces[0]
    assert guilty.home is backlog
    backlog.fail(guilty, ModelError("planted"))
    assert mate.digits == [7, 8]
    assert group.digits == {value: value for value in range(1, 5)}
    assert group.failed == [0]
    assert group.settled


def test_group_that_does_not_fit_is_split(backlog: Backlog) -> None:
    group = RecordingGroup(*range(5))
    rest = group.split(3)
    assert (group.num_rows, rest.num_rows) == (3, 2)
    assert rest.keys == [3, 4]
    assert group.split(0) is group
