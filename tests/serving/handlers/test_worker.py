"""The program of a handler's process with `async def`, whose server the test plays."""

import asyncio
import logging
import os
import socket
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import serving
from serving.handlers import frames, worker
from serving.handlers.frames import FrameReader
from serving.handlers.instance import Instance, at_once
from serving.handlers.signature import HandlerSignature
from serving.telemetry.metrics import OwnCounts
from serving.tensors import Tensor, TensorSignature
from tests.serving.handlers.async_behaviours import AsyncAround, AsyncStory, Tasks
from tests.serving.handlers.behaviours import Around, Story, Teller
from tests.support.fakes import TIMEOUT_S

MAX_S = 30.0


class Played:
    """A worker on a thread, and the server's end of its socket."""

    worker: Any

    def __init__(self, handler, network=None):
        self.socket, self._other = socket.socketpair()
        self.socket.settimeout(TIMEOUT_S)
        self._reader, self._found = FrameReader(self.socket), []
        self.instance = Instance(handler, network, None)
        self.link = worker._ServerLink(self._other)
        self._thread = threading.Thread(target=self._run)

    def _run(self):
        with pytest.raises(SystemExit):
            self.worker.run()

    def __enter__(self):
        self._thread.start()
        return self

    def send(self, *sent):
        """Send frames in one piece."""
        pieces = [b"".join(map(bytes, frames.encode(fields, arrays))) for fields, arrays in sent]
        self.socket.sendall(b"".join(pieces))

    def next(self):
        """The next frame: its kind, the job, and the fields."""
        while not self._found:
            self._found += self._reader.read()
        frame = self._found.pop(0)
        return frame.fields["kind"], frame.fields.get("job"), frame


class Child(Played):
    """With an event loop."""

    def __init__(self, handler, network=None):
        super().__init__(handler, network)
        self.loop = asyncio.new_event_loop()
        file = Path(asyncio.__file__)
        self.worker = worker._LoopWorker(self.link, self.instance, self.loop, file)
        self.loop.run_until_complete(self.instance.setup(Path()))

    def __exit__(self, *exc_info):
        self.loop.call_soon_threadsafe(self.loop.stop)
        self._thread.join()
        for task in asyncio.all_tasks(self.loop):
            task.cancel()
        self.loop.run_until_complete(asyncio.sleep(0))
        self.socket.close()
        self._other.close()
        self.loop.close()

    def ends(self, number):
        """The next outcomes: kind and job, sorted by job."""
        return sorted((self.next()[:2] for _ in range(number)), key=lambda each: each[1])

    def require_nothing_left(self):
        """Check that it keeps nothing of calls that have ended."""
        done = threading.Event()
        self.loop.call_soon_threadsafe(self.loop.call_soon, self.loop.call_soon, done.set)
        assert done.wait(TIMEOUT_S)
        own = self.worker
        assert (own._tasks, own._closing, own._states) == ({}, set(), {})
        assert (own._following, own._voided) == ({}, set())
        assert (own._server.open, own._server._replies, own._models._replies) == (set(), {}, {})


@pytest.fixture
def child(monkeypatch, request):
    """Start workers that do not end this process."""

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    if "blocked" not in request.node.name:
        monkeypatch.setattr(worker._LoopWorker, "_watch", lambda self, main: None)
    children = []

    def start(handler=Tasks, network=None):
        children.append(Child(handler, network))
        return children[-1].__enter__()

    yield start
    for each in children:
        each.__exit__()


def texts(*values):
    return [np.array(values, object)]


def job(number, text, phase="predict", max_s=MAX_S):
    fields = {"kind": "job", "job": number, "phase": phase, "rows": 1}
    return fields | {"max_bytes": 1 << 20, "max_s": max_s}, texts(text)


def following(number):
    fields, _ = job(number, "")
    return fields | {"kind": "next"}, ()


def drop(number):
    return {"kind": "drop", "job": number}, ()


def test_calls_end_in_their_own_order_and_nothing_is_left(child):
    played = child()
    played.send(*[job(number, "meet 3") for number in (5, 6)])
    played.send(job(7, "say it"))
    kind, number, frame = played.next()
    assert (kind, number, frame.arrays[0].tolist()) == ("done", 7, ["SAY IT"])
    played.send(job(8, "meet 3"))
    assert played.ends(3) == [("done", 5), ("done", 6), ("done", 8)]
    played.require_nothing_left()


