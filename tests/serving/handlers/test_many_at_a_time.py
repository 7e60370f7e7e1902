"""Calls of a handler with `async def`: many in a process, with processes that the test plays."""

from typing import Any

import numpy as np
import pytest

from serving.errors import DeadlineExceeded, ModelError
from serving.handlers.frames import Frame
from tests.serving.handlers import test_parts, test_pipeline
from tests.serving.handlers.test_parts import one_at_a_time
from tests.serving.handlers.test_pipeline import FakeVersion

__all__ = ["one_at_a_time"]  # a fixture


class Playing:
    """Answers of processes, by the numbers of jobs."""

    processes: list[Any]
    owner: Any

    def kinds(self, process=-1):
        """What a process is to do, and for which call; forgotten once they are seen."""
        sent = self.processes[process].sent
        found = [(fields["kind"], fields["job"]) for fields, _ in sent]
        sent.clear()
        return found

    def end(self, job, *arrays, process=-1, kind="done", **more):
        """End a job of a process."""
        fields = {"kind": kind, "job": job, "state": kind == "part", **more}
        outputs = [np.asarray(each) for each in arrays]
        self.processes[process].on_frame(Frame(fields, outputs))
        self.owner.work()

    def block(self, job, process=-1):
        self.processes[process].on_frame(
            Frame({"kind": "blocked", "job": job, "text": "film.py:7 in predict"}, [])
        )
        self.owner.work()


class World(Playing, test_pipeline.World):
    """A pipeline of a handler with `async def`."""

    def __init__(self, *args, max_concurrency=4, **options):
        super().__init__(*args, is_async=True, max_concurrency=max_concurrency, **options)


class Parts(Playing, test_parts.World):
    """A pipeline of a handler whose last method is `async def` with `yield`."""

    def __init__(self, *args, max_concurrency=4, **options):
        super().__init__(*args, is_async=True, max_concurrency=max_concurrency, **options)


def jobs(*numbers):
    return [("job", number) for number in numbers]


def test_process_gets_as_many_calls_as_the_handler_says_and_ends_them_in_any_order():
    world = World(max_concurrency=3)
    calls = [world.call(number) for number in range(4)]
    assert world.kinds() == jobs(1, 2, 3)
    assert world.batcher.num_waiting == 1
    world.end(2, [20])
    assert world.kinds() == jobs(4)
    for number in (4, 1, 3):
        world.end(number, [10 * number])
    assert [call.outcome for call in calls] == [[[10]], [[20]], [[30]], [[40]]]
    assert not world.batcher.is_busy


def test_calls_are_shared_out_among_processes():
    world = World(num_processes=2)
    for number in range(6):
        world.call(number)
    assert [len(world.kinds(process)) for process in range(2)] == [3, 3]


def test_default_of_64_is_more_than_joined_calls_of_others():
    world = World(max_concurrency=64)
    for number in range(8):
        for caller in range(8):
            world.call(number, caller)
    assert len(world.kinds()) == 64


def test_rows_of_several_calls_go_together_though_others_are_in_hand():
    world = World(batching=True)
    first = world.call(1)
    assert world.kinds() == jobs(1)
    calls = [test_pipeline.Call(number) for number in (2, 3)]
    for call in calls:
        assert world.batcher.submit(call.group)
    world.owner.work()
    ((fields, arrays),) = world.processes[0].sent
    assert (fields["rows"], arrays[0].tolist()) == (2, [2, 3])
    world.end(2, [20, 30])
    world.end(1, [10])
    assert [each.outcome for each in (first, *calls)] == [[[10]], [[20]], [[30]]]


@pytest.mark.parametrize("how", ["leaves", "is late"])
def test_task_of_a_caller_who_leaves_or_is_late_is_cancelled_once(how):
    world = World(max_concurrency=2)
    call, other = world.call(1, deadline_s=1.0), world.call(2)
    assert world.kinds() == jobs(1, 2)
    if how == "leaves":
        call.caller.leave(call.stream)
    world.tick(1.5)
    world.tick(0.2)
    assert world.kinds() == [("drop", 1)]
    assert isinstance(call.outcome, DeadlineExceeded) == (how == "is late")
    third = world.call(3)
    assert world.kinds() == []  # its task has not ended
    world.end(1, kind="failed", text="cancelled")
    assert world.kinds() == jobs(3)
    world.end(2, [20])
    world.end(3, [30])
    assert (other.outcome, third.outcome) == ([[20]], [[30]])
    assert not world.processes[0].is_over
    assert not world.batcher.is_busy


def test_answer_that_crosses_the_cancelling_is_dropped():
    world = World()
    call = world.call(1, deadline_s=1.0)
    world.tick(1.5)
    world.end(1, [10])
    assert isinstance(call.outcome, DeadlineExceeded)
    assert world.kinds() == [*jobs(1), ("drop", 1)]
    assert world.batcher._open == {}


