"""Calls that a coroutine awaits, of a batcher whose owner is the test's thread."""

import asyncio
import math
import time

import pytest

from serving.batching.awaited import AsyncCaller, submit, submit_of_stream, submit_parts
from serving.batching.batcher import Batcher
from serving.batching.run import NEVER
from serving.config import BatchingConfig
from serving.errors import DeadlineExceeded, ModelError, Overloaded
from serving.telemetry.metrics import Metrics
from tests.support.fakes import FakeModel, FakeOwner, FakeRequest, images_of

SIZES = BatchingConfig(max_batch_size=4, queue_capacity=4, max_request_rows=4)


class Setting:
    """A batcher, its owner and a caller."""

    def __init__(self, poison=()):
        self.model = FakeModel(poison=frozenset(poison))
        self.model.inline_rows = 128
        self.batcher = Batcher(self.model, SIZES, Metrics(), name="m")
        self.owner = FakeOwner(self.batcher)
        self.peer = AsyncCaller("there")

    def ask(self, value, deadline_s=math.inf, **options):
        """Submit a call; it waits until the owner works."""
        encoder = FakeRequest(value)
        encoder.target = self.batcher
        message = images_of(value).tobytes()
        call = submit(self.owner, self.peer, message, encoder, deadline_s, **options)
        return asyncio.ensure_future(call)

    @property
    def is_forgotten(self):
        """Whether nothing is left of the calls."""
        return not (self.peer.streams or self.peer.headers)


async def test_call_gets_its_answer_and_the_run():
    setting = Setting()
    before_s = time.monotonic()
    first, second = setting.ask(1), setting.ask(2, headers={"a": "b"})
    await asyncio.sleep(0)
    assert len(setting.peer.streams) == 2
    seen = [setting.peer.metadata(each) for each in sorted(setting.peer.streams)]
    assert seen == [{}, {"a": "b"}]
    setting.owner.work()
    (one, run), (other, same) = await asyncio.gather(first, second)
    assert (one, other) == (("1", [1]), ("1", [2]))
    assert run is same
    assert before_s <= run[0] <= run[1] <= time.monotonic()
    assert run[2:] == ("m", "1", 2)
    assert setting.is_forgotten


async def test_cancelled_call_is_not_run():
    setting = Setting()
    gone, stays = setting.ask(1, headers={"a": "b"}), setting.ask(2)
    await asyncio.sleep(0)
    gone.cancel()
    with pytest.raises(asyncio.CancelledError):
        await gone
    assert len(setting.peer.streams) == 1
    assert not setting.peer.headers
    setting.owner.work()
    assert (await stays)[0] == ("1", [2])
    assert setting.model.ran == [[2]]
    assert setting.is_forgotten


async def test_call_that_is_cancelled_after_its_run_has_no_second_outcome():
    setting = Setting()
    for reason in (None, 13):
        setting.model.poison = frozenset({reason})
        call = setting.ask(13)
        await asyncio.sleep(0)
        setting.owner.work()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.sleep(0)
    assert setting.is_forgotten


async def test_failure_is_raised():
    setting = Setting(poison=[13])
    call = setting.ask(13)
    await asyncio.sleep(0)
    setting.owner.work()
    with pytest.raises(ModelError):
        await call
    assert setting.is_forgotten


@pytest.mark.parametrize("left_s", [-1.0, 0.001])
async def test_late_call_is_not_run(left_s):
    setting = Setting()
    call = setting.ask(1, time.monotonic() + left_s)
    with pytest.raises(DeadlineExceeded):
        await call
    setting.owner.work()
    assert not setting.model.ran
    assert setting.is_forgotten


@pytest.mark.parametrize(("enter", "most"), [(None, 8), (submit_of_stream, 2)])
async def test_full_queue_refuses_a_call(enter, most):
    """A stream's messages get half of it; a caller without others, twice as much."""
    setting = Setting()
    calls = [setting.ask(number, enter=enter) for number in range(10)]
    await asyncio.sleep(0)
    setting.owner.work()
    outcomes = await asyncio.gather(*calls, return_exceptions=True)
    refused = [isinstance(each, Overloaded) for each in outcomes]
    assert refused == [False] * most + [True] * (10 - most)
    assert setting.is_forgotten


class InParts(Setting):
    """One call whose parts the test makes."""

    def __init__(self):
        super().__init__()
        self.entered, self.resumed = [], []
        message, encoder = images_of(1).tobytes(), FakeRequest(1)
        self.parts = submit_parts(
            self.owner, self.peer, message, encoder, math.inf, self.enter, {"a": "b"}
        )

    def enter(self, group):
        self.entered.append(group)
        return 1

    async def begin(self):
        """Ask for the first part; returns what waits for it, and the group."""
        first = asyncio.ensure_future(anext(self.parts))
        await asyncio.sleep(0)
        self.owner.work()
        return first, self.entered[0]

    def part(self, text):
        group = self.entered[0]
        group.sink.take_part(group, text, lambda: self.resumed.append(text))

    async def next(self):
        return await asyncio.wait_for(anext(self.parts), 20.0)


@pytest.mark.parametrize("last", ["c", None])
async def test_parts_are_made_as_they_are_taken(last):
    setting = InParts()
    first, group = await setting.begin()
    assert setting.peer.metadata(group.streams[0]) == {"a": "b"}
    setting.part("a")
    assert await first == "a"
    setting.owner.work()
    assert setting.resumed == [], "nobody has asked for the next one"
    second = asyncio.ensure_future(anext(setting.parts))
    await asyncio.sleep(0)
    setting.owner.work()
    assert setting.resumed == ["a"]
    setting.part("b")
    assert await second == "b"
    group.sink.answer(group, [last], NEVER)
    if last is not None:
        assert await setting.next() == last
    with pytest.raises(StopAsyncIteration):
        await setting.next()
    assert setting.is_forgotten


async def test_parts_may_end_in_an_error():
    setting = InParts()
    first, group = await setting.begin()
    setting.part("a")
    group.sink.fail(group, ModelError("it broke"))
    assert await first == "a"
    with pytest.raises(ModelError, match="it broke"):
        await setting.next()
    assert setting.is_forgotten


async def test_parts_that_nobody_takes_are_not_made():
    setting = InParts()
    first, _ = await setting.begin()
    setting.part("a")
    await first
    posted = []
    setting.owner.post = lambda task: posted.append((task, setting.is_forgotten))
    await setting.parts.aclose()
    ((look, is_forgotten),) = posted
    assert is_forgotten, "the owner, on its thread, may look at once"
    look()
    assert setting.is_forgotten
    assert setting.resumed == ["a"], "it looks whether anybody waits, and ends"


async def test_parts_are_refused_or_late_as_calls_are():
    setting = Setting()
    message = images_of(1).tobytes()
    refused = submit_parts(
        setting.owner, setting.peer, message, FakeRequest(1), math.inf, lambda group: 0
    )
    first = asyncio.ensure_future(anext(refused))
    await asyncio.sleep(0)
    setting.owner.work()
    with pytest.raises(Overloaded):
        await first
    late = submit_parts(
        setting.owner, setting.peer, message, FakeRequest(1), time.monotonic() - 1.0, lambda _: 1
    )
    with pytest.raises(DeadlineExceeded):
        await anext(late)
    assert setting.is_forgotten


def test_caller_begins_without_calls():
    peer = AsyncCaller("there")
    assert (peer.address, peer.gave_up_s, peer.metadata(1)) == ("there", -math.inf, {})
    assert NEVER == (0.0, 0.0, "", "", 0)