def test_call_that_is_dropped_has_one_outcome(child):
    played = child()
    played.send(job(1, "hang"), job(2, "say it"))
    assert played.next()[:2] == ("done", 2)
    played.send(drop(1))
    assert played.next()[:2] == ("failed", 1)
    played.send(drop(1), drop(2), drop(77), job(3, "say it"))  # all too late, or of nobody
    assert played.next()[:2] == ("done", 3)
    played.require_nothing_left()


def test_call_that_is_dropped_before_its_first_step_has_one_outcome(child):
    played = child()
    played.send(job(1, "say it"), drop(1), job(2, "say it"))
    assert played.ends(2) == [("failed", 1), ("done", 2)]
    played.require_nothing_left()


def test_step_that_is_dropped_before_it_begins_ends_its_generator(child):
    played = child(AsyncStory)
    played.send(job(1, "a b c"))
    assert played.next()[:2] == ("part", 1)
    played.send(following(1), drop(1))
    assert played.next()[:2] == ("failed", 1)
    played.require_nothing_left()
    played.send(job(2, "a"))
    assert played.next()[2].arrays[1].tolist() == [1]  # the only one that is open
    played.send(drop(2))


def test_step_that_is_dropped_while_it_waits_ends_its_generator(child):
    played = child(AsyncStory)
    played.send(job(1, "a hang: b"))
    assert played.next()[:2] == ("part", 1)
    played.send(following(1), job(2, "a"))
    assert played.next()[2].arrays[1].tolist() == [2]
    played.send(drop(1), drop(2))
    assert played.next()[:2] == ("failed", 1)
    played.require_nothing_left()


def test_generator_that_is_dropped_between_steps_ends(child):
    played = child(AsyncStory)
    played.send(job(1, "a b"), job(2, "a b"))
    assert played.ends(2) == [("part", 1), ("part", 2)]
    played.send(drop(1))
    played.send(following(2))
    assert played.next()[:2] == ("part", 2)
    played.send(following(2))
    assert played.next()[:2] == ("end", 2)
    played.require_nothing_left()


def test_state_of_a_call_that_is_dropped_is_forgotten(child, network):
    tensors = serving.Model.load(network).served.tensors
    played = child(AsyncAround, tensors)
    fields, arrays = job(1, "banana", "preprocess")
    played.send((fields, [*arrays, np.ones((1, 2), np.float32)]))
    kind, _, frame = played.next()
    assert (kind, frame.fields["state"]) == ("done", True)
    played.send(drop(1))
    played.require_nothing_left()


def test_replies_go_to_the_task_that_has_asked(child):
    played = child()
    played.send(job(1, "ask one"), job(2, "ask two"))
    asked = {}
    for _ in range(2):
        kind, number, frame = played.next()
        assert kind == "infer"
        asked[number] = frame.fields["request"]
    for number in (2, 1):
        fields = {"kind": "reply", "job": number, "request": asked[number]}
        played.send((fields | {"names": ["answer"], "version": "1"}, texts(f"to {number}")))
    found = dict(played.next()[1:] for _ in range(2))
    assert [found[each].arrays[0].tolist() for each in (1, 2)] == [["to 1"], ["to 2"]]
    played.require_nothing_left()


def test_task_that_is_dropped_leaves_what_it_has_asked(child):
    played = child()
    played.send(job(1, "ask one"))
    request = played.next()[2].fields["request"]
    played.send(drop(1))
    assert played.next()[0] == "leave"
    assert played.next()[:2] == ("failed", 1)
    reply = {"kind": "reply", "job": 1, "request": request, "names": ["answer"], "version": "1"}
    played.send((reply, texts("late")), job(2, "say it"))
    assert played.next()[:2] == ("done", 2)
    played.require_nothing_left()


