"""Where calls come in: the short way of `Entry.submit` has the room of `Queue.offer`."""

from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from serving.batching.entry import Entry
from serving.batching.queue import Queue
from serving.batching.run import Group
from serving.config import BatchingConfig
from serving.errors import Unavailable
from serving.telemetry.metrics import Metrics
from tests.support.fakes import FakeCaller, FakeModel

CALLERS = ("10.0.0.1", "10.0.0.1", "10.0.0.2")
"""Where they are."""


class Way:
    """A queue, callers, and one way to let calls wait in it."""

    def __init__(self, capacity, run_rows, row_s):
        self.queue = Queue(capacity)
        self.queue.run_rows, self.queue.row_s = run_rows, row_s
        self.callers = [FakeCaller(address) for address in CALLERS]
        config = BatchingConfig(queue_capacity=capacity, max_request_rows=1)
        tensors = FakeModel.tensors
        self.entry = Entry(("digits", "1"), tensors, config, Metrics(), (self.queue,))
        self.scheduled = []
        owner: Any = SimpleNamespace(clock=lambda: 0.0, schedule=self.scheduled.append)
        self.entry.attach(owner)
        self.slo_s = config.slo_s

    def group(self, caller, number, num_rows, left_s):
        own = self.callers[caller]
        ids: Any = [object() for _ in range(number)]
        own.streams |= dict.fromkeys(ids, 1)
        encoder: Any = SimpleNamespace(num_rows=num_rows)
        sink: Any = None
        return Group(own, ids, [b""] * number, encoder, sink, 0.0, left_s)

    def submit(self, *call):
        return self.entry.submit(self.group(*call))

    def offer(self, *call):
        return self.queue.offer(self.group(*call), lambda: 0.0, self.slo_s)


CALLS = st.lists(
    st.tuples(
        st.integers(0, 2), st.integers(1, 24), st.integers(1, 9), st.sampled_from([0.1, 1e9])
    ),
    max_size=12,
)
"""Of which caller, how many calls, the rows of each, and how long it waits."""


@given(CALLS, st.integers(1, 200), st.integers(1, 64), st.sampled_from([0.0, 1e-3, 1.0]))
@example([(0, 24, 1, 1e9)] * 12, 8, 64, 0.0)
@example([(0, 1, 9, 0.1)] * 12, 8, 64, 1.0)
def test_calls_have_the_same_room_on_either_way(calls, capacity, run_rows, row_s):
    one, other = Way(capacity, run_rows, row_s), Way(capacity, run_rows, row_s)
    for call in calls:
        _, number, num_rows, _ = call
        fits = one.queue.num_rows + number * num_rows <= run_rows
        taken = one.submit(*call)
        assert taken == other.offer(*call)
        assert one.queue.num_rows == other.queue.num_rows
        assert not fits or taken == number, "calls of the next run are never refused"
        assert bool(one.scheduled) == bool(one.queue.num_rows)


def test_turn_is_asked_for_once_however_many_calls_come():
    way = Way(8, 4, 0.0)
    for caller in (0, 1):
        assert way.submit(caller, 1, 1, 1e9) == 1
    way.entry.add(way.group(2, 1, 1, 1e9))
    assert way.scheduled == [way.entry]


@pytest.mark.parametrize(
    ("options", "counts"),
    [({}, (2, 3.0)), ({"counts_calls": True}, (2, 3.0)), ({"counts_calls": False}, None)],
)
def test_failure_is_each_calls_own_and_counted_unless_a_stage_counts_it(options, counts):
    metrics, failures, label = Metrics(), [], ("digits", "1")
    entry = Entry(label, FakeModel.tensors, BatchingConfig(), metrics, (Queue(8),), **options)
    owner: Any = SimpleNamespace(clock=lambda: 2.5)
    entry.attach(owner)
    sink: Any = SimpleNamespace(fail=lambda group, error: failures.append((group, error)))
    streams: Any = (1, 2)
    encoder: Any = SimpleNamespace(num_rows=1)
    group = Group(FakeCaller(), streams, [b""] * 2, encoder, sink, 1.0, 9.0)
    error = Unavailable("it rests")
    error.retry_after_s = 3.0
    entry.fail(group, error)
    ((failed, own),) = failures
    assert failed is group
    assert own is not error
    assert (type(own), str(own), own.retry_after_s, own.model) == (
        Unavailable, "it rests", 3.0, label,
    )  # fmt: skip
    found = metrics.snapshot().models.get(label)
    assert (found and (found.num_failed, found.failed_s)) == counts


@pytest.mark.parametrize(("is_final", "num_failed"), [(True, 2), (False, 0)])
def test_calls_without_room_have_failed_unless_others_may_take_them(is_final, num_failed):
    way = Way(2, 0, 0.0)
    taken = way.entry.submit(way.group(0, 6, 1, 1e9), is_final=is_final)
    counts = way.entry._metrics.snapshot().models.get(("digits", "1"))
    assert (taken, counts.num_failed if counts else 0) == (4, num_failed)
