"""Calls that an event loop awaits: which run together, and whose outcome is whose."""

import asyncio

import pytest

from serving.embedded import JoinedCalls
from serving.tensors import Outputs
from tests.support.fakes import FakeModel, GatedModel, images_of


def calls_of(model, max_batch_size=8, num_threads=1):
    def run(feeds):
        return Outputs({"probabilities": model.classify(feeds["images"])}, "1")

    return JoinedCalls(asyncio.get_running_loop(), run, max_batch_size, num_threads)


def feeds_of(*values):
    return {"images": images_of(*values)}


def digits_in(outputs):
    return outputs["probabilities"].argmax(axis=1).tolist()


@pytest.fixture
def gated():
    model = GatedModel()
    yield model
    model.open(100)


async def test_calls_of_one_turn_of_the_loop_run_together():
    model = FakeModel()
    calls = calls_of(model)
    answers = await asyncio.gather(*(calls.run(feeds_of(n, 9 - n)) for n in range(4)))
    assert [digits_in(answer) for answer in answers] == [[0, 9], [1, 8], [2, 7], [3, 6]]
    assert model.ran == [[0, 9, 1, 8, 2, 7, 3, 6]]


async def test_calls_during_a_run_are_the_next_batch(gated):
    calls = calls_of(gated)
    first = asyncio.create_task(calls.run(feeds_of(1)))
    await asyncio.to_thread(gated.wait_until_running)
    later = [asyncio.create_task(calls.run(feeds_of(n))) for n in (2, 3)]
    await asyncio.sleep(0)
    gated.open(2)
    answers = await asyncio.gather(first, *later)
    assert [digits_in(answer) for answer in answers] == [[1], [2], [3]]
    assert gated.ran == [[1], [2, 3]]


async def test_full_batches_run_side_by_side(gated):
    calls = calls_of(gated, max_batch_size=2, num_threads=2)
    tasks = [asyncio.create_task(calls.run(feeds_of(n))) for n in range(5)]
    for _ in range(2):
        await asyncio.to_thread(gated.wait_until_running)
    gated.open(100)
    await asyncio.gather(*tasks)
    assert sorted(gated.ran) == [[0, 1], [2, 3], [4]]


async def test_failed_run_fails_only_the_poison_call():
    calls = calls_of(FakeModel(poison=frozenset({2})))
    coroutines = [calls.run(feeds_of(n)) for n in (1, 2, 3)]
    first, second, third = await asyncio.gather(*coroutines, return_exceptions=True)
    assert isinstance(first, Outputs)
    assert isinstance(second, RuntimeError)
    assert isinstance(third, Outputs)
    assert digits_in(third) == [3]


async def test_cancelled_calls_are_not_run(gated):
    calls = calls_of(gated)
    tasks = [asyncio.create_task(calls.run(feeds_of(n))) for n in (1,)]
    await asyncio.to_thread(gated.wait_until_running)
    tasks += [asyncio.create_task(calls.run(feeds_of(n))) for n in (2, 3)]
    await asyncio.sleep(0)
    tasks[0].cancel()  # its run is on, and its answer is nobody's
    tasks[1].cancel()
    gated.open(2)
    assert digits_in(await tasks[2]) == [3]
    assert gated.ran == [[1], [3]]


async def test_executor_that_was_shut_down_is_an_error_not_a_wait():
    await asyncio.get_running_loop().shutdown_default_executor()
    with pytest.raises(RuntimeError, match="shutdown"):
        await calls_of(FakeModel()).run(feeds_of(1))


async def test_rows_of_cancelled_calls_count_no_more(gated):
    """Else what waits would seem enough for a run of its own, and fewer calls would be joined."""
    calls = calls_of(gated, max_batch_size=2, num_threads=2)
    first = asyncio.create_task(calls.run(feeds_of(1)))
    await asyncio.to_thread(gated.wait_until_running)
    gone = asyncio.create_task(calls.run(feeds_of(2)))
    await asyncio.sleep(0)
    gone.cancel()
    gated.open(1)
    await first
    assert calls._num_rows == 0
    second = asyncio.create_task(calls.run(feeds_of(3)))
    await asyncio.to_thread(gated.wait_until_running)
    third = asyncio.create_task(calls.run(feeds_of(4)))
    await asyncio.sleep(0)
    fourth = asyncio.create_task(calls.run(feeds_of(5)))
    await asyncio.sleep(0)
    gated.open(100)
    await asyncio.gather(second, third, fourth)
    assert sorted(gated.ran) == [[1], [3], [4, 5]]