def test_loop_that_is_blocked_is_reported_with_its_job_and_line(child):
    played = child()
    held = threading.Event()

    async def hold(self, rest):
        held.wait(TIMEOUT_S)

    played.worker._file = Path(__file__)
    handler: Any = played.worker._instance._handler
    handler.do_hold = hold.__get__(handler)
    played.send(job(1, "hang", max_s=0.1), job(2, "hold", max_s=0.1))
    kind, number, frame = played.next()
    held.set()
    assert (kind, number) == ("blocked", 2)
    assert frame.fields["text"].startswith("test_worker.py:")
    assert frame.fields["text"].endswith(" in hold")
    assert played.next()[:2] == ("done", 2)
    played.send(drop(1))
    assert played.next()[:2] == ("failed", 1)


@pytest.mark.parametrize("word", ["raise_cancelled", "cancel_itself"])
def test_cancelling_of_a_handlers_own_is_its_error(child, word):
    played = child()
    played.send(job(1, word))
    kind, number, frame = played.next()
    assert (kind, number) == ("failed", 1)
    assert f"do_{word}" in frame.fields["text"]


def test_cancelling_that_a_handler_without_a_loop_raises_is_its_error():
    class Cancels(serving.Handler):
        inputs = outputs = Tasks.inputs

        def predict(self, text):
            raise asyncio.CancelledError

    ours, other = socket.socketpair()
    with ours, other:
        own = worker._Worker(worker._ServerLink(other), Instance(Cancels, None, None))
        own._end(1, at_once(own._outcome(*job(1, "a"))))
        (frame,) = FrameReader(ours).read()
    assert frame.fields["kind"] == "failed"


def test_steps_that_are_asked_for_ahead_are_done_in_turn(child):
    played = child(AsyncStory)
    played.send(job(1, "a b c"), job(2, "x"))
    played.ends(2)
    played.send(following(1), following(1), following(2), following(1), following(1))
    found = [played.next()[:2] for _ in range(4)]
    assert [each for each in found if each[1] == 1] == [("part", 1), ("part", 1), ("end", 1)]
    assert ("end", 2) in found
    played.send(following(1), job(3, ""))  # a step of a generator that has ended is nothing
    assert played.next()[:2] == ("end", 3)
    played.require_nothing_left()


def test_steps_ahead_of_a_job_that_is_dropped_have_one_outcome(child):
    played = child(AsyncStory)
    played.send(job(1, "a hang: b"), job(2, "many:9 hang:"))
    played.ends(2)
    played.send(following(1), following(1), following(1))
    played.send(job(3, "x"))
    assert played.next()[:2] == ("part", 3)
    played.send(drop(1), drop(3))
    assert played.next()[:2] == ("failed", 1)
    played.send(*[following(2)] * 20, drop(2))
    kinds = []
    while kinds[-1:] != ["failed"]:
        kinds.append(played.next()[0])
    assert set(kinds[:-1]) <= {"part"}
    played.require_nothing_left()


class Stubborn(AsyncStory):
    """Yields once more where it is cancelled."""

    async def predict(self, prompt):
        for number in range(9):
            yield {"token": prompt, "open": np.array([number])}
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                continue


def test_part_that_a_cancelled_step_makes_has_the_end_behind_it(child):
    played = child(Stubborn)
    played.send(job(1, "a"))
    assert played.next()[:2] == ("part", 1)
    played.send(*[following(1)] * 3, job(2, "b"))
    assert played.next()[:2] == ("part", 2)
    played.send(drop(1))
    assert [played.next()[:2] for _ in range(2)] == [("part", 1), ("failed", 1)]
    played.send(drop(2))
    played.require_nothing_left()


class Sync(Played):
    """Without a loop."""

    def __init__(self, handler, network=None):
        super().__init__(handler, network)
        self.instance.use(worker._Models(self.link, self.instance.signature.uses))
        at_once(self.instance.setup(Path()))
        self.worker = worker._Worker(self.link, self.instance)

    def __exit__(self, *exc_info):
        self.socket.close()
        self._thread.join()
        self._other.close()


@pytest.fixture
def plain(monkeypatch, request):
    """A worker of `Story`, whose generators are plain, or of another handler."""

    def end(code):
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    with Sync(getattr(request, "param", Story)) as played:
        yield played


