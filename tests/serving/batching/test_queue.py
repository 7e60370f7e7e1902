"""The queue, with connections that have no socket."""

import math
import random
import weakref
from typing import Any

import pytest

from serving.batching.queue import Queue
from serving.batching.run import Group
from tests.support.fakes import FakeCaller


class Rows:
    """All that the queue asks of an encoder."""

    def __init__(self, num_rows):
        self.num_rows = num_rows


class FilledQueue:
    """A queue and its calls, which are named by their stream."""

    def __init__(self, capacity=1000):
        self.queue = Queue(capacity)

    def put(
        self, connection, *stream_ids, num_images=1, arrived_s=0.0, deadline_s=math.inf,
        deadlines_s=None,
    ):  # fmt: skip
        for stream_id in stream_ids:
            connection.streams[stream_id] = object()
        ids: Any = stream_ids
        rows: Any = Rows(num_images)
        sink: Any = None
        data = [b""] * len(ids)
        times = arrived_s, min(deadlines_s or (deadline_s,))
        self.queue.put(Group(connection, ids, data, rows, sink, *times, deadlines_s=deadlines_s))

    def take(self, max_rows, now_s=0.0):
        """Take a batch; returns its streams and ends their calls."""
        return self.take_all(max_rows, now_s)[0]

    def take_all(self, max_rows, now_s):
        """Take a batch; returns the streams that are run and those that are late."""
        taken: Any = self.queue.take(max_rows, now_s)
        for group in (*taken[0], *taken[1]):
            for stream_id in group.streams:
                del group.caller.streams[stream_id]
        run, late = ([stream for group in groups for stream in group.streams] for groups in taken)
        return run, late


@pytest.fixture
def filled():
    return FilledQueue()


def offered(queue, caller, *stream_ids):
    """Offer calls of 4 rows each at time 0; returns how many were taken."""
    ids: Any = stream_ids
    rows: Any = Rows(4)
    sink: Any = None
    for stream_id in stream_ids:
        caller.streams[stream_id] = object()
    return queue.offer(
        Group(caller, ids, [b""] * len(ids), rows, sink, 0.0, math.inf), lambda: 0.0, math.inf
    )


def test_calls_are_added_as_far_as_there_is_room():
    filled = FilledQueue(capacity=20)
    caller = FakeCaller()
    assert offered(filled.queue, caller, 1, 3, 5, 7, 9, 11, 13) == 5
    assert filled.queue.num_rows == 20
    assert offered(filled.queue, caller, 15, 17) == 0
    assert offered(filled.queue, FakeCaller(), 2, 4, 6) == 2  # the rows that others have left it
    assert filled.take(100) == [1, 3, 5, 7, 9, 2, 4]


def test_call_of_any_size_is_added_where_none_waits():
    filled = FilledQueue(capacity=1)
    assert offered(filled.queue, FakeCaller(), 1, 3) == 1
    assert filled.take(100) == [1]


def is_empty(filled):
    return not filled.queue.num_rows and not filled.take(8)


def test_connections_take_turns_of_sixteen_images(filled):
    many, few = FakeCaller(), FakeCaller()
    filled.put(many, *range(100))
    filled.put(few, 1000, 1001)
    assert filled.take(32) == [*range(16), 1000, 1001, *range(16, 30)]
    assert filled.queue.num_rows == 70


def test_large_call_is_taken_whole_and_then_it_is_the_others_turn(filled):
    large, small = FakeCaller(), FakeCaller()
    filled.put(large, 1, 3, num_images=100)
    filled.put(small, 2)
    assert filled.take(128) == [1, 2]
    assert filled.take(128) == [3]


def test_call_that_does_not_fit_begins_the_next_batch(filled):
    small, large = FakeCaller(), FakeCaller()
    filled.put(small, *range(40))
    filled.put(large, 1001, num_images=100)
    filled.put(large, 1003)
    assert filled.take(110) == list(range(16))
    assert filled.take(110) == [1001, *range(16, 26)]
    assert filled.take(110) == [1003, *range(26, 40)]


