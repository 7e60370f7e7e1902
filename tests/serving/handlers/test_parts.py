"""Calls that are answered in parts, with processes that the test plays itself."""

import numpy as np
import pytest

from serving.errors import DeadlineExceeded, ModelError, Overloaded, Unsupported
from serving.handlers import runners
from serving.handlers.frames import Frame
from tests.serving.handlers import test_pipeline
from tests.serving.handlers.test_pipeline import Call, FakeVersion


@pytest.fixture(autouse=True)
def one_at_a_time(monkeypatch):
    """Ask for no part ahead; `test_parts_ahead.py` has those."""
    monkeypatch.setattr(runners, "_AHEAD", 1)


class Stream(Call):
    """A call that is answered in parts; its reader takes each at once, unless it is slow."""

    in_parts = True

    def __init__(self, *values, is_slow=False, **options):
        super().__init__(*values, **options)
        self.parts, self.is_slow = [], is_slow
        self.resume = lambda: None

    def take_part(self, group, response, resume):
        assert self.outcome is None, "a part behind the end"
        self.parts.append(response)
        self.resume = resume
        if not self.is_slow:
            resume()

    def end_of_parts(self, result):
        return "end"


class World(test_pipeline.World):
    """A pipeline of a handler whose last method is a generator."""

    def __init__(self, *args, **options):
        super().__init__(*args, in_parts=True, **options)

    def stream(self, *values, **options):
        call = Stream(*values, **options)
        assert self.batcher.submit(call.group)
        self.owner.work()
        return call

    def reply(self, kind, *arrays, process=-1, **more):
        """Answer the oldest job of a process; return what it was to do."""
        played = self.processes[process]
        fields, _ = played.sent.popleft()
        has_state = kind == "part"
        outputs = [np.asarray(each) for each in arrays]
        answer = {"kind": kind, "job": fields["job"], "state": has_state, **more}
        played.on_frame(Frame(answer, outputs))
        self.owner.work()
        return fields["kind"], fields["job"]

    def kinds(self, process=-1):
        """What a process is to do, and for which call."""
        return [(fields["kind"], fields["job"]) for fields, _ in self.processes[process].sent]


def test_each_part_is_a_step_and_the_end_comes_behind_the_last():
    world = World()
    call = world.stream(1)
    assert world.reply("part", [10]) == ("job", 1)
    assert call.parts == [[[10]]]
    assert world.reply("part", [20]) == ("next", 1)
    assert world.reply("end") == ("next", 1)
    assert call.parts == [[[10]], [[20]]]
    assert call.outcome == "end"
    assert not world.batcher.is_busy
    assert world.kinds() == []


def test_no_part_at_all_is_an_empty_end():
    world = World()
    call = world.stream(1)
    world.reply("end")
    assert (call.parts, call.outcome) == ([], "end")


def test_call_of_one_answer_is_refused_and_never_begun():
    world, call = World(), Call(1)
    assert world.batcher.submit(call.group) == 1
    assert isinstance(call.outcome, Unsupported)
    assert (world.batcher.num_waiting, world.batcher.is_busy) == (0, False)


def test_generators_of_a_process_take_turns_and_new_calls_begin_first():
    world = World()
    world.stream(1)
    assert world.kinds() == [("job", 1)]
    world.stream(2)
    world.reply("part", [0])
    assert world.kinds() == [("job", 2)]
    world.reply("part", [0])
    assert world.kinds() == [("next", 1)]
    world.reply("part", [0])
    assert world.kinds() == [("next", 2)]


def test_no_more_generators_are_open_than_the_handler_says():
    world = World(max_concurrency=2)
    calls = [world.stream(number, is_slow=True) for number in range(3)]
    world.reply("part", [0])
    world.reply("part", [0])
    assert world.kinds() == []  # the readers are slow, and the third call waits
    assert world.batcher.num_waiting == 1
    calls[0].resume()
    world.owner.work()
    world.reply("end")
    assert world.kinds() == [("job", 3)]


def test_generators_are_shared_out_among_processes():
    world = World(num_processes=2)
    for number in range(4):
        world.stream(number, is_slow=True)
        for process in range(2):
            while world.kinds(process):
                world.reply("part", [0], process=process)
    assert [len(slot.open) for slot in world.batcher._runners.slots] == [2, 2]


def test_slow_reader_holds_back_his_own_alone():
    world = World()
    slow, fast = world.stream(1, is_slow=True), world.stream(2)
    world.reply("part", [0])
    for number in range(5):
        world.reply("part", [number])
    assert len(slow.parts) == 1
    assert len(fast.parts) == 5
    world.tick(100.0)  # a reader's time is no step's
    assert world.processes[0].is_over  # the step of the other one is
    assert isinstance(slow.outcome, ModelError)


def test_paused_generator_has_no_limit_of_time():
    world = World()
    slow = world.stream(1, is_slow=True)
    world.reply("part", [0])
    world.tick(100.0)
    assert not world.processes[0].is_over
    slow.resume()
    world.owner.work()
    world.reply("end")
    assert slow.outcome == "end"


def test_error_comes_behind_the_parts():
    world = World()
    call = world.stream(1)
    world.reply("part", [10])
    world.reply("failed", text="Traceback")
    assert call.parts == [[[10]]]
    assert isinstance(call.outcome, ModelError)
    assert world.kinds() == []  # the process has closed the generator itself