def test_thread_that_is_interrupted_while_it_reads_lets_others_read():
    """A handler's own signal handler may raise in the thread that waits for the server."""
    ours, other = socket.socketpair()
    with ours, other:
        link = worker._ServerLink(other)
        reader, interrupts = link._reader, [KeyboardInterrupt()]

        def read(flags=0):
            if interrupts:
                raise interrupts.pop()
            return reader.read(flags)

        link._reader = SimpleNamespace(read=read)
        with pytest.raises(KeyboardInterrupt):
            link.next_job()
        fields, arrays = job(1, "a")
        ours.sendall(b"".join(map(bytes, frames.encode(fields, arrays))))
        found = []
        thread = threading.Thread(target=lambda: found.append(link.next_job()), daemon=True)
        thread.start()
        thread.join(TIMEOUT_S)
    assert [each.fields["job"] for each in found] == [1]


def test_steps_ahead_of_a_plain_generator_come_in_order(plain):
    plain.send(job(1, "a b"), job(2, "x"), *[following(1)] * 3, following(2), job(3, ""))
    found = [plain.next()[:2] for _ in range(6)]
    expected = [("part", 1), ("part", 2), ("part", 1), ("end", 1), ("end", 2), ("end", 3)]
    assert found == expected


NETWORK = TensorSignature(
    (Tensor("x", "FP32", (-1, 4)),), (Tensor("y", "FP32", (-1, 3)),), is_batchable=True
)


@pytest.mark.parametrize("handler", [Around, AsyncAround])
def test_state_of_a_call_comes_back_with_the_answer_of_its_model(handler, child):
    fields, arrays = job(1, "banana", "preprocess")
    answer = np.ones((1, 3), np.float32)
    with ExitStack() as stack:
        if handler is AsyncAround:
            played = child(handler, NETWORK)
        else:
            played = stack.enter_context(Sync(handler, NETWORK))
        played.send((fields, [*arrays, np.ones((1, 2), np.float32)]))
        kind, _, frame = played.next()
        assert (kind, frame.fields["state"]) == ("done", True)
        assert [each.tolist() for each in frame.arrays] == [[[6.0, 3.0, 1.0, 1.0]]]
        played.send((fields | {"phase": "postprocess"}, [answer]))
        kind, _, frame = played.next()
        assert (kind, frame.fields["state"]) == ("done", False)
        assert [each.tolist() for each in frame.arrays] == [["banana!"], [[1.0, 1.0, 1.0]]]
        assert played.worker._states == {}


def test_drop_comes_before_the_steps_that_are_ahead(plain, gate):
    plain.send(job(1, f"a wait:{gate.path} b c d"), job(2, "x y"))
    assert [plain.next()[:2] for _ in range(2)] == [("part", 1), ("part", 2)]
    plain.send(*[following(1)] * 3, following(2))
    with gate.closed():  # it is in its step, and the others wait in the socket
        plain.send(drop(1))
    assert plain.next()[:2] == ("part", 1)
    assert plain.next()[:2] == ("failed", 1)  # two steps are not made
    assert plain.next()[:2] == ("part", 2)
    plain.send(drop(1), job(3, "z"))
    kind, _, frame = plain.next()
    assert (kind, frame.arrays[1].tolist()) == ("part", [2])  # 2 and 3 are open


def test_drop_that_crosses_the_end_of_a_generator_has_no_second_outcome(plain, gate):
    plain.send(job(1, f"a wait:{gate.path}"), job(2, "x"))
    assert [plain.next()[:2] for _ in range(2)] == [("part", 1), ("part", 2)]
    plain.send(*[following(1)] * 3)
    with gate.closed():
        plain.send(drop(1), following(2))
    assert [plain.next()[:2] for _ in range(2)] == [("end", 1), ("end", 2)]


class TellsAsync(Teller):
    """The same with `async def`."""

    async def predict(self, prompt):
        async for part in self.async_models.stream("story", {"prompt": prompt}):
            yield {"token": part["token"]}


def require_early_error(played):
    """Check that the error of another model comes, though no part was asked for when it came."""
    played.send(job(1, "once"))
    kind, number, frame = played.next()
    assert (kind, number) == ("stream", 1)
    reply = {"kind": "reply", "job": 1, "request": frame.fields["request"]}
    part = reply | {"names": ["token"], "version": "1", "is_part": True}
    failure = reply | {"error": "ModelError", "text": "its process has ended"}
    played.send((part, texts("a")), (failure, ()))
    assert played.next()[:2] == ("part", 1)
    played.send(following(1))
    assert played.next()[0] == "more"
    kind, number, frame = played.next()
    assert (kind, number) == ("failed", 1)
    assert "its process has ended" in frame.fields["text"]


