"""Handlers with `async def` in this process: `Model` and `AsyncModel`."""

import asyncio
import gc
import threading
from concurrent.futures import CancelledError
from contextlib import aclosing
from types import SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

import serving
from serving.handlers.local import LocalHandler, _Loop
from serving.handlers.stepped import stepped
from tests.serving.handlers import behaviours
from tests.serving.handlers.async_behaviours import AsyncAround, AsyncStory, Tasks
from tests.serving.handlers.conftest import at_once
from tests.support.fakes import TIMEOUT_S, until
from tests.support.servers import wait_until


@pytest.fixture
def others():
    """Models for `uses`: one at once, and one that is awaited."""
    with serving.Model.load(handler=behaviours.Behaviours) as model:
        story = serving.AsyncModel.load(handler=behaviours.Story)
        yield {"behaviours": model, "story": story}


def test_threads_have_calls_in_hand_at_a_time(others):
    with serving.Model.load(handler=Tasks, models=others) as model:

        def say(text):
            return model.infer([text])["answer"][0]

        threads, outcomes = at_once(*[lambda: say("meet 8")] * 8)
        for thread in threads:
            thread.join()
        assert outcomes == ["MEET 8"] * 8
        assert say("ask say hello") == "SAY HELLO"
        assert say("ask_at_once say hello") == "SAY HELLO"
        assert say("tell once upon a time") == "once upon"
        with pytest.raises(serving.InvalidRequest, match="no"):
            say("refuse no")
        with pytest.raises(ValueError, match="no good"):
            say("raise no good")


async def test_event_loop_has_calls_in_hand_at_a_time_and_cancels_them(others):
    async with serving.AsyncModel.load(handler=Tasks, models=others) as model:

        async def say(text):
            return (await model.infer([text]))["answer"][0]

        assert await asyncio.gather(*(say("meet 100") for _ in range(100)))
        hanging = asyncio.create_task(say("hang"))
        while await say("hanging") != "1":
            await asyncio.sleep(0)
        hanging.cancel()
        with pytest.raises(asyncio.CancelledError):
            await hanging
        while await say("cancelled") != "1":
            await asyncio.sleep(0)
        assert await say("ask say hello") == "SAY HELLO"
        assert await say("tell once upon a time") == "once upon"
        with pytest.raises(serving.InvalidRequest, match="no"):
            await say("refuse no")


async def test_model_runs_between_methods_with_and_without_async(network):
    feeds = {"text": ["banana", "kiwi"], "bias": np.ones((2, 2), np.float32)}
    with serving.Model.load(network, handler=behaviours.Around) as model:
        expected = model.infer(feeds)
    with serving.Model.load(network, handler=AsyncAround) as model:
        found = model.infer(feeds)
    async with serving.AsyncModel.load(network, handler=AsyncAround) as model:
        awaited = await model.infer(feeds)
    for each in (found, awaited):
        assert each["text"].tolist() == expected["text"].tolist()
        assert np.array_equal(each["y"], expected["y"])


def test_parts_are_yielded_and_a_generator_that_is_left_ends():
    with serving.Model.load(handler=AsyncStory) as model:
        parts = [each["token"].tolist() for each in model.stream(["a b", "c"])]
        assert parts == [["a", "a"], ["b", "b"]]
        first = model.stream(["a b"])
        assert next(first)["open"] == 1
        (part,) = model.stream(["a"])
        assert part["open"] == 2
        first.close()
        (part,) = model.stream(["a"])
        assert part["open"] == 1
        with pytest.raises(serving.Unsupported, match="AsyncStory answers in parts: call"):
            model.infer(["a"])
        with pytest.raises(serving.InvalidRequest, match="no"):
            [*model.stream(["a refuse:no"])]


async def test_parts_are_yielded_to_an_event_loop():
    async with serving.AsyncModel.load(handler=AsyncStory) as model:
        assert [each["token"][0] async for each in model.stream(["a b"])] == ["a", "b"]
        async with aclosing(model.stream(["a hang: b"])) as parts:
            await anext(parts)
            step = asyncio.ensure_future(anext(parts))
            (part,) = [each async for each in model.stream(["a"])]
            assert part["open"] == 2
            step.cancel()
            with pytest.raises(asyncio.CancelledError):
                await step
        (part,) = [each async for each in model.stream(["a"])]
        assert part["open"] == 1


def loops():
    return {each for each in threading.enumerate() if each.name == "handler-loop"}


