"""The loop on the thread of grpcio's event loop: its turns come, and it frees what is replaced."""

import asyncio
import gc
import weakref
from dataclasses import replace

from serving.batching.awaited import AsyncCaller, submit
from serving.batching.run import Rows
from serving.config import BatchingConfig
from serving.model.loaded import LoadedModel
from serving.protocols.method import BatchedUnary
from serving.telemetry.logs import request_fields
from serving.tensors import Signature
from serving.transports.asyncio_loop import AsyncioLoop
from tests.support.fakes import (
    MANIFEST,
    TIMEOUT_S,
    FakeModel,
    images_of,
    router_of,
    until,
    versions_of,
)


def run(scenario):
    """Run a scenario as the server does: uvloop's timers count milliseconds, and may be early."""
    import uvloop

    uvloop.run(asyncio.wait_for(scenario, 2 * TIMEOUT_S))


def loaded(version="1"):
    return LoadedModel(FakeModel(version), replace(MANIFEST, version=version), "fp32", 64)


def test_every_call_that_waits_for_others_is_run():
    async def scenario():
        router = router_of(loaded(), BatchingConfig(max_queue_delay_s=0.0024))
        loop, target = AsyncioLoop(router), router.find("digits")
        loop.start()
        for number in range(100):
            await asyncio.sleep(0.0003 * (number % 7))
            call = submit(loop, AsyncCaller(""), images_of(3).tobytes(), Rows(target, None, 1))
            await asyncio.wait_for(call, TIMEOUT_S)
        loop.stop()

    run(scenario())


def test_only_one_turn_is_planned(monkeypatch):
    async def scenario():
        loop = AsyncioLoop(router_of(loaded()))
        loop.start()
        turns: list[int] = []

        def turn(ready):
            turns.append(len(turns))
            if len(turns) < 200:
                loop.defer(lambda: None)  # there is more to do, so it goes on at once

        monkeypatch.setattr(loop, "turn", turn)
        for _ in range(20):  # as connections that are ready do
            loop._take_turn()
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        assert len(turns) <= 22
        monkeypatch.undo()
        loop.stop()

    run(scenario())


def test_replaced_version_is_freed_and_layouts_of_another_signature_are_forgotten():
    async def scenario():
        first = loaded()
        router = router_of(first)
        read = None
        method = BatchedUnary(path="", name="", read=read)
        method.known[b"x"] = Rows(router.find("digits"), None, 1)
        loop = AsyncioLoop(router, [method])
        loop.start()
        image, target = images_of(3).tobytes(), router.find("digits")
        await submit(loop, AsyncCaller(""), image, Rows(target, None, 1))
        trace = weakref.ref(first.engine)
        del first
        await asyncio.to_thread(router.change, "digits", versions_of(loaded("2")))
        await until(lambda: [each.model.version for each in router.served] == ["2"])
        await submit(loop, AsyncCaller(""), image, Rows(target, None, 1))
        gc.collect()
        assert trace() is None
        assert method.known
        other = replace(loaded("3").manifest, signature=Signature((28, 28), 11))
        await asyncio.to_thread(
            router.change, "digits", versions_of(LoadedModel(FakeModel("3"), other, "fp32", 64))
        )
        await until(lambda: not method.known)
        loop.stop()

    run(scenario())


def test_run_that_ends_after_the_loop_is_ignored():
    loops: list[AsyncioLoop] = []

    async def scenario():
        loops.append(AsyncioLoop(router_of(loaded())))
        loops[0].start()
        loops[0].stop()

    run(scenario())
    loops[0].post(lambda: None)


def test_turn_logs_nothing_of_the_call_that_woke_it():
    async def scenario():
        loop, seen = AsyncioLoop(router_of(loaded())), list[object]()
        loop.start()
        request_fields.set({"request_id": "a call's"})
        loop.post(lambda: seen.append(request_fields.get()))
        await until(lambda: bool(seen))
        assert seen == [{}]
        loop.stop()

    run(scenario())