@pytest.mark.parametrize("plain", [Teller], indirect=True)
def test_error_of_another_model_that_comes_early_is_kept(plain):
    require_early_error(plain)
    assert plain.worker._server._replies == {}


def test_error_of_another_model_that_comes_early_is_kept_for_a_task(child):
    played = child(TellsAsync)
    require_early_error(played)
    played.require_nothing_left()


WATCH = worker._LoopWorker._watch
"""As it is: other tests have none, which may wait longer than a machine is busy."""


class Watched(Exception):
    """Enough looks."""


def looks_until(number, monkeypatch):
    """The pauses between looks, in seconds; the last one ends by an error."""
    looks = []

    def sleep(seconds):
        looks.append(seconds)
        if len(looks) == number:
            raise Watched

    monkeypatch.setattr(worker, "time", SimpleNamespace(sleep=sleep))
    return looks


@pytest.mark.parametrize(("max_s", "look_s"), [(0.4, 0.1), (2.0, 0.5), (30.0, 1.0)])
def test_loop_that_goes_on_is_looked_at_again_and_is_not_reported(
    max_s, look_s, child, monkeypatch
):
    """Several times within the limit, and once a second at least."""
    played, looks = child(), looks_until(4, monkeypatch)
    played.send(job(1, "say it", max_s=max_s))
    assert played.next()[:2] == ("done", 1)
    with pytest.raises(Watched):
        WATCH(played.worker, 0)
    assert looks == [look_s] * 4
    played.send(job(2, "say it"))
    assert played.next()[:2] == ("done", 2)


def test_loop_without_a_job_is_looked_at_once_a_second(child, monkeypatch):
    played, looks = child(), looks_until(2, monkeypatch)
    with pytest.raises(Watched):
        WATCH(played.worker, 0)
    assert looks == [1.0] * 2


class Raises(serving.Handler):
    """Raises an error of the name that it gets, or answers a text."""

    inputs: ClassVar = {"text": serving.Text()}
    outputs: ClassVar = {"text": serving.Text()}

    def predict(self, text):
        kind, _, words = text[0].partition(" ")
        if not words:
            return text
        raise getattr(serving.errors, kind, KeyError)(words)


PASSED = ("InvalidRequest", "TooLarge", "Unsupported", "Overloaded", "Unavailable",
          "DeadlineExceeded", "ModelNotFound")  # fmt: skip
"""What a handler may say to its caller, as the documentation of handlers has it."""
OWN = ("KeyError", "ModelError", "NotAllowed", "Unauthenticated", "CorruptModel", "DeviceError",
       "ConfigurationError")  # fmt: skip


@pytest.mark.parametrize("plain", [Raises], indirect=True)
def test_outcome_of_a_job_is_whole(plain):
    for number, name in enumerate(PASSED, 1):
        plain.send(job(number, f"{name} why not"))
        _, _, frame = plain.next()
        expected = {"kind": "error", "job": number, "error": name, "text": "why not"}
        assert (frame.fields, frame.arrays) == (expected, [])
    for number, name in enumerate(OWN, 10):
        plain.send(job(number, f"{name} why not"))
        fields = plain.next()[2].fields
        text = fields.pop("text")
        assert fields == {"kind": "failed", "job": number}
        assert text.startswith("Traceback")
        assert f"{name}: " in text
        assert "serving/handlers/" not in text.replace("tests/serving/handlers/", "")
    plain.send(job(20, f"TooLarge {'x' * 1001}"))
    assert plain.next()[2].fields["text"] == "x" * 1000
    plain.send(job(21, "word"))
    _, _, frame = plain.next()
    assert frame.fields == {"kind": "done", "job": 21, "state": False}
    assert [each.tolist() for each in frame.arrays] == [["word"]]


@pytest.mark.parametrize("plain", [Raises], indirect=True)
def test_outputs_of_more_bytes_than_an_answer_may_have_are_not_sent(plain):
    fields, arrays = job(1, "word")
    for number, most in enumerate((8, 7), 1):
        plain.send((fields | {"job": number, "max_bytes": most}, arrays))
        found = plain.next()[2].fields
        if most == 8:  # a length of 4 bytes, and the text
            assert found["kind"] == "done"
        else:
            assert found == {"kind": "too_large", "job": 2, "output": "text", "bytes": 8}