def test_loop_ends_with_its_model():
    before = loops()
    model = serving.Model.load(handler=AsyncStory)
    (loop,) = loops() - before
    parts = model.stream(["a b"])
    next(parts)
    model.close()
    del model
    gc.collect()
    assert [each["token"][0] for each in parts] == ["b"]
    del parts
    gc.collect()
    wait_until(lambda: not loop.is_alive())


def test_generator_that_ends_with_its_model_holds_nobody():
    before = loops()
    model = serving.Model.load(handler=AsyncStory)
    (loop,) = loops() - before
    circle: list[Any] = [model.stream(["a b"]), model]
    next(circle[0])
    circle.append(circle)
    del model, circle
    gc.collect()
    wait_until(lambda: not loop.is_alive())


def test_setup_that_fails_is_raised_and_its_loop_ends():
    class Fails(Tasks):
        async def setup(self, folder):
            raise RuntimeError("no store")

    before = loops()
    with pytest.raises(RuntimeError, match="no store") as caught:
        serving.Model.load(handler=Fails)
    (loop,) = loops() - before
    del caught
    gc.collect()
    wait_until(lambda: not loop.is_alive())


def test_loop_that_is_closed_takes_no_step():
    """A step that it took would never end, nor who waits for it."""

    async def step():
        return 1

    loop = _Loop()
    assert loop.run(step()).result() == 1
    loop.close()
    with pytest.raises(CancelledError):
        loop.run(step())


def test_thread_of_a_model_does_not_keep_its_program_alive():
    before = loops()
    model = serving.Model.load(handler=AsyncStory)
    (loop,) = loops() - before
    assert loop.daemon
    model.close()


def numbers(done, hold=None):
    """A generator of 1, 2 and 3; the second step may have to wait."""
    try:
        yield 1
        if hold is not None:
            hold.inside.set()
            assert hold.go_on.wait(TIMEOUT_S)
            done.append("stepped")
        yield 2
        yield 3
    finally:
        done.append("closed")


async def test_generator_is_stepped_on_threads_and_closed_where_it_is_left():
    done: list[str] = []
    assert [each async for each in stepped(numbers(done))] == [1, 2, 3]
    assert done == ["closed"]
    parts = stepped(numbers(done))
    assert await anext(parts) == 1
    await parts.aclose()
    assert done == ["closed"] * 2


async def test_generator_that_is_cancelled_in_its_step_is_closed_behind_it():
    done: list[str] = []
    hold: Any = SimpleNamespace(inside=threading.Event(), go_on=threading.Event())
    parts = stepped(numbers(done, hold))
    assert await anext(parts) == 1
    step = asyncio.ensure_future(anext(parts))
    await until(hold.inside.is_set)
    step.cancel()
    await asyncio.sleep(0)
    assert done == [], "it is in its step"
    hold.go_on.set()
    with pytest.raises(asyncio.CancelledError):
        await step
    assert done == ["stepped", "closed"]
    with pytest.raises(StopAsyncIteration):
        await anext(parts)


class Notes(serving.Handler):
    """Notes what happens to its generator; each text is a part."""

    inputs: ClassVar = {"text": serving.Text()}
    outputs: ClassVar = {"text": serving.Text()}
    done: ClassVar[list[str]] = []

    def predict(self, text, parameters):
        try:
            for word in text[0].split():
                yield [f"{word} {parameters.get('top')}"]
        finally:
            self.done.append("closed")


class NotesAsync(Notes):
    async def predict(self, text, parameters):
        try:
            for word in text[0].split():
                yield [f"{word} {parameters.get('top')}"]
        finally:
            self.done.append("closed")


@pytest.mark.parametrize("handler", [Notes, NotesAsync])
async def test_generator_of_a_caller_who_takes_no_further_part_is_closed(handler, monkeypatch):
    handler.done.clear()
    kept: list[Any] = []  # else the collector would close them, too
    begin = LocalHandler._steps

    def begun(self, *args):
        kept.append(begin(self, *args))
        return kept[-1]

    monkeypatch.setattr(LocalHandler, "_steps", begun)
    with serving.Model.load(handler=handler) as model:
        parts = model.stream(["a b"], parameters={"top": 3})
        assert next(parts)["text"].tolist() == ["a 3"]
        parts.close()
        assert handler.done == ["closed"]
        assert [each["text"][0] for each in model.stream(["a b"])] == ["a None", "b None"]
        assert handler.done == ["closed"] * 2
    async with serving.AsyncModel.load(handler=handler) as awaited:
        async with aclosing(awaited.stream(["a b"], parameters={"top": 3})) as found:
            assert (await anext(found))["text"].tolist() == ["a 3"]
            assert handler.done == ["closed"] * 2
        assert handler.done == ["closed"] * 3, "its end is awaited"
