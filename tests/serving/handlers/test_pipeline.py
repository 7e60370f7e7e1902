"""The queue of a handler and its processes, with processes that the test plays itself."""

from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import serving
from serving.batching.batcher import Batcher
from serving.batching.layout import Layout, Piece
from serving.batching.run import Group, ResponseEncoder, Result
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, Overloaded, Unavailable
from serving.handlers.frames import Frame
from serving.handlers.kinds import Array
from serving.handlers.pipeline import HandlerRuntime, Pipeline
from serving.handlers.signature import HandlerSignature
from serving.telemetry.metrics import Metrics
from serving.tensors import Tensor, TensorSignature
from tests.support.fakes import FakeCaller, FakeClock, FakeOwner

NUMBERS = {"x": Array("int64")}
TENSORS = TensorSignature(
    (Tensor("x", "INT64", (-1,)),), (Tensor("x", "INT64", (-1,)),), is_batchable=True
)
START_S = 0.5
"""How long the start of a process takes, as it says."""
SMALL = BatchingConfig(max_batch_size=8, queue_capacity=16, max_request_rows=8, max_handler_s=2.0)


class Played:
    """A process that the test plays."""

    def __init__(self):
        self.start_s, self.memory_bytes = START_S, 0
        self.sent = deque()
        self.is_over = False

    def attach(self, owner, on_frame, on_end):
        self.on_frame, self.on_end = on_frame, on_end

    def send(self, fields, arrays=()):
        self.sent.append((fields, [*arrays]))

    def kill(self):
        self.is_over = True

    close = kill

    def answer(self, *arrays, kind="done", state=False, **more):
        """Answer the oldest job that was not answered."""
        fields, found = self.sent.popleft()
        assert fields["kind"] == "job", fields
        outputs = [np.asarray(each) for each in arrays] or found
        self.on_frame(Frame({"kind": kind, "job": fields["job"], "state": state, **more}, outputs))

    def ask(self, number, *values):
        """Ask another model, for the oldest job that was not answered."""
        fields = {
            "kind": "infer",
            "job": self.sent[0][0]["job"],
            "request": number,
            "name": "other",
        }
        self.on_frame(Frame({**fields, "names": ["x"]}, [np.array(values)]))

    @property
    def replies(self):
        """The replies to what it has asked; they are forgotten."""
        found = [each for each in self.sent if each[0]["kind"] == "reply"]
        self.sent = deque(each for each in self.sent if each not in found)
        return [(fields["request"], fields.get("error") or [each.tolist() for each in arrays])
                for fields, arrays in found]  # fmt: skip

    @property
    def jobs(self):
        return [(fields.get("phase", fields["kind"]), [each.tolist() for each in arrays])
                for fields, arrays in self.sent]  # fmt: skip


class World:
    """A batcher, its owner, and its processes."""

    def __init__(
        self, methods=("predict",), network=None, num_processes=1, find=None, pool=None, **options
    ):
        self.clock, self.processes, self.failures = FakeClock(), [], 0
        self.num_blocks = 0
        self.held: list[Any] | None = None
        """Processes whose start goes on; None if they start at once."""
        self.version = network or FakeVersion()
        kinds: dict[str, Any] = dict.fromkeys(("inputs", "outputs"), NUMBERS)
        signature = HandlerSignature(name="H", methods=methods, **{**kinds, **options})
        self.metrics = metrics = Metrics()
        inner = network and Batcher(network, SMALL, metrics, name="h", counts_calls=False)
        parts = HandlerRuntime(
            signature, inner, self, tuple, num_processes, find, lambda: pool, self.count_block
        )
        self.batcher = Pipeline(
            ("h", "1"), TENSORS if pool is None else signature.tensors(None), SMALL, metrics, parts
        )
        self.owner = FakeOwner(self.batcher, self.clock)
        self.owner.work()

    def count_block(self):
        self.num_blocks += 1

    def launch(self, post, done):
        """Start a process at once, as a `Launcher` does."""
        if self.failures:
            self.failures -= 1
            post(lambda: done(Unavailable("no process")))
            return

        def start():
            process = Played()
            self.processes.append(process)
            post(lambda: done(process))

        start() if self.held is None else self.held.append(start)

    def call(self, *values, **options):
        request = Call(*values, **options)
        if not self.batcher.submit(request.group):
            request.fail(request.group, Overloaded())
        self.owner.work()
        return request

    def tick(self, seconds=0.0):
        self.clock.advance(seconds)
        self.batcher.tick(self.clock())
        self.owner.work()

    def answer(self, *arrays, process=-1, **options):
        self.processes[process].answer(*arrays, **options)
        self.owner.work()

    def crash(self, process=-1):
        self.processes[process].on_end("SIGKILL")
        self.owner.work()


class FakeVersion:
    """A version whose model doubles numbers."""

    version, signature, tensors = "1", None, TENSORS
    inline_rows, enough_rows = 128, 128

    def __init__(self):
        self.runs = []

    def run(self, feeds):
        self.runs.append(feeds["x"].tolist())
        return [feeds["x"] * 2]

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None