@pytest.mark.parametrize("word", ["say it", "refuse no"])
def test_job_of_a_loop_has_the_same_outcome(child, word):
    played = child()
    played.send(job(1, word))
    _, _, frame = played.next()
    if word == "say it":
        assert frame.fields == {"kind": "done", "job": 1, "state": False}
        assert [each.tolist() for each in frame.arrays] == [["SAY IT"], [os.getpid()]]
    else:
        expected = {"kind": "error", "job": 1, "error": "InvalidRequest", "text": "no"}
        assert (frame.fields, frame.arrays) == (expected, [])


# What a handler asks of other models, by whole frames


class Linked:
    """The worker's end of a socket, and the server's, whose replies the test sends before."""

    def __init__(self, job: int | None = None):
        self.socket, self._other = socket.socketpair()
        self.socket.settimeout(TIMEOUT_S)
        self._reader = FrameReader(self.socket)
        self.link = worker._ServerLink(self._other)
        if job is not None:
            self.send({"kind": "job", "job": job})
            self.link.next_job()

    def send(self, fields, arrays=()):
        self.socket.sendall(b"".join(map(bytes, frames.encode(fields, arrays))))

    def sent(self):
        """The frames that the worker has sent."""
        self.link.send({"kind": "last"})
        found: list[Any] = []
        while not found or found[-1][0] != {"kind": "last"}:
            found += [(fields, [each.tolist() for each in arrays])
                      for fields, arrays in self._reader.read()]  # fmt: skip
        return found[:-1]

    def close(self):
        self.socket.close()
        self._other.close()


@pytest.fixture
def linked():
    made = Linked(7)
    yield made
    made.close()


def reply(number, *texts_, **more):
    """A reply to a request of the job 7."""
    fields = {"kind": "reply", "job": 7, "request": number, **more}
    return fields | ({} if "error" in more or "is_end" in more else
                     {"names": ["text"], "version": "3"}), [
        np.array([each], object) for each in texts_]  # fmt: skip


@pytest.mark.parametrize("only", [7, None])
@pytest.mark.parametrize(
    ("inputs", "names"), [({"x": ["a"]}, ["x"]), (["a"], [""]), ({"x": ["a"], "y": [1]}, "xy")]
)
def test_request_of_another_model_has_its_names_and_arrays(only, inputs, names, linked):
    models = worker._Models(linked.link, ("other",), only)
    linked.send(*reply(1, "answer"))
    found = models.infer("other", inputs)
    assert (found["text"].tolist(), found.model_version) == (["answer"], "3")
    asked = {"kind": "infer", "job": 7, "request": 1, "name": "other", "names": [*names]}
    assert linked.sent() == [(asked, [["a"], [1]][: len(names)])]
    linked.send(*reply(2, error="Overloaded", text="the queue is full"))
    with pytest.raises(serving.Overloaded, match=r"^the queue is full$"):
        models.infer("other", inputs)
    with pytest.raises(serving.ModelNotFound, match=r"has no model 'more', only other$"):
        models.infer("more", inputs)
    assert len(linked.sent()) == 1
    assert linked.link._replies == {}


def test_parts_of_another_model_are_asked_for_one_by_one_and_left(linked):
    models = worker._Models(linked.link, ("other",), 7)
    linked.send(*reply(1, "a", is_part=True))
    parts = models.stream("other", {"x": ["a"]})
    assert next(parts)["text"].tolist() == ["a"]
    asked = {"kind": "stream", "job": 7, "request": 1, "name": "other", "names": ["x"]}
    assert linked.sent() == [(asked, [["a"]])]
    linked.send(*reply(1, "b", is_part=True))
    assert next(parts)["text"].tolist() == ["b"]
    assert linked.sent() == [({"kind": "more", "request": 1}, [])]
    parts.close()
    assert linked.sent() == [({"kind": "leave", "request": 1}, [])]
    assert linked.link._replies == {}