@pytest.mark.parametrize("max_rows", [8, 3])  # all at once; in turns
def test_calls_whose_callers_left_are_not_taken(filled, max_rows):
    connection = FakeCaller()
    filled.put(connection, *range(6))
    connection.leave(0, 3, 5)
    assert [*filled.take(max_rows), *filled.take(max_rows)] == [1, 2, 4]
    assert is_empty(filled)


def test_calls_whose_callers_left_take_no_room(filled):
    gone, here = FakeCaller(), FakeCaller()
    filled.put(gone, *range(100))
    filled.put(here, *range(1000, 1010))
    gone.leave(*range(100))
    assert filled.take(8) == list(range(1000, 1008))
    assert filled.queue.num_rows == 2
    assert filled.take(8) == [1008, 1009]


@pytest.mark.parametrize("max_rows", [8, 3])
def test_late_calls_are_named_and_not_run(filled, max_rows):
    connection = FakeCaller()
    filled.put(connection, 1, deadline_s=4.0)
    filled.put(connection, 3, deadline_s=5.0)
    filled.put(connection, 5, 7, deadline_s=5.1)
    taken = [filled.take_all(max_rows, 5.0), filled.take_all(max_rows, 5.0)]
    assert [run for runs, _ in taken for run in runs] == [5, 7]
    assert [late for _, lates in taken for late in lates] == [1, 3]
    assert is_empty(filled)


@pytest.mark.parametrize(("max_rows", "run", "late"), [(8, [0, 4, 6, 7], [1, 2]),
                                                       (3, [0, 6], [1, 2, 4, 7])])  # fmt: skip
def test_calls_that_came_together_are_late_one_by_one(filled, max_rows, run, late):
    connection = FakeCaller()
    filled.put(connection, *range(8), deadlines_s=[9.0, 5.0, 4.0, 9.0, 5.1, 4.0, 9.0, 6.0])
    connection.leave(3, 5)
    taken = [filled.take_all(max_rows, now_s) for now_s in (5.0, 6.0, 7.0)]
    assert [each for runs, _ in taken for each in runs] == run
    assert [each for _, lates in taken for each in lates] == late
    assert is_empty(filled)


def test_sweep_ends_the_late_calls_of_those_that_came_together(filled):
    connection = FakeCaller()
    filled.put(connection, *range(4), deadlines_s=[9.0, 5.0, 4.0, 9.0])
    connection.leave(3)
    assert not filled.queue.sweep(3.9)
    assert [group.streams for group in filled.queue.sweep(5.0)] == [[1, 2]]
    assert filled.queue.num_rows == 1
    assert filled.take(8, 6.0) == [0]


# Callers that gave up


def test_newest_go_first_after_a_caller_gave_up(filled):
    connection = FakeCaller()
    filled.put(connection, *range(20))
    connection.gave_up_s = 10.0
    assert filled.take(4, 10.9) == [16, 17, 18, 19]
    assert filled.take(4, 11.0) == [0, 1, 2, 3]  # all is well again
    assert filled.queue.num_rows == 12


def test_only_the_caller_that_gave_up_is_taken_from_behind(filled):
    hasty, patient = FakeCaller(), FakeCaller()
    filled.put(hasty, *range(20))
    filled.put(patient, *range(100, 120))
    hasty.gave_up_s = 10.0
    assert filled.take(32, 10.1) == [*range(4, 20), *range(100, 116)]


def test_given_up_calls_do_not_count_as_waiting_for_ever(filled):
    connection = FakeCaller()
    filled.put(connection, *range(200))
    connection.leave(*range(100))
    connection.gave_up_s = 10.0
    assert filled.take(4, 10.0) == [196, 197, 198, 199]
    assert filled.queue.num_rows == 96


# Room, and patience


