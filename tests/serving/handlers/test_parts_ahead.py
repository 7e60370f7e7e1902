"""Parts that are asked for ahead, so that none costs a way to the process and back."""

import numpy as np
import pytest

from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, Overloaded
from tests.serving.handlers import test_parts
from tests.serving.handlers.test_many_at_a_time import Playing

AHEAD = 8


class World(Playing, test_parts.World):
    """A pipeline of a handler whose last method is a generator."""

    def part(self, job, value):
        self.end(job, [value], kind="part")


def nexts(*numbers):
    return [("next", number) for number in numbers]


def test_reader_who_has_to_take_a_part_has_some_ahead_and_no_more():
    world = World()
    call = world.stream(1, is_slow=True)
    world.kinds()
    world.part(1, 0)
    assert world.kinds() == nexts(*[1] * (AHEAD - 1))
    for value in range(1, AHEAD):
        world.part(1, value)
    assert world.kinds() == []
    assert call.parts == [[[0]]]
    call.resume()
    world.owner.work()
    assert call.parts == [[[0]], [[1]]]
    assert world.kinds() == nexts(1)


def test_end_comes_behind_the_parts_that_the_reader_has_to_take():
    world = World()
    call = world.stream(1, is_slow=True)
    world.part(1, 0)
    world.part(1, 1)
    world.end(1, kind="end")
    assert call.outcome is None
    (slot,) = world.batcher._runners.slots
    assert (slot.jobs, slot.num_steps, slot.open, slot.states) == ({}, 0, set(), {})
    call.resume()
    assert (call.parts, call.outcome) == ([[[0]], [[1]]], None)
    call.resume()
    assert call.outcome == "end"
    world.owner.work()
    assert not world.batcher.is_busy
    assert world.batcher._open == {}


@pytest.mark.parametrize("how", ["failed", "error", "crash"])
def test_error_comes_behind_the_parts_that_the_reader_has_to_take(how):
    world = World()
    call = world.stream(1, is_slow=True)
    world.part(1, 0)
    world.part(1, 1)
    if how == "crash":
        world.crash()
    else:
        world.end(1, kind=how, error="InvalidRequest", text="no")
    call.resume()
    assert (call.parts, call.outcome) == ([[[0]], [[1]]], None)
    call.resume()
    assert isinstance(call.outcome, InvalidRequest if how == "error" else ModelError)
    world.owner.work()
    assert world.batcher._open == {}


def test_generators_take_turns_and_a_process_has_few_steps_ahead():
    world = World()
    world.stream(1, is_slow=True)
    world.part(1, 0)
    world.stream(2, is_slow=True)
    assert world.kinds() == [("job", 1), *nexts(*[1] * (AHEAD - 1))]  # the new one waits for these
    for value in range(1, AHEAD):
        world.part(1, value)
    assert world.kinds() == [("job", 2)]
    calls = world.stream(3, is_slow=True), world.stream(4, is_slow=True)
    world.part(2, 0)
    assert world.kinds() == [("job", 3)]
    world.part(3, 0)
    assert world.kinds() == [("job", 4), *nexts(2, 3, 2, 3, 2, 3, 2)]
    world.part(4, 0)
    assert world.kinds() == nexts(3)
    world.part(2, 1)
    assert world.kinds() == nexts(2)
    world.part(3, 1)
    assert world.kinds() == nexts(4)
    assert [len(call.parts) for call in calls] == [1, 1]


def test_call_that_is_new_begins_before_further_parts():
    world = World()
    first = world.stream(1)
    world.part(1, 0)
    assert len(world.kinds()) == 1 + AHEAD
    world.stream(2)
    for value in range(1, AHEAD):
        world.part(1, value)
    assert world.kinds() == []
    world.part(1, AHEAD)
    assert world.kinds() == [("job", 2), *nexts(*[1] * (AHEAD - 1))]
    assert [part[0][0] for part in first.parts] == [*range(AHEAD + 1)]


def test_large_parts_are_made_one_at_a_time():
    world = World()
    call = world.stream(1, is_slow=True)
    world.kinds()
    world.end(1, np.zeros((1, 4096), np.int64), kind="part")
    assert world.kinds() == []
    call.resume()
    world.owner.work()
    assert world.kinds() == nexts(1)