class Call(ResponseEncoder):
    """A call, its encoder and its sink."""

    method = None

    def __init__(self, *values, deadline_s=1e9, parameters=None, caller=None):
        self.num_rows, self.outcome = len(values), None
        self.parameters = parameters or {}
        self.caller = caller or FakeCaller()
        self.stream = object()
        self.caller.streams[self.stream] = self
        message = np.array(values).tobytes()
        streams: Any = [self.stream]
        self.group = Group(self.caller, streams, [message], self, self, 0.0, deadline_s)

    def encode(self, result, at, number):
        return [[each.tolist() for each in result.cut(at, self.num_rows)]]

    def answer(self, group, responses, run):
        self.steps = [step for step, _, _ in run.steps]
        self.settle(responses[0])

    def fail(self, group, error):
        self.settle(error)

    def settle(self, outcome):
        assert self.outcome is None, "a second outcome"
        self.outcome = outcome
        self.caller.streams.pop(self.stream, None)


def test_call_is_a_job_of_a_process():
    world = World()
    call = world.call(1, 2)
    assert world.processes[0].jobs == [("predict", [[1, 2]])]
    world.answer([3, 4])
    assert call.outcome == [[3, 4]]
    assert not world.batcher.is_busy


def test_calls_wait_for_a_free_process_and_each_goes_alone():
    world = World(num_processes=2)
    calls = [world.call(number) for number in range(3)]
    assert [each.jobs for each in world.processes] == [
        [("predict", [[0]])], [("predict", [[1]])]
    ]  # fmt: skip
    assert world.batcher.num_waiting == 1
    world.answer([10], process=1)
    assert calls[1].outcome == [[10]]
    assert world.processes[1].jobs == [("predict", [[2]])]


def test_model_runs_calls_of_several_trips_in_one_batch():
    world = World(("preprocess", "postprocess"), FakeVersion(), num_processes=2)
    first, second = world.call(1), world.call(2)
    for process in world.processes:  # both in one round of the loop
        process.answer()
    world.owner.work()
    assert world.version.runs == [[1, 2]]
    jobs = sorted(each.jobs[0] for each in world.processes)
    assert jobs == [("postprocess", [[2]]), ("postprocess", [[4]])]
    for process in world.processes:
        process.answer([process.jobs[0][1][0][0] + 1])
    world.owner.work()
    assert sorted([first.outcome[0], second.outcome[0]]) == [[3], [5]]
    assert first.steps == ["preprocess", "run", "postprocess"]


def test_state_binds_a_call_to_its_process():
    world = World(("preprocess", "postprocess"), FakeVersion(), num_processes=2)
    first = world.call(1)
    world.answer(process=0, state=True)
    world.call(7)  # the process is busy again, perhaps
    assert ("postprocess", [[2]]) in world.processes[0].jobs
    while first.outcome is None:
        world.answer(process=0)
    assert first.outcome == [[2]]


def test_run_of_the_model_that_goes_on_is_one_of_the_version():
    """Else health would not say that it is stuck."""
    world = World(("preprocess", "postprocess"), FakeVersion())
    assert world.batcher.oldest_run_s == np.inf
    assert world.batcher.max_run_s == SMALL.max_run_s > SMALL.max_handler_s
    world.clock.advance(7.0)
    world.call(1)
    assert world.batcher.oldest_run_s == 7.0
    inside: Any = SimpleNamespace(run=((), 5.0, None))
    world.batcher._network._offloaded.running[1] = inside
    assert world.batcher.oldest_run_s == 5.0


def test_model_without_rows_is_not_run():
    world = World(("preprocess", "postprocess"), FakeVersion())
    world.call(1)
    world.answer(np.empty(0, int))
    assert world.version.runs == []
    assert world.processes[0].jobs == [("postprocess", [[]])]
    assert world.batcher._network.num_waiting == 0
    assert not any(world.batcher._network._queue.clear() for _ in range(2))


def test_calls_that_found_no_room_go_on_once_there_is():
    slow = FakeVersion()
    slow.inline_rows = 0
    world = World(("preprocess",), slow, outputs=None)
    calls = [world.call(number) for number in range(3)]
    others: Any = {-number: None for number in range(1, 40)}
    world.batcher._open.update(others)  # all that may be open
    world.answer()
    assert world.batcher.num_waiting == 2
    for number in others:
        del world.batcher._open[number]
    world.owner.wait(calls[0])
    assert calls[0].outcome == [[0]]
    while not world.processes[0].jobs:
        world.owner.work()
    world.answer()
    world.owner.wait(calls[1])
    assert calls[1].outcome == [[2]]


def test_late_call_is_not_begun():
    world = World()
    world.call(1)
    late = world.call(2, deadline_s=1.0)
    world.tick(1.5)
    assert isinstance(late.outcome, DeadlineExceeded)
    world.answer()
    assert world.processes[0].jobs == []