def test_task_that_takes_too_long_is_cancelled_and_others_go_on():
    world = World()
    slow = world.call(1)
    world.clock.advance(1.5)
    other = world.call(2)
    world.tick(1.0)
    assert isinstance(slow.outcome, DeadlineExceeded)
    assert "takes more than 2 s" in str(slow.outcome)
    assert world.kinds() == [*jobs(1, 2), ("drop", 1)]
    world.end(1, kind="failed", text="cancelled")
    world.end(2, [20])
    assert other.outcome == [[20]]
    assert not world.processes[0].is_over
    assert not world.batcher.is_busy


def test_joined_calls_that_take_too_long_are_tried_once_more_alone():
    world = World(batching=True)
    world.call(0)
    calls = [test_pipeline.Call(number) for number in (1, 2)]
    for call in calls:
        world.batcher.submit(call.group)
    world.owner.work()
    world.end(1, [0])
    assert world.kinds() == jobs(1, 2)
    world.tick(2.5)
    assert world.kinds() == [("drop", 2), *jobs(3, 4)]
    world.end(2, kind="failed", text="cancelled")
    world.end(3, [10])
    world.tick(2.5)
    assert calls[0].outcome == [[10]]
    assert isinstance(calls[1].outcome, DeadlineExceeded)


def test_task_that_does_not_end_when_it_is_cancelled_ends_its_process(caplog):
    world = World()
    slow = world.call(1)
    world.tick(2.5)
    world.tick(4.0)
    lasts_s = world.clock() - world.batcher.oldest_run_s
    assert 2.0 < lasts_s < world.batcher.max_run_s  # so the model is not said to be stuck
    other, third = world.call(2), world.call(3)
    world.end(2, [20])
    assert not world.processes[0].is_over
    world.tick(1.0)
    assert world.processes[0].is_over
    assert "and does not end when it is cancelled" in caplog.text
    assert isinstance(slow.outcome, DeadlineExceeded)
    assert other.outcome == [[20]]
    assert world.kinds() == jobs(4)  # the third one, once more
    world.end(4, [30])
    assert third.outcome == [[30]]


def test_crash_costs_the_call_alone_that_ends_two_processes():
    world = World()
    calls = [world.call(number) for number in range(3)]
    assert world.kinds() == jobs(1, 2, 3)
    world.crash()
    assert world.kinds() == jobs(4)
    new = world.call(9)
    assert world.kinds() == []  # the suspect is alone in its process
    world.end(4, [0])
    assert world.kinds() == jobs(5)
    world.crash()
    assert isinstance(calls[1].outcome, ModelError)
    assert world.kinds() == jobs(6)
    world.end(6, [20])
    assert world.kinds() == jobs(7)
    world.end(7, [90])
    assert [each.outcome for each in (calls[0], calls[2], new)] == [[[0]], [[20]], [[90]]]
    assert not world.batcher.is_busy


def test_only_call_of_a_process_that_crashes_is_not_tried_again():
    world = World()
    call = world.call(1)
    world.crash()
    assert isinstance(call.outcome, ModelError)
    assert world.kinds() == []


def test_suspect_gets_a_process_alone_though_others_are_never_idle():
    """New calls go to the other process until the one that does least has nothing to do."""
    world = World(num_processes=2, max_concurrency=2)
    for number in range(4):
        world.call(number)
    first, second = world.kinds(0), world.kinds(1)
    assert len(first) == len(second) == 2
    world.held = []  # what has crashed does not come back for now
    world.crash(process=0)
    assert world.kinds(1) == []
    waiting = [world.call(number) for number in range(10, 14)]
    world.end(second[0][1], [0], process=1)
    assert world.kinds(1) == []
    world.end(second[1][1], [0], process=1)
    (suspect,) = world.kinds(1)
    world.end(suspect[1], [0], process=1)
    (suspect,) = world.kinds(1)
    world.end(suspect[1], [0], process=1)
    assert len(world.kinds(1)) == 2
    assert all(call.outcome is None for call in waiting)


def test_calls_that_only_wait_while_a_loop_is_blocked_begin_once_more(caplog):
    world = World()
    calls = [world.call(number) for number in range(3)]
    world.block(2)
    assert world.processes[0].is_over
    assert "blocks its event loop: film.py:7 in predict" in caplog.text
    assert isinstance(calls[1].outcome, DeadlineExceeded)
    assert "film.py" not in str(calls[1].outcome)
    assert world.kinds() == jobs(4, 5)  # both at once: they are no suspects
    world.end(4, [0])
    world.end(5, [20])
    assert (calls[0].outcome, calls[2].outcome) == ([[0]], [[20]])
    assert not world.batcher.is_busy