def test_parts_of_another_model_end_with_its_answer_and_leave_nothing(linked):
    models = worker._Models(linked.link, ("other",), 7)
    linked.send(*reply(1, "a", is_part=True))
    linked.send(*reply(1, is_end=True))
    assert [each["text"][0] for each in models.stream("other", ["x"])] == ["a"]
    linked.send(*reply(2, "whole"))
    assert [each["text"][0] for each in models.stream("other", ["x"])] == ["whole"]
    kinds = [fields["kind"] for fields, _ in linked.sent()]
    assert kinds == ["stream", "more", "stream"], "it has ended by itself"
    assert linked.link._replies == {}


def test_models_are_called_while_their_call_is_answered():
    linked = Linked()
    text = r"^models can be called while their call is answered$"
    for only in (None, 7):
        with pytest.raises(serving.Unavailable, match=text):
            worker._Models(linked.link, ("other",), only).infer("other", ["a"])
    linked.send({"kind": "job", "job": 7})
    assert linked.link.next_job().fields["job"] == 7
    linked.link.end_job(7, frames.encode({"kind": "done", "job": 7}))
    for only in (None, 7):
        with pytest.raises(serving.Unavailable, match=text):
            worker._Models(linked.link, ("other",), only).infer("other", ["a"])
    assert linked.sent() == [({"kind": "done", "job": 7}, [])]
    assert (linked.link._replies, linked.link.open) == ({}, set())
    linked.close()


class AsksParts(Tasks):
    """Asks another model for two parts, and leaves."""

    uses = ("other",)

    async def predict(self, text):
        parts = self.async_models.stream("other", {"x": text})
        found = [(await anext(parts))["text"][0] for _ in range(2)]
        await parts.aclose()
        whole = await self.async_models.infer("other", text)
        return {"answer": [" ".join([*found, whole["text"][0]])], "pid": np.array([1])}


def test_tasks_ask_by_the_same_frames(child):
    played = child(AsksParts)
    played.send(job(7, "a"))
    asked = {"kind": "stream", "job": 7, "name": "other", "names": ["x"], "request": 1}
    _, _, frame = played.next()
    assert (frame.fields, [each.tolist() for each in frame.arrays]) == (asked, [["a"]])
    played.send(reply(1, "b", is_part=True))
    assert played.next()[2].fields == {"kind": "more", "request": 1}
    played.send(reply(1, "c", is_part=True))
    assert played.next()[2].fields == {"kind": "leave", "request": 1}
    asked = {"kind": "infer", "job": 7, "name": "other", "names": [""], "request": 2}
    assert played.next()[2].fields == asked
    played.send(reply(2, "d"))
    kind, number, frame = played.next()
    assert (kind, number, frame.arrays[0].tolist()) == ("done", 7, ["b c d"])
    played.require_nothing_left()


class Counts(Raises):
    """Counts its calls."""

    def predict(self, text):
        self.metrics.count("calls", kind="a")
        return text


@pytest.mark.parametrize("plain", [Counts], indirect=True)
def test_what_a_handler_counts_comes_before_its_outcome(plain):
    plain.send(job(5, "word"))
    kind, number, frame = plain.next()
    assert (kind, number, {*frame.fields}) == ("metrics", None, {"kind", "own"})
    assert OwnCounts.of(frame.fields["own"]).counts == {("calls", (("kind", "a"),)): 1.0}
    assert plain.next()[:2] == ("done", 5)


def test_watch_of_a_loop_has_its_thread_and_does_not_keep_the_process_alive(child, monkeypatch):
    seen: list[Any] = []
    come = threading.Event()

    def watch(self, main):
        seen.append((main, threading.current_thread().daemon))
        come.set()

    monkeypatch.setattr(worker._LoopWorker, "_watch", watch)
    played = child()
    assert come.wait(TIMEOUT_S)
    assert seen == [(played._thread.ident, True)]


class Large(serving.Handler):
    """Answers two outputs, of which the first is the larger one."""

    inputs: ClassVar = {"text": serving.Text()}
    outputs: ClassVar = {"long": serving.Text(), "short": serving.Text()}

    def predict(self, text):
        return {"short": ["a"], "long": ["b" * 100]}