@pytest.mark.parametrize("has_state", [False, True])
def test_trip_that_became_late_while_it_waited_for_a_process_is_not_worked_on(has_state):
    """Nothing sweeps in between: the process that is free now looks at the deadline itself."""
    world = World(("preprocess", "postprocess"), FakeVersion())
    late, other = world.call(1, deadline_s=1.0), world.call(2)
    world.processes[0].answer(state=has_state)
    world.batcher.turn(world.clock())  # before the model runs: the process takes the other call
    world.owner.work()
    assert world.processes[0].jobs == [("preprocess", [[2]])]
    assert world.version.runs == [[1]]
    world.clock.advance(1.5)
    world.answer()
    assert isinstance(late.outcome, DeadlineExceeded)
    assert world.processes[0].jobs == [("drop", [])] * has_state + [("postprocess", [[4]])]
    world.processes[0].sent.rotate(-has_state)
    world.answer()
    assert other.outcome == [[4]]


def test_calls_that_have_begun_ask_for_no_room_at_the_models_run():
    world = World(("preprocess", "postprocess"), FakeVersion(), num_processes=2)
    calls = [world.call(number) for number in (1, 2)]
    for process in world.processes:  # pages of many crops, more than may wait of new calls
        process.answer(np.arange(12))
    world.owner.work()
    assert len(world.version.runs) == 2
    for process in world.processes:
        process.answer([7])
    world.owner.work()
    assert [call.outcome for call in calls] == [[[7]], [[7]]]


class Refusing(FakeVersion):
    """A model that refuses an 8."""

    def run(self, feeds):
        if 8 in feeds["x"]:
            raise InvalidRequest("not 8")
        return super().run(feeds)


@pytest.mark.parametrize("methods", [("predict",), ("preprocess", "postprocess")])
def test_each_call_and_each_run_of_the_model_is_counted_once(methods):
    network = Refusing() if methods != ("predict",) else None
    world = World(methods, network)
    for number in (1, 2):
        call = world.call(number)
        while call.outcome is None:
            world.answer()
    refused = world.call(8)
    if network is None:
        world.answer(kind="error", error="InvalidRequest", text="not 8")
    else:
        world.answer()
    assert str(refused.outcome) == "not 8"
    world.owner.work()
    counts = world.metrics.snapshot().models["h", "1"]
    assert (sum(counts.runs.values()), counts.num_answered, counts.num_failed) == (2, 2, 1)


class Several(Call):
    """Calls of one caller that come together, in one group; an outcome for each stream."""

    def __init__(self, *values, deadlines_s=None):
        super().__init__(*values)
        self.num_rows, self.outcomes, self.num_answers = 1, {}, 0
        self.caller.streams = dict.fromkeys(values, self)
        messages = [np.array([value]).tobytes() for value in values]
        latest_s = min(deadlines_s or [1e9])
        self.group = Group(
            self.caller, [*values], messages, self, self, 0.0, latest_s, None, deadlines_s
        )

    def encode(self, result, at, number):
        return [result.outputs[0][at + each].item() for each in range(number)]

    def answer(self, group, responses, run):
        self.num_answers += 1
        for stream, response in zip(group.streams, responses, strict=True):
            self.end(stream, response)

    def fail(self, group, error):
        for stream in group.streams:
            self.end(stream, type(error))

    def end(self, stream, outcome):
        assert stream not in self.outcomes, "a second outcome"
        self.outcomes[stream] = outcome
        del self.caller.streams[stream]


def several(world, *values, **options):
    """Submit calls that come together, beside one that is at work."""
    world.call(0)
    calls = Several(*values, **options)
    assert world.batcher.submit(calls.group) == len(values)
    world.answer()
    assert world.processes[0].jobs == [("predict", [[*values]])]
    return calls


def test_calls_that_came_together_stay_together():
    world = World(batching=True)
    calls = several(world, 1, 2, 3)
    world.answer([10, 20, 30])
    assert (calls.outcomes, calls.num_answers) == ({1: 10, 2: 20, 3: 30}, 1)
    assert world.metrics.snapshot().models["h", "1"].num_answered == 4
    assert not world.batcher.is_busy


def test_one_of_calls_that_came_together_leaves_and_one_is_late():
    world = World(batching=True)
    calls = several(world, 1, 2, 3, deadlines_s=[1e9, 1e9, 1.0])
    del calls.caller.streams[1]
    world.tick(1.5)
    world.answer([10, 20, 30])
    assert calls.outcomes == {3: DeadlineExceeded, 2: 20}


def test_one_of_calls_that_came_together_is_malformed():
    world = World(batching=True)
    world.call(0)
    calls = Several(1, 2, 3)
    calls.layout = Layout((Piece(0, 8, np.dtype(np.int64), (1,)),), ((8, b"|"),))
    ends = {1: b"|", 2: b"-", 3: b"|"}
    calls.group.messages = [np.array([value]).tobytes() + end for value, end in ends.items()]
    world.batcher.submit(calls.group)
    world.answer()
    assert calls.outcomes == {2: InvalidRequest}
    assert world.processes[0].jobs == [("predict", [[1, 3]])]
    world.answer([10, 30])
    assert calls.outcomes == {2: InvalidRequest, 1: 10, 3: 30}