@pytest.mark.parametrize("job", [0, 77])
def test_calls_of_a_loop_that_is_blocked_by_nobody_known_go_alone(job):
    world = World()
    calls = [world.call(number) for number in range(2)]
    world.kinds()
    world.block(job)
    assert world.kinds() == jobs(3)
    world.end(3, [0])
    assert world.kinds() == jobs(4)
    world.block(4)
    assert calls[0].outcome == [[0]]
    assert isinstance(calls[1].outcome, DeadlineExceeded)


def test_call_whose_loop_others_block_twice_fails():
    world = World()
    call = world.call(0)
    for number in (2, 4):
        world.call(1)
        world.block(number)
    assert str(call.outcome) == "the handler's process has ended"
    assert not world.batcher.is_busy


def test_state_of_a_suspect_waits_until_its_process_is_idle():
    world = World(("preprocess", "postprocess"), FakeVersion())
    calls = [world.call(number) for number in (1, 2)]
    world.crash()
    assert world.kinds() == jobs(3)
    world.end(3, [1], state=True)
    world.owner.work()
    while any(call.outcome is None for call in calls):
        ((kind, number),) = world.kinds()  # never two at a time
        assert kind == "job"
        world.end(number, [number])
    assert not world.batcher.is_busy


def test_drain_and_refusal_let_calls_in_hand_end():
    world = World()
    calls = [world.call(number) for number in range(2)]
    world.batcher.refuse(ModelError("the version has gone"))
    assert world.batcher.is_busy
    world.end(2, [20])
    assert world.batcher.is_busy
    world.end(1, [10])
    assert [call.outcome for call in calls] == [[[10]], [[20]]]
    assert not world.batcher.is_busy


def test_streams_of_a_process_are_stepped_at_once_and_as_many_as_the_handler_says():
    world = Parts(max_concurrency=2)
    calls = [world.stream(number, is_slow=True) for number in range(3)]
    assert world.kinds() == jobs(1, 2)
    world.end(2, [20], kind="part")
    assert world.kinds() == []  # its generator is open
    calls[1].resume()
    world.owner.work()
    assert world.kinds() == [("next", 2)]
    world.end(1, [10], kind="part")
    world.end(2, kind="end")
    assert world.kinds() == jobs(3)
    assert [call.parts for call in calls] == [[[[10]]], [[[20]]], []]
    assert calls[1].outcome == "end"


def test_crash_ends_streams_behind_their_parts_and_begins_those_without_once_more():
    world = Parts()
    calls = [world.stream(number, is_slow=True) for number in range(3)]
    world.kinds()
    world.end(1, [10], kind="part")
    calls[0].resume()
    world.end(2, [20], kind="part")
    world.crash()
    assert [type(call.outcome) for call in calls] == [ModelError, ModelError, type(None)]
    assert world.kinds() == jobs(4)
    world.end(4, [30], kind="part")
    other = world.stream(9)
    assert world.kinds() == jobs(5)  # with a part it is no suspect any more
    world.end(5, kind="end")
    calls[2].resume()
    world.owner.work()
    world.end(4, kind="end")
    assert (calls[2].outcome, other.outcome) == ("end", "end")


def test_stream_that_is_left_in_its_step_is_cancelled_and_closed_if_a_part_crosses():
    world = Parts()
    call = world.stream(1)
    world.kinds()
    world.end(1, [10], kind="part")
    assert world.kinds() == [("next", 1)]
    call.caller.leave(call.stream)
    world.tick(0.2)
    assert world.kinds() == [("drop", 1)]
    world.end(1, [20], kind="part")
    assert world.kinds() == [("drop", 1)]
    (slot,) = world.batcher._runners.slots
    assert (slot.states, slot.open, slot.cancelled) == ({}, set(), set())
    assert call.parts == [[[10]]]
    assert world.batcher._open == {}


def test_state_that_comes_behind_the_limit_of_time_is_dropped():
    world = World(("preprocess", "postprocess"), FakeVersion())
    call = world.call(1)
    world.tick(2.5)
    assert isinstance(call.outcome, DeadlineExceeded)
    assert world.kinds() == [*jobs(1), ("drop", 1)]
    world.end(1, [1], state=True)
    assert world.kinds() == [("drop", 1)]
    (slot,) = world.batcher._runners.slots
    assert slot.states == {}
    assert world.batcher._open == {}


def test_task_that_waits_for_another_model_is_cancelled_and_gets_no_error():
    other = test_pipeline.World()
    world = World(find=lambda name: (other.batcher, test_pipeline.TENSORS))
    world.call(1, deadline_s=1.0)
    world.processes[0].ask(7, 5)
    other.owner.work()
    world.tick(1.5)
    assert [kind for kind, _ in world.kinds()] == ["job", "drop"]
    world.processes[0].on_frame(Frame({"kind": "leave", "request": 7}, []))
    world.end(1, kind="failed", text="cancelled")
    (slot,) = world.batcher._runners.slots
    assert slot.asked == {}
    assert world.batcher._open == {}