def test_call_is_refused_whose_time_would_go_by_in_the_queue(filled):
    connection = FakeCaller()
    filled.queue.run_rows = 4
    filled.queue.row_s = 0.125
    filled.put(connection, *range(4))
    assert filled.queue.room(connection, 4.0) == 4  # then the wait is 1 s, a quarter of its time
    assert filled.queue.room(FakeCaller(), math.inf) == 996


@pytest.mark.parametrize(("row_s", "room"), [(0.0, 996), (1.0, 36), (0.025, 96), (0.001, 996)])
def test_caller_with_calls_that_wait_adds_no_more_than_soon_run(row_s, room):
    """What ten runs take, or 2.5 s; a caller that has none waiting may add any."""
    filled, connection = FilledQueue(), FakeCaller()
    filled.queue.run_rows, filled.queue.row_s = 4, row_s
    filled.put(connection, *range(4))
    assert filled.queue.room(connection, math.inf) == room
    assert filled.queue.room(FakeCaller(), math.inf) == 996


def test_call_that_the_next_run_may_take_is_never_refused(filled):
    filled.queue.run_rows = 13
    filled.queue.row_s = 60.0  # a run took long: none would show that the next one does not
    connection = FakeCaller()
    filled.put(connection, *range(12))
    assert filled.queue.room(connection, 0.1) == 1


def test_caller_with_few_calls_is_not_refused_for_those_of_others():
    filled = FilledQueue(capacity=100)
    many = [FakeCaller("there") for _ in range(40)]
    filled.put(many[0], *range(100))
    assert filled.queue.room(many[0], math.inf) == 0
    few = [FakeCaller("there"), FakeCaller("elsewhere")]
    assert [filled.queue.room(each, math.inf) for each in few] == [8, 8]
    filled.put(few[0], *range(100, 107))
    assert filled.queue.room(few[0], math.inf) == 1
    for number, connection in enumerate(many[1:6], 1):
        filled.put(connection, *range(1000 * number, 1000 * number + 8))
    filled.put(many[6], 7000, 7001, 7002, 7003)  # half as much again waits, of one address
    assert filled.queue.room(few[0], math.inf) < 0
    assert filled.queue.room(few[1], math.inf) == 8
    for number in range(8):
        filled.put(few[1], 8000 + number)
        assert filled.queue.room(few[1], math.inf) == 7 - number
    filled.put(many[7], *range(9000, 9041))
    assert filled.queue.room(FakeCaller("a third place"), math.inf) == 0  # it is twice as full


@pytest.mark.parametrize(
    ("others", "own", "near", "room"),
    [
        (0, 0, 0, 100), (50, 7, 0, 43), (85, 7, 0, 8), (86, 7, 0, 7), (92, 0, 0, 8), (93, 0, 0, 8),
        (93, 1, 0, 7), (93, 7, 0, 1), (100, 8, 0, 0), (142, 0, 8, 8), (140, 4, 6, 4),
        (143, 0, 8, 0), (144, 0, 7, 1), (144, 1, 3, 7), (190, 0, 0, 8), (193, 0, 0, 7),
        (200, 0, 0, 0), (201, 0, 0, -1),
    ],
)  # fmt: skip
def test_room_of_each_tier(others, own, near, room):
    """Of 100 rows: rows of others elsewhere, the caller's own, and of others at its address."""
    filled, caller = FilledQueue(capacity=100), FakeCaller("here")
    for number, (each, rows) in enumerate(
        ((FakeCaller("there"), others), (caller, own), (FakeCaller("here"), near))
    ):
        if rows:
            filled.put(each, number, num_images=rows)
    assert filled.queue.room(caller, math.inf) == room


def test_time_of_a_row_is_that_of_the_first_run_and_moves_an_eighth_of_the_way():
    queue = Queue(1)
    for num_rows, seconds, row_s in ((4, 8.0, 2.0), (1, 6.0, 2.5), (2, 5.0, 2.5)):
        queue.note_run(num_rows, seconds)
        assert queue.row_s == row_s