@pytest.mark.parametrize("how", ["crash", "refused"])
def test_calls_that_came_together_are_tried_alone_after_a_failure(how):
    world = World(batching=True)
    calls = several(world, 1, 2)
    if how == "crash":
        world.crash()
    else:
        world.answer(kind="error", error="InvalidRequest", text="not 2")
    assert world.processes[-1].jobs == [("predict", [[1]])]
    world.answer([10])
    assert world.processes[-1].jobs == [("predict", [[2]])]
    world.answer(kind="error", error="InvalidRequest", text="not 2")
    assert calls.outcomes == {1: 10, 2: InvalidRequest}


class Pool:
    """The processes that decode pictures, which the test plays."""

    def __init__(self):
        self.futures = []

    def submit(self, owner, function, files):
        self.futures.append((files, Future()))
        return self.futures[-1][1]

    def decode(self, *values):
        """Decode the oldest pictures: each is an image of one pixel."""
        _, future = self.futures.pop(0)
        future.set_result([[np.full((1, 1, 3), value, np.uint8) for value in values]])


def pictures_of(**options):
    """A world whose calls are pictures, and its pool."""
    pool = Pool()
    return World(inputs={"x": serving.Picture()}, pool=pool, **options), pool


def picture(world, *contents, **options):
    """A call of pictures."""
    request = Call(*contents, **options)
    rows = np.empty(len(contents), object)
    rows[:] = contents
    request.group.messages = [(rows,)]
    if not world.batcher.submit(request.group):
        request.fail(request.group, Overloaded())
    world.owner.work()
    return request


def test_pictures_are_decoded_before_a_process_gets_them():
    world, pool = pictures_of()
    call = picture(world, b"one", b"two")
    assert pool.futures[0][0] == [[b"one", b"two"]]
    assert world.processes[0].jobs == []
    pool.decode(1, 2)
    world.owner.work()
    ((fields, (pixels,)),) = world.processes[0].sent
    assert (fields["phase"], [each[0, 0, 0] for each in pixels]) == ("predict", [1, 2])
    world.answer([5, 6])
    assert call.outcome == [[5, 6]]


def test_few_pictures_are_decoded_ahead_of_the_processes_and_the_others_wait():
    world, pool = pictures_of()
    calls = [picture(world, b"%d" % number) for number in range(4)]
    assert (len(pool.futures), world.batcher.num_waiting) == (2, 2)
    for number in range(4):
        pool.decode(number)
        world.owner.work()
        world.answer([number])
    assert [call.outcome for call in calls] == [[[number]] for number in range(4)]


@pytest.mark.parametrize("how", ["late", "left", "refused", "broken", "cancelled"])
def test_pictures_without_pixels_end_their_call_and_no_other(how, caplog):
    world, pool = pictures_of()
    call = picture(world, b"bad", deadline_s=1.0)
    other = picture(world, b"good")
    _, future = pool.futures.pop(0)
    if how == "late":
        world.tick(1.5)
        assert isinstance(call.outcome, DeadlineExceeded)
    elif how == "left":
        call.caller.streams.clear()
    errors = {"refused": InvalidRequest("no picture"), "broken": RuntimeError("ours")}
    if how == "cancelled":
        future.cancel()
        future.set_running_or_notify_cancel()
    elif how in errors:
        future.set_exception(errors[how])
    else:
        future.set_result([[np.zeros((1, 1, 3), np.uint8)]])
    world.owner.work()
    assert world.processes[0].jobs == []
    expected = {"late": DeadlineExceeded, "left": type(None), "refused": InvalidRequest}
    assert type(call.outcome) is expected.get(how, {"broken": ModelError}.get(how, Unavailable))
    assert ("could not be decoded" in caplog.text) == (how == "broken")
    pool.decode(7)
    world.owner.work()
    world.answer([7])
    assert other.outcome == [[7]]
    assert not world.batcher.is_busy


def test_call_that_became_late_while_it_waited_in_the_queue_is_not_worked_on():
    world = World()
    world.call(1)
    late = world.call(2, deadline_s=1.0)
    world.clock.advance(1.5)
    world.answer()
    assert isinstance(late.outcome, DeadlineExceeded)
    assert world.processes[0].jobs == []
    assert not world.batcher.is_busy


@pytest.mark.parametrize("is_late_first", [True, False])
def test_trip_that_is_late_at_the_models_run_is_not_run(is_late_first):
    """It became late while its process worked, or while it waited for the run; nothing sweeps."""
    world = World(("preprocess", "postprocess"), FakeVersion())
    late = world.call(1, deadline_s=1.0)
    world.clock.advance(1.5 * is_late_first)
    world.processes[0].answer(state=True)
    world.clock.advance(1.5)
    world.owner.work()
    assert isinstance(late.outcome, DeadlineExceeded)
    assert world.version.runs == []
    assert world.processes[0].jobs == [("drop", [])]


def test_joined_calls_are_run_until_the_last_of_them_is_late():
    world = World(("preprocess", "postprocess"), FakeVersion(), batching=True)
    world.call(0)
    calls = [world.call(1, deadline_s=1.0), world.call(2)]
    world.answer()
    world.answer()
    world.processes[0].answer()  # both calls' preprocess
    world.clock.advance(1.5)
    world.owner.work()
    world.answer()
    assert isinstance(calls[0].outcome, DeadlineExceeded)
    assert calls[1].outcome == [[4]]


