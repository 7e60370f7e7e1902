"""Calls that an event loop awaits: which run together, and whose outcome is whose."""

import asyncio

import pytest

from serving.batching.awaited import AwaitedCalls
from serving.predictions import Predictions
from tests.support.fakes import FakeModel, GatedModel, images_of


def calls_of(model, max_batch_size=8, num_threads=1):
    def classify(images):
        return Predictions.of(model.classify(images), "1")

    return AwaitedCalls(asyncio.get_running_loop(), classify, max_batch_size, num_threads)


@pytest.fixture
def gated():
    model = GatedModel()
    yield model
    model.open(100)


async def test_calls_of_one_turn_of_the_loop_run_together():
    model = FakeModel()
    calls = calls_of(model)
    answers = await asyncio.gather(*(calls.classify(images_of(n, 9 - n)) for n in range(4)))
    assert [answer.digits.tolist() for answer in answers] == [[0, 9], [1, 8], [2, 7], [3, 6]]
    assert model.ran == [[0, 9, 1, 8, 2, 7, 3, 6]]


async def test_calls_during_a_run_are_the_next_batch(gated):
    calls = calls_of(gated)
    first = asyncio.create_task(calls.classify(images_of(1)))
    await asyncio.to_thread(gated.wait_until_running)
    later = [asyncio.create_task(calls.classify(images_of(n))) for n in (2, 3)]
    await asyncio.sleep(0)
    gated.open(2)
    answers = await asyncio.gather(first, *later)
    assert [answer[0].digit for answer in answers] == [1, 2, 3]
    assert gated.ran == [[1], [2, 3]]


async def test_full_batches_run_side_by_side(gated):
    calls = calls_of(gated, max_batch_size=2, num_threads=2)
    tasks = [asyncio.create_task(calls.classify(images_of(n))) for n in range(5)]
    for _ in range(2):
        await asyncio.to_thread(gated.wait_until_running)
    gated.open(100)
    await asyncio.gather(*tasks)
    assert sorted(gated.ran) == [[0, 1], [2, 3], [4]]


async def test_failed_run_fails_only_the_guilty_call():
    calls = calls_of(FakeModel(poison=frozenset({2})))
    coroutines = [calls.classify(images_of(n)) for n in (1, 2, 3)]
    first, second, third = await asyncio.gather(*coroutines, return_exceptions=True)
    assert isinstance(first, Predictions)
    assert isinstance(second, RuntimeError)
    assert isinstance(third, Predictions)
    assert third[0].digit == 3


async def test_cancelled_calls_are_not_run(gated):
    calls = calls_of(gated)
    tasks = [asyncio.create_task(calls.classify(images_of(n))) for n in (1,)]
    await asyncio.to_thread(gated.wait_until_running)
    tasks += [asyncio.create_task(calls.classify(images_of(n))) for n in (2, 3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # its run is on, and its answer is nobody's
    tasks[1].cancel()
    gated.open(2)
    assert (await tasks[2])[0].digit == 3
    assert gated.ran == [[1], [3]]


async def test_executor_that_was_shut_down_is_an_error_not_a_wait():
    await asyncio.get_running_loop().shutdown_default_executor()
    with pytest.raises(RuntimeError, match="shutdown"):
        await calls_of(FakeModel()).classify(images_of(1))