@pytest.mark.parametrize("is_at_work", [True, False])
def test_crash_is_an_error_behind_the_parts_and_never_a_second_begin(is_at_work):
    world = World()
    call = world.stream(1, is_slow=not is_at_work)
    world.reply("part", [10])
    world.crash()
    assert call.parts == [[[10]]]
    assert isinstance(call.outcome, ModelError)
    assert world.kinds(process=1) == []


@pytest.mark.parametrize("how", ["leaves", "is late"])
@pytest.mark.parametrize("is_slow", [True, False])
def test_generator_of_a_caller_who_leaves_or_is_late_is_dropped(how, is_slow):
    world = World()
    call = world.stream(1, is_slow=is_slow, deadline_s=1.0)
    world.reply("part", [10])
    if how == "leaves":
        call.caller.leave(call.stream)
        call.resume()
    else:
        world.tick(1.5)
    if not is_slow:  # it is in its step
        world.reply("part", [20])
    assert call.parts == [[[10]]]
    assert world.kinds() == [("drop", 1)]
    assert isinstance(call.outcome, DeadlineExceeded) == (how == "is late")
    assert not world.batcher.is_busy


def test_step_that_takes_too_long_ends_the_process():
    world = World()
    call = world.stream(1)
    world.reply("part", [10])
    world.tick(1.5)
    assert not world.processes[0].is_over
    world.tick(1.0)
    assert world.processes[0].is_over
    assert isinstance(call.outcome, DeadlineExceeded)


def test_parts_come_from_the_process_that_has_the_state():
    world = World(("preprocess", "postprocess"), FakeVersion(), num_processes=2)
    call = world.stream(3)
    world.processes[0].answer(state=True)
    world.owner.work()
    assert world.reply("part", [1], process=0) == ("job", 1)
    assert world.reply("end", process=0) == ("next", 1)
    assert (call.parts, call.outcome) == ([[[1]]], "end")


def test_call_that_takes_one_answer_is_refused():
    world = World()
    call = world.call(1)
    assert isinstance(call.outcome, Unsupported)
    assert "h answers in parts: call ModelStreamInfer" in str(call.outcome)


def test_times_of_a_stream_stay_few():
    world = World()
    world.stream(1)
    for _ in range(50):
        world.reply("part", [0])
    (joined,) = world.batcher._open.values()
    assert len(joined.times) == 1


def test_parts_are_counted_with_the_time_to_the_first_and_between():
    world = World()
    world.clock.advance(1.0)
    call = world.stream(1)
    world.reply("part", [0])
    for _ in range(2):
        world.clock.advance(0.25)
        world.reply("part", [0])
    world.reply("end")
    counts = world.metrics.snapshot().models["h", "1"]
    assert len(call.parts) == 3
    assert (sum(counts.first_part_s.counts), counts.first_part_s.sum) == (1, world.clock() - 0.5)
    assert (sum(counts.part_gap_s.counts), counts.part_gap_s.sum) == (2, 0.5)


def test_part_for_which_there_is_no_room_ends_the_call():
    world = World()
    call = world.stream(1)
    world.reply("part", [0])

    def refuse(group, response, resume):
        raise Overloaded()

    call.take_part = refuse
    world.reply("part", [1])
    assert isinstance(call.outcome, Overloaded)
    assert world.kinds() == [("drop", 1)]


@pytest.mark.parametrize("error", [Overloaded("no room"), RuntimeError("ours")])
def test_part_that_can_not_be_given_ends_the_call_with_those_that_are_ahead(
    error, monkeypatch, caplog
):
    """At once: else its reader would be given parts behind the one that is missing."""
    monkeypatch.setattr(runners, "_AHEAD", 8)
    world = World()
    call = world.stream(1, is_slow=True)
    world.reply("part", [0])
    for value in (1, 2):
        world.reply("part", [value])
    (joined,) = world.batcher._open.values()
    assert len(joined.ahead) == 2

    def refuse(result, at, number):
        raise error

    call.encode = refuse
    call.resume()
    assert isinstance(call.outcome, Overloaded if isinstance(error, Overloaded) else ModelError)
    assert call.parts == [[[0]]]
    assert [*joined.ahead] == []
    assert ("a call could not be answered" in caplog.text) == isinstance(error, RuntimeError)


def test_stream_waits_for_its_process_once_at_a_time():
    world = World()
    call = world.stream(1, is_slow=True)
    world.reply("part", [0])
    (joined,) = world.batcher._open.values()
    (slot,) = world.batcher._runners.slots
    assert (joined.is_taken, joined.is_in_line, len(slot.parts)) == (False, False, 0)
    call.resume()
    assert (joined.is_taken, joined.is_in_line, len(slot.parts)) == (True, True, 1)
    call.resume()
    assert len(slot.parts) == 1
    world.owner.work()
    assert (joined.is_in_line, len(slot.parts), world.kinds()) == (False, 0, [("next", 1)])
    assert world.processes[0].sent[0][0] == {
        "kind": "next", "job": 1, "phase": "predict", "rows": 1, "max_s": 2.0,
        "max_bytes": test_pipeline.SMALL.max_response_bytes,
    }  # fmt: skip