def test_outcome_that_comes_late_is_dropped():
    world = World()
    late = world.call(1, deadline_s=1.0)
    world.clock.advance(1.5)
    world.answer()
    assert isinstance(late.outcome, DeadlineExceeded)


def test_cancelled_call_is_not_begun():
    world = World()
    world.call(1)
    gone = world.call(2)
    gone.caller.streams.clear()
    world.answer()
    assert world.processes[0].jobs == []
    assert gone.outcome is None


def test_running_call_is_abandoned_and_its_outcome_dropped():
    world = World(("preprocess", "postprocess"), FakeVersion())
    late = world.call(1, deadline_s=1.0)
    world.tick(1.5)
    assert isinstance(late.outcome, DeadlineExceeded)
    assert not world.batcher.is_busy
    world.answer(state=True)
    assert world.version.runs == []
    assert world.processes[0].jobs == [("drop", [])]  # the state
    assert not world.processes[0].is_over


def test_caller_that_leaves_during_the_run_has_its_state_dropped():
    world = World(("preprocess", "postprocess"), FakeVersion())
    call = world.call(1)
    call.caller.streams.clear()
    world.answer(state=True)
    world.tick()
    assert ("drop", []) in world.processes[0].jobs


class Other:
    """Another model, which answers when the test says so."""

    version = "3"

    def __init__(self):
        self.groups = []

    def find(self, name):
        return self, TENSORS

    def submit(self, group):
        self.groups.append(group)
        return 1

    def answer(self, at, *values):
        group = self.groups[at]
        result = Result([np.array(values)], len(values), "3", None, 0.0, 0.0)
        group.sink.answer(group, group.encoder.encode(result, 0, 1), (0.0, 0.0, "o", "3", 1))


def test_requests_of_other_models_are_answered_by_their_numbers():
    other = Other()
    world = World(find=other.find)
    call, process = world.call(1), world.processes[0]
    process.ask(7, 10)
    process.ask(8, 20)
    other.answer(1, 40)
    assert process.replies == [(8, [[40]])]
    other.answer(0, 20)
    assert process.replies == [(7, [[20]])]
    world.answer()
    assert call.outcome == [[1]]


@pytest.mark.parametrize("how", ["late", "left"])
def test_process_that_waits_for_a_model_goes_on_when_nobody_waits_for_it(how):
    other = Other()
    world = World(find=other.find)
    call, process = world.call(1, deadline_s=1.0 if how == "late" else 1e9), world.processes[0]
    process.ask(7, 10)
    assert other.groups[0].open_calls() is not None
    if how == "left":
        call.caller.streams.clear()
    world.tick(1.5)
    assert process.replies == [(7, "DeadlineExceeded")]
    assert other.groups[0].open_calls() is None, "the other model runs it for nobody"
    other.answer(0, 20)
    assert process.replies == []
    process.ask(8, 10)  # it goes on all the same
    assert process.replies == [(8, "DeadlineExceeded")]
    assert len(other.groups) == 1
    following = world.call(2)
    world.answer()
    world.answer()
    assert following.outcome == [[2]]


def test_request_of_a_thread_that_its_step_has_left_behind_is_refused():
    other = Other()
    world = World(find=other.find)
    call, process = world.call(1), world.processes[0]
    process.ask(7, 10)
    world.answer()
    assert call.outcome == [[1]]
    assert process.replies == [(7, "DeadlineExceeded")]
    world.call(2)
    other.answer(0, 20)
    assert process.replies == [], "the answer of a call before"


def test_long_call_ends_its_process_and_nobody_elses():
    world = World(num_processes=2)
    hanging = world.call(1)
    world.tick(1.9)
    other = world.call(2)
    world.tick(0.2)
    assert isinstance(hanging.outcome, DeadlineExceeded)
    assert [each.is_over for each in world.processes] == [True, False, False]
    world.answer(process=1)
    assert other.outcome == [[2]]


def test_single_call_is_never_tried_twice():
    world = World()
    call = world.call(1)
    world.crash()
    assert isinstance(call.outcome, ModelError)
    assert len(world.processes) == 2
    assert not world.processes[1].jobs


def test_joined_calls_of_a_crash_are_tried_once_more_alone():
    world = World(batching=True)
    world.call(0)
    calls = [world.call(number) for number in (1, 2, 3)]
    world.answer()
    assert world.processes[0].jobs == [("predict", [[1, 2, 3]])]
    world.crash()
    assert world.processes[1].jobs == [("predict", [[1]])]
    world.answer([10])
    world.crash()  # on the second
    assert isinstance(calls[1].outcome, ModelError)
    world.answer([30])
    assert calls[0].outcome == [[10]]
    assert calls[2].outcome == [[30]]


def test_joined_calls_get_their_rows_even_if_some_leave():
    world = World(batching=True)
    world.call(0)
    calls = [world.call(1), world.call(2, 3), world.call(4)]
    world.answer()
    calls[0].caller.streams.clear()
    world.answer([10, 20, 30, 40])
    assert calls[1].outcome == [[20, 30]]
    assert calls[2].outcome == [[40]]