@pytest.mark.parametrize("how", ["leaves", "is late"])
def test_steps_of_a_caller_who_leaves_or_is_late_are_dropped_at_once(how):
    world = World()
    call = world.stream(1, deadline_s=1.0)
    world.part(1, 0)
    world.kinds()
    if how == "leaves":
        call.caller.leave(call.stream)
        world.part(1, 1)
    else:
        world.tick(1.5)
    assert world.kinds() == [("drop", 1)]
    other = world.stream(2)
    assert world.kinds() == []
    world.part(1, 2)  # it was on its way
    world.end(1, kind="failed", text="dropped")
    assert world.kinds() == [("job", 2)]
    world.end(2, kind="end")
    assert len(call.parts) == 1
    assert isinstance(call.outcome, DeadlineExceeded) == (how == "is late")
    assert other.outcome == "end"
    assert world.batcher._open == {}


def test_drop_that_crosses_all_steps_frees_the_process():
    world = World()
    call = world.stream(1, is_slow=True)
    world.part(1, 0)
    world.kinds()
    call.caller.leave(call.stream)
    world.tick(0.2)
    for value in range(1, AHEAD):
        world.part(1, value)
    assert world.kinds() == [("drop", 1), ("drop", 1)]
    (slot,) = world.batcher._runners.slots
    assert (slot.jobs, slot.num_steps, slot.open, slot.states) == ({}, 0, set(), {})
    assert world.batcher._open == {}


def test_reader_who_is_late_for_parts_that_wait_has_his_deadline():
    world = World()
    call = world.stream(1, is_slow=True, deadline_s=1.0)
    world.part(1, 0)
    world.part(1, 1)
    world.end(1, kind="end")
    world.tick(1.5)
    assert isinstance(call.outcome, DeadlineExceeded)
    call.resume()
    assert world.batcher._open == {}


def test_step_behind_others_has_all_its_time():
    world = World()
    world.stream(1, is_slow=True)
    other = world.stream(2, is_slow=True)
    world.part(1, 0)
    world.part(2, 0)
    kinds = [each for each in world.kinds() if each[0] == "next"]
    assert kinds[:3] == nexts(1, 1, 1)  # they were ahead before the other one had begun
    for value in range(1, AHEAD):  # each takes most of its time
        world.tick(1.5)
        assert not world.processes[0].is_over
        world.part(1, value)
    world.tick(2.5)
    assert world.processes[0].is_over
    assert isinstance(other.outcome, DeadlineExceeded)


def test_task_that_takes_too_long_fails_behind_its_parts_and_makes_no_further_one():
    world = World(is_async=True)
    call = world.stream(1, is_slow=True)
    world.part(1, 0)
    world.part(1, 1)
    world.kinds()
    world.tick(2.5)
    world.tick(0.2)
    assert world.kinds() == [("drop", 1)]
    call.resume()
    world.owner.work()
    assert (call.parts, call.outcome) == ([[[0]], [[1]]], None)
    assert world.kinds() == []
    world.end(1, kind="failed", text="cancelled")
    call.resume()
    assert isinstance(call.outcome, DeadlineExceeded)
    world.owner.work()
    assert world.batcher._open == {}


def test_crash_is_the_new_calls_own_and_ends_streams_behind_their_parts():
    world = World()
    streams = [world.stream(number, is_slow=True) for number in (1, 2)]
    world.part(1, 0)
    assert world.kinds() == [("job", 1), ("job", 2), *nexts(*[1] * (AHEAD - 1))]
    world.crash()
    assert str(streams[1].outcome) == "the handler's process has ended on this request"
    assert streams[0].parts == [[[0]]]
    assert str(streams[0].outcome) == "the handler's process has ended"
    assert world.kinds() == []


def test_part_for_which_there_is_no_room_ends_the_call_with_those_that_wait():
    world = World()
    call = world.stream(1, is_slow=True)
    world.part(1, 0)
    world.part(1, 1)
    world.part(1, 2)

    def refuse(group, response, resume):
        raise Overloaded()

    call.take_part = refuse
    call.resume()
    assert isinstance(call.outcome, Overloaded)
    world.tick(0.2)
    assert world.kinds()[-1] == ("drop", 1)
    world.end(1, kind="failed", text="dropped")
    assert world.batcher._open == {}