@pytest.mark.parametrize(("waiting", "room"), [(0, 5), (1, 4), (4, 1), (5, 0), (6, 0)])
def test_streams_may_fill_half_of_it(waiting, room):
    filled = FilledQueue(capacity=10)
    filled.put(FakeCaller(), *range(waiting))
    assert filled.queue.room_for_streams == room


def test_addresses_that_have_nothing_waiting_are_forgotten(filled):
    """Also if the queue is never empty."""
    filled.put(FakeCaller("stays"), *range(40))
    for number in range(1000):
        caller = FakeCaller(f"address {number}")
        filled.put(caller, 1, 2)
        if number % 3 == 0:
            caller.leave(1, 2)
            filled.queue.sweep(0.0)
        elif number % 3 == 1:
            filled.queue.forget(caller)
        else:
            while filled.queue.streams_of(caller):
                filled.take(16)
                filled.put(FakeCaller("stays"), *range(16))
    assert filled.queue.num_rows > 0
    assert len(filled.queue._addresses) == 1


# Connections that close


def test_closed_connection_has_nothing_waiting(filled):
    closed, other = FakeCaller(), FakeCaller()
    filled.put(closed, 1, 3, num_images=5)
    filled.put(other, 2, 4)
    filled.queue.forget(closed)
    assert filled.queue.num_rows == 2
    assert not filled.queue.streams_of(closed)
    trace = weakref.ref(closed)
    del closed
    assert trace() is None
    assert filled.take(1) == [2]
    assert filled.take(1) == [4]
    assert is_empty(filled)


@pytest.mark.parametrize("seed", range(20))
def test_every_call_comes_out_once_whatever_happens(seed):
    """Random puts, departures, closed connections and batches, beside a plain list of calls."""
    generator, filled, now_s = random.Random(seed), FilledQueue(), 0.0
    connections = [FakeCaller(address) for address in "aabc"]
    waiting: dict[int, tuple[FakeCaller, int, float]] = {}
    for number in range(2000):
        connection = generator.choice(connections)
        event = generator.random()
        if event < 0.5:
            ids = range(10 * number, 10 * number + generator.randint(1, 5))
            rows, deadline_s = generator.choice([1, 1, 3, 20]), now_s + generator.choice([1, 9])
            filled.put(connection, *ids, num_images=rows, deadline_s=deadline_s)
            waiting |= dict.fromkeys(ids, (connection, rows, deadline_s))
        elif event < 0.6:
            gone = [each for each in connection.streams if generator.random() < 0.5]
            connection.leave(*gone)
            connection.gave_up_s = now_s
            for each in gone:
                del waiting[each]
        elif event < 0.62:
            filled.queue.forget(connection)
            for each in [each for each, (owner, *_) in waiting.items() if owner is connection]:
                del waiting[each], connection.streams[each]
        else:
            size = generator.choice([1, 8, 64])
            run, late = filled.take_all(size, now_s)
            assert all(waiting[each][2] <= now_s for each in late)
            assert all(waiting[each][2] > now_s for each in run)
            assert sum(waiting[each][1] for each in run) <= size or len(run) == 1
            for each in (*run, *late):
                del waiting[each]
            now_s += 0.1
        if event < 0.05:
            swept: Any = filled.queue.sweep(now_s)
            for group in swept:
                for each in group.streams:
                    assert waiting.pop(each)[2] <= now_s
                    del group.caller.streams[each]
            assert filled.queue.num_rows == sum(rows for _, rows, _ in waiting.values())
        owned = {each for one in connections for each in filled.queue.streams_of(one)}
        assert set(waiting) <= owned
        assert filled.queue.num_rows >= sum(rows for _, rows, _ in waiting.values())
    while filled.queue.num_rows:
        run, late = filled.take_all(64, now_s)
        for each in (*run, *late):
            del waiting[each]
    assert not waiting