def test_calls_with_other_parameters_go_apart():
    world = World(batching=True, options=("parameters",))
    world.call(0)
    for number, top in ((1, 1), (2, 2), (3, 1)):
        world.call(number, parameters={"top": top})
    world.answer()
    assert world.processes[0].jobs == [("predict", [[1, 3]])]
    assert world.processes[0].sent[0][0]["options"] == {"parameters": {"top": 1}}
    world.answer()
    assert world.processes[0].jobs == [("predict", [[2]])]


def test_refused_call_of_several_fails_alone():
    world = World(batching=True)
    world.call(0)
    calls = [world.call(1), world.call(2)]
    world.answer()
    world.answer(kind="error", error="InvalidRequest", text="not 1")
    world.answer(kind="error", error="InvalidRequest", text="not 1")
    assert isinstance(calls[0].outcome, InvalidRequest)
    world.answer()
    assert calls[1].outcome == [[2]]


def test_calls_beside_a_crash_go_alone_and_one_at_a_time_beside_others():
    world = World(batching=True, num_processes=2)
    world.call(0)
    world.answer(process=0)
    calls = [world.call(number, caller=FakeCaller()) for number in (1, 2)]
    assert [len(each.jobs) for each in world.processes] == [1, 1]
    joined = [world.call(number) for number in (3, 4)]
    world.answer(process=0)
    assert world.processes[0].jobs == [("predict", [[3, 4]])]
    world.crash(process=0)
    assert world.processes[2].jobs == [("predict", [[3]])]
    world.answer(process=1)
    assert world.processes[1].jobs == [], "the other call beside the crash waits"
    world.call(5)
    assert world.processes[1].jobs == [("predict", [[5]])]
    world.answer(process=2)
    assert world.processes[2].jobs == [("predict", [[4]])]
    world.answer(process=2)
    assert [each.outcome for each in calls + joined] == [[[1]], [[2]], [[3]], [[4]]]


@pytest.mark.parametrize("how", ["crash", "hang", "left"])
def test_next_call_beside_a_crash_begins_when_the_one_before_it_has_ended_its_process(how):
    world = World(batching=True, num_processes=2)
    world.call(0)
    beside = world.call(1, caller=FakeCaller())
    joined = [world.call(number) for number in (2, 3)]
    world.answer(process=0)
    world.crash(process=0)
    assert world.processes[2].jobs == [("predict", [[2]])]
    world.answer(process=1)
    assert beside.outcome == [[1]]
    world.held = []  # no further process, for now
    if how == "crash":
        world.crash(process=2)
    else:
        if how == "left":
            joined[0].caller.streams.pop(joined[0].stream)
        world.tick(SMALL.max_handler_s + 0.1)
    assert world.processes[1].jobs == [("predict", [[3]])], "it waits, and a process is free"


def test_call_whose_batch_has_crashed_is_run_again_though_the_others_left():
    world = World(batching=True)
    world.call(0)
    gone, stays = world.call(1), world.call(2)
    world.answer()
    gone.caller.streams.clear()
    world.crash()
    assert world.processes[1].jobs == [("predict", [[2]])]
    world.answer()
    assert stays.outcome == [[2]]


def test_call_whose_state_is_lost_begins_again_once():
    world = World(("preprocess", "postprocess"), FakeVersion(), num_processes=1)
    first = world.call(1)
    world.call(2)
    for number in range(2):
        world.processes[number].answer(state=True)  # the model's run is due, and the next job
        world.batcher.turn(world.clock())
        world.processes[number].on_end("SIGKILL")  # on the other call
        world.owner.work()
        if not number:
            assert first.outcome is None
            assert world.processes[1].jobs == [("preprocess", [[1]])]
            world.call(3)
    assert isinstance(first.outcome, Unavailable)


def pause_after(world):
    """Have a process end on a call; return how long there is none then."""
    world.call(1)
    world.crash()
    waited_s = 0.0
    while world.batcher.is_refusing:
        refused = world.call(2)
        assert isinstance(refused.outcome, Unavailable)
        world.tick(START_S)
        waited_s += START_S
    return waited_s / START_S


def test_first_calls_in_a_row_that_end_processes_make_pauses_of_at_most_ten_starts():
    world = World()
    assert [pause_after(world) for _ in range(8)] == [0, 0, 1, 2, 4, 8, 10, 10]
    assert world.num_blocks
    world.call(1)
    world.answer()  # one that is no first call ends the row
    assert [pause_after(world) for _ in range(2)] == [0, 0]


@pytest.mark.parametrize(("between", "expected"), [(19, 0.0), (18, 1.0)])
def test_pause_if_more_than_one_in_twenty_of_the_last_calls_ended_their_process(between, expected):
    world, pauses = World(), []
    for _ in range(11):
        for number in range(between):
            world.call(number)
            world.answer()
        pauses.append(pause_after(world))
    assert pauses == [0.0] * 10 + [expected]


def test_processes_start_one_by_one_after_a_pause():
    world = World(num_processes=3)
    for _ in range(3):
        for process in world.processes[-3:]:
            process.on_end("SIGKILL")
        world.owner.work()
    number = len(world.processes)
    world.held = []
    world.tick(10 * START_S)
    assert len(world.held) == 1
    world.tick()
    assert len(world.held) == 1
    world.held.pop()()
    world.owner.work()
    world.tick()
    assert len(world.processes) == number + 1
    assert len(world.held) == 1