@pytest.mark.parametrize("plain", [Large], indirect=True)
def test_largest_output_is_named_where_all_are_too_large(plain):
    fields, arrays = job(1, "word")
    plain.send((fields | {"max_bytes": 108}, arrays))
    expected = {"kind": "too_large", "job": 1, "output": "long", "bytes": 104}
    assert plain.next()[2].fields == expected
    plain.send((fields | {"max_bytes": 109}, arrays))
    assert plain.next()[0] == "done"


def test_step_that_is_dropped_says_so():
    ours, other = socket.socketpair()
    with ours, other:
        other.sendall(b"".join(map(bytes, worker._dropped(4))))
        (frame,) = FrameReader(ours).read()
    assert frame == ({"kind": "failed", "job": 4, "text": "it was dropped"}, [])


# The start of a process


@pytest.fixture
def starting(monkeypatch):
    """The `main` of a process, as far as its first frame."""
    seen: Any = SimpleNamespace(logging=None, codes=[])

    def end(code):
        seen.codes.append(code)
        raise SystemExit(code)

    def run(own):
        seen.worker, seen.said = own, seen.ours.recv(4096, socket.MSG_PEEK)
        raise SystemExit(0)

    def basic_config(**named):
        seen.logging = named

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    monkeypatch.setattr(logging, "basicConfig", basic_config)
    for each in (worker._Worker, worker._LoopWorker):
        monkeypatch.setattr(each, "run", run)

    def start(file, name="", network=None, folder="/h/1"):
        words = {"file": str(file), "name": name, "folder": folder, "network": network,
                 "log_level": 10}  # fmt: skip
        ours, other = socket.socketpair()
        ours.setblocking(False)
        seen.ours = ours
        with ours, other:
            with pytest.raises(SystemExit):
                worker.main(other, words)
            (frame,) = FrameReader(ours).read()
        return frame.fields

    seen.start = start
    yield seen
    asyncio.set_event_loop(None)


def test_process_says_that_it_is_ready_with_its_signature_and_files(starting, tmp_path):
    (tmp_path / "words_of_ready.py").write_text("WORD = 1\n")
    file = tmp_path / "ready_handler.py"
    file.write_text(
        "import serving\nimport words_of_ready\n\nclass Ready(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        "    def setup(self, folder):\n        type(self).folder = folder\n\n"
        "    def predict(self, x):\n        return x\n"
    )
    fields = starting.start(file)
    assert {*fields} == {"kind", "signature", "files"}
    assert (fields["kind"], fields["files"]) == ("ready", [str(tmp_path / "words_of_ready.py")])
    signature = HandlerSignature.of(fields["signature"])
    assert (signature.name, signature.methods) == ("Ready", ("predict",))
    assert (type(starting.worker), starting.codes) == (worker._Worker, [])
    assert starting.said, "before it waits for jobs"
    assert starting.worker._instance._handler.folder == Path("/h/1")
    assert sys.dont_write_bytecode, "a file may change twice within a second"
    (own,) = starting.logging.pop("handlers")
    assert isinstance(own, worker._LogLines)
    assert starting.logging == {"level": 10, "format": "%(name)s: %(message)s"}


def test_process_with_coroutines_has_a_loop(starting, tmp_path):
    file = tmp_path / "awaited_handler.py"
    file.write_text(
        "import serving\n\nclass Awaited(serving.Handler):\n"
        "    inputs = outputs = {'x': serving.Text()}\n\n"
        "    async def setup(self, folder):\n        type(self).folder = folder\n\n"
        "    async def predict(self, x):\n        return x\n"
    )
    assert starting.start(file)["kind"] == "ready"
    own: Any = starting.worker
    assert type(own) is worker._LoopWorker
    handler: Any = own._instance._handler
    assert handler.folder == Path("/h/1")
    own._loop.close()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("divides_by_zero", "import serving\n1 / 0\n",
         "divides_by_zero.py:2: ZeroDivisionError: division by zero"),
        ("has_no_method", "import serving\nclass A(serving.Handler): ...\n",
         "has_no_method.py:2: A: expected preprocess, postprocess, or predict, got none of them"),
    ],
)  # fmt: skip
def test_process_that_can_not_begin_says_why_in_a_line(name, text, words, starting, tmp_path):
    file = tmp_path / f"{name}.py"
    file.write_text(text)
    assert starting.start(file) == {"kind": "failed", "text": words}
    assert starting.codes == [1]