def test_oldest_is_when_the_first_came_into_an_empty_queue(filled):
    connection = FakeCaller()
    filled.put(connection, 1, arrived_s=1.0)
    filled.put(connection, 3, arrived_s=2.0)
    assert filled.queue.oldest_s == 1.0
    filled.take(8)
    filled.put(connection, 5, arrived_s=3.0)
    assert filled.queue.oldest_s == 3.0


class Waiting:
    """A queue in use, and the calls that wait in it, by caller."""

    ADDRESSES = ("a", "a", "b", "c")

    def __init__(self, draw):
        self.draw, self.number = draw, 0
        self.queue = self.new()
        self.callers = [FakeCaller(address) for address in self.ADDRESSES]
        self.calls = [[] for _ in self.callers]
        """Of each caller: the stream, its rows and its deadline."""

    def new(self):
        queue = Queue(40)
        queue.run_rows, queue.row_s = 8, 0.01
        return queue

    def group(self, at, calls, num_rows, caller=None):
        caller = caller or self.callers[at]
        caller.streams |= dict.fromkeys(stream for stream, _, _ in calls)
        streams: Any = [stream for stream, _, _ in calls]
        encoder: Any = Rows(num_rows)
        sink: Any = None
        deadlines = tuple(deadline_s for _, _, deadline_s in calls)
        return Group(caller, streams, [b""] * len(calls), encoder, sink, 0.0, min(deadlines),
                     deadlines_s=deadlines)  # fmt: skip

    def step(self):
        at = self.draw.randrange(len(self.callers))
        match self.draw.randrange(7):
            case 0 | 1 | 2:
                self.offer(at)
            case 3:
                run, late = self.queue.take(self.draw.choice([1, 8, 64]), 1.0)
                self.over(run, late)
            case 4:
                self.over(self.queue.sweep(self.draw.choice([0.0, 1.0])))
            case 5:
                self.queue.forget(self.callers[at])
                self.callers[at].streams.clear()
                self.calls[at] = []
            case 6 if self.draw.random() < 0.3:
                self.over(self.queue.clear())

    def offer(self, at):
        number, num_rows = self.draw.randrange(1, 6), self.draw.choice([1, 3])
        calls = []
        for _ in range(number):
            self.number += 1
            calls.append((self.number, num_rows, self.draw.choice([0.5, 100.0])))
        group = self.group(at, calls, num_rows)
        taken = self.queue.offer(group, lambda: 0.0, math.inf)
        for stream, _, _ in calls[taken:]:
            del self.callers[at].streams[stream]
        self.calls[at] += calls[:taken]

    def over(self, *taken):
        for group in [group for groups in taken for group in groups]:
            at = self.callers.index(group.caller)
            gone = {*group.streams}
            self.calls[at] = [call for call in self.calls[at] if call[0] not in gone]
            for stream in gone:
                del group.caller.streams[stream]

    def check(self):
        """Its state is that of a new queue with the same calls."""
        fresh, others = self.new(), [FakeCaller(address) for address in self.ADDRESSES]
        for at, calls in enumerate(self.calls):
            for call in calls:
                fresh.put(self.group(at, [call], call[1], others[at]))
        assert self.queue.num_rows == fresh.num_rows
        assert self.queue.room_for_streams == fresh.room_for_streams
        for caller, other in zip(self.callers, others, strict=True):
            assert self.queue.streams_of(caller) == fresh.streams_of(other)
            for left_s in 0.05, 1.0, math.inf:
                assert self.queue.room(caller, left_s) == fresh.room(other, left_s)


@pytest.mark.parametrize("seed", range(30))
def test_state_is_that_of_the_calls_that_wait(seed):
    """Whichever way they came, and whichever others have gone: nothing of these is left."""
    waiting = Waiting(random.Random(seed))
    for _ in range(80):
        waiting.step()
        waiting.check()