def test_failed_starts_pause_too():
    world = World()
    world.failures = 2
    world.crash()
    assert world.num_blocks == 3, "the first start, the end, and the start that has failed"
    assert world.batcher.is_refusing
    world.tick(60.0)
    world.tick(60.0)
    assert not world.batcher.is_refusing


def test_memory_ends_a_process():
    world = World()
    world.batcher._runners._config = BatchingConfig(max_handler_bytes=100)
    world.processes[0].memory_bytes = 101
    world.tick(2.0)
    assert world.processes[0].is_over
    assert len(world.processes) == 2


def test_full_queue_refuses():
    world = World()
    outcomes = [world.call(number).outcome for number in range(40)]
    assert any(isinstance(each, Overloaded) for each in outcomes)


def test_answer_that_nobody_asked_for_ends_the_process():
    world = World()
    world.processes[0].on_frame(Frame({"kind": "done", "job": 77, "state": False}, []))
    assert world.processes[0].is_over


def test_drain_waits_for_calls():
    world = World()
    world.call(1)
    assert world.batcher.is_busy
    world.answer()
    assert not world.batcher.is_busy
    world.batcher.refuse(Unavailable("it has changed"))
    world.batcher.close()
    assert world.processes[0].is_over
    assert isinstance(world.call(1).outcome, Unavailable)


@pytest.mark.parametrize("seed", range(20))
def test_each_call_has_one_outcome_whatever_happens(seed):
    """Random calls, answers, crashes, deadlines and departures."""
    random = np.random.default_rng(seed)
    methods = [("predict",), ("preprocess", "postprocess")][seed % 2]
    network = None if seed % 2 == 0 else FakeVersion()
    world = World(methods, network, num_processes=2, batching=bool(seed % 3))
    calls = []
    for number in range(300):
        what = random.integers(12)
        idle = [each for each in world.processes if each.sent and not each.is_over]
        if what < 5:
            deadline_s = world.clock() + random.choice([0.2, 1e9])
            calls.append(world.call(number, deadline_s=deadline_s))
        elif what < 9 and idle:
            process = random.choice(np.array(idle, object))
            while process.sent and process.sent[0][0]["kind"] == "drop":
                process.sent.popleft()
            if process.sent:
                kind = random.choice(["done", "done", "done", "failed"])
                process.answer(kind=kind, text="it", state=bool(random.integers(2)))
        elif what == 9 and idle:
            idle[0].on_end("SIGKILL")
            idle[0].is_over = True
        elif what == 10 and calls:
            calls[random.integers(len(calls))].caller.streams.clear()
        world.owner.work()
        world.tick(0.05)
    for _ in range(2000):
        world.tick(1.0)
        for process in world.processes:
            while process.sent and not process.is_over:
                if process.sent[0][0]["kind"] == "drop":
                    process.sent.popleft()
                    continue
                process.answer()
                world.owner.work()
        if not world.batcher.is_busy:
            break
    assert not world.batcher.is_busy
    gone = [each for each in calls if each.outcome is None]
    assert all(not each.caller.streams for each in gone)  # these have left
    assert sum(each.outcome is not None for each in calls) > 20


def test_closed_one_has_no_processes():
    world = World(num_processes=2)
    usage = world.batcher.usage()
    assert usage.num_processes == 2
    world.batcher.close()
    assert [each.is_over for each in world.processes] == [True, True]
    assert world.batcher.usage() == usage._replace(num_processes=0, memory_bytes=0)


def test_calls_wait_for_a_start_until_what_waited_for_it_has_begun():
    """As long as a process starts they wait longer before their callers are too many, no longer."""
    world = World(num_processes=1)
    world.held = []
    world.call(0)
    world.crash()
    queue = world.batcher._queue
    assert queue.away_s == START_S
    waiting = [world.call(number) for number in (1, 2)]
    world.tick(0.2)
    assert queue.away_s == START_S, "there is no process"
    world.held.pop()()
    world.owner.work()
    world.tick(0.2)
    assert queue.away_s == START_S, "a call waits still"
    world.answer()
    world.tick(0.2)
    assert queue.away_s == 0.0
    world.answer()
    assert [each.outcome for each in waiting] == [[[1]], [[2]]]
    world.held = None
    world.crash()
    assert queue.away_s == START_S
    world.tick(0.2)
    assert queue.away_s == 0.0, "and so after each start"


def test_process_that_is_ready_begins_what_waits_and_its_model_is_looked_at():
    """It may be refused no longer: see `on_block`."""
    world = World()
    world.held = []
    world.crash()
    call = world.call(1)
    num_blocks = world.num_blocks
    world.held.pop()()
    world.owner.work()
    assert world.processes[-1].jobs == [("predict", [[1]])]
    assert world.num_blocks == num_blocks + 1
    world.answer()
    assert call.outcome == [[1]]


def test_memory_is_looked_at_once_a_second():
    world = World()
    world.batcher._runners._config = BatchingConfig(max_handler_bytes=100)
    world.tick()
    world.processes[0].memory_bytes = 101
    world.tick(0.99)
    assert not world.processes[0].is_over
    world.tick(0.02)
    assert world.processes[0].is_over


def test_calls_that_wait_are_looked_at_ten_times_a_second():
    world = World()
    world.call(0)
    world.tick()
    late = world.call(1, deadline_s=0.05)
    world.tick(0.09)
    assert late.outcome is None
    world.tick(0.02)
    assert isinstance(late.outcome, DeadlineExceeded)


def test_answer_of_another_model_for_a_process_that_has_ended_is_sent_to_nobody():
    other = Other()
    world = World(find=other.find)
    world.call(1)
    gone = world.processes[0]
    gone.ask(7, 10)
    (slot,) = world.batcher._runners.slots
    world.crash()
    assert (slot.asked, slot.jobs) == ({}, {})
    assert other.groups[0].open_calls() is None
    gone.sent.clear()
    other.answer(0, 20)
    assert [*gone.sent] == []


def test_calls_that_nobody_waits_for_have_no_deadline():
    world = World()
    world.call(1, deadline_s=5.0)
    (joined,) = world.batcher._open.values()
    assert joined.deadline_s == 5.0
    joined.calls = []
    assert joined.deadline_s == -np.inf


def test_joined_calls_are_those_of_these_facts_at_first():
    world = World(batching=True)
    world.call(0)
    calls = [world.call(number) for number in (1, 2)]
    world.answer()
    (joined,) = world.batcher._open.values()
    assert (joined.num_calls, joined.num_rows, joined.depth, joined.stage) == (2, 2, 0, 0)
    assert (joined.num_parts, joined.num_asked, joined.num_ahead) == (0, 1, 1)
    assert (joined.is_taken, joined.is_in_line, joined.is_over) == (True, False, False)
    assert (joined.state_at, joined.behind, [*joined.ahead]) == (None, None, [])
    assert joined.calls is joined.members
    world.answer([10, 20])
    assert [each.outcome for each in calls] == [[[10]], [[20]]]
    assert (joined.is_over, joined.calls) == (True, [])
    assert world.batcher._open == {}


def test_job_has_all_that_a_process_needs():
    world = World(batching=True, options=("parameters",))
    world.call(1, 2, parameters={"top": 1})
    ((fields, (array,)),) = world.processes[0].sent
    assert fields == {
        "kind": "job", "job": 1, "phase": "predict", "rows": 2, "max_s": 2.0,
        "max_bytes": SMALL.max_response_bytes, "options": {"parameters": {"top": 1}},
    }  # fmt: skip
    assert array.tolist() == [1, 2]
    plain = World()
    plain.call(1)
    assert {*plain.processes[0].sent[0][0]} == {*fields} - {"options"}


def test_state_that_is_forgotten_is_dropped_by_the_number_of_its_call():
    world = World(("preprocess", "postprocess"), FakeVersion())
    call = world.call(1)
    world.processes[0].answer(state=True)
    call.caller.streams.clear()
    world.owner.work()
    world.tick(0.2)
    assert [fields for fields, _ in world.processes[0].sent] == [{"kind": "drop", "job": 1}]
    (slot,) = world.batcher._runners.slots
    assert (slot.states, slot.jobs, slot.open) == ({}, {}, set())


def test_pipeline_is_scheduled_again_after_each_turn():
    world = World()
    world.call(1)
    assert not world.batcher._is_scheduled
    for number in range(3):
        world.answer()
        call = world.call(number)
        assert call.outcome is None
        assert len(world.processes[0].sent) == 1, "it has begun"
        assert not world.batcher._is_scheduled


@pytest.mark.parametrize("options", [{}, {"is_final": True}, {"is_final": False}], ids=str)
def test_calls_without_room_count_as_failed_if_nobody_else_takes_them(options, monkeypatch):
    world, refused = World(), Call(1)
    queue = world.batcher._queue
    monkeypatch.setattr(type(queue), "offer", lambda *_: 0)
    queue.run_rows = 0
    assert world.batcher.submit(refused.group, **options) == 0
    counts = world.metrics.snapshot().models.get(("h", "1"))
    assert (counts.num_failed if counts else 0) == options.get("is_final", True)


def test_outcome_that_names_no_state_has_none():
    world = World(("preprocess", "postprocess"), FakeVersion())
    call, process = world.call(1), world.processes[0]
    process.sent.clear()
    process.on_frame(Frame({"kind": "failed", "job": 1, "text": "it"}, []))
    (slot,) = world.batcher._runners.slots
    assert [*process.sent] == [], "there is none to be dropped"
    assert (slot.states, slot.jobs) == ({}, {})
    assert isinstance(call.outcome, ModelError)


def test_process_that_is_ready_behind_the_end_is_closed_and_no_other_starts():
    world = World(num_processes=2)
    world.held = []
    world.crash(0)
    world.crash(1)
    begun = [*world.held]
    assert begun
    world.batcher.close()
    for start in begun:
        start()
    world.owner.work()
    assert [each.is_over for each in world.processes[2:]] == [True] * len(begun)
    world.tick(60.0)
    assert world.held == begun
    assert world.batcher.usage().num_processes == 0
