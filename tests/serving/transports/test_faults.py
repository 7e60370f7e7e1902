"""Faults while calls wait and run, proved by the engine's record of its runs.

A real server on a real socket, in this process, around an engine whose gate the test opens: so each
fault happens at a moment of the test's choosing.
"""

import asyncio
from contextlib import asynccontextmanager, closing

import grpc
import pytest

from serving import AsyncClient
from serving.config import BatchingConfig, ServerConfig
from serving.digits.wire import encode_request
from serving.errors import DeadlineExceeded, Unavailable
from serving.model import repository
from serving.model.engine import LoadedModel
from serving.server.server import Server
from tests.support.fakes import TIMEOUT_S, GatedModel, images_of, router_of, until
from tests.support.servers import on_both

CLASSIFY = "/digits.v1.DigitClassifier/Classify"


class Running:
    """A server around a gated engine, and a client of it."""

    def __init__(self, server, engine, client):
        self.server = server
        self.engine = engine
        self.client = client

    def send(self, *values):
        """Classify one image per value, in the background; the right answer is value % 10."""

        async def digits():
            predictions = await self.client.classify(images_of(*values))
            return [int(digit) for digit in predictions.digits]

        return asyncio.create_task(digits())

    async def occupy(self):
        """Send an image and wait until the engine has it; it is held until the gate opens."""
        task = self.send(0)
        await asyncio.to_thread(self.engine.wait_until_running)
        return task

    async def until(self, holds):
        """Wait until the server's own report says something; in vain, the test fails."""
        await until(lambda: holds(self.server.report()))

    async def until_waiting(self, num_images):
        """Wait until as many images wait for a run."""
        await self.until(lambda report: report.num_waiting == num_images)

    async def begin_drain(self):
        """Drain in the background; calls sent from here on are refused."""
        drain = asyncio.create_task(self.server.drain())
        await self.until(lambda report: not report.is_serving)
        return drain


async def round_trip(channel):
    """Have a channel's server read all that was sent before: it reads in order."""
    await channel.unary_unary("/digits.v1.DigitClassifier/GetModel")(b"", timeout=TIMEOUT_S)


@pytest.fixture
def run(models, transport, monkeypatch):
    """Run a scenario against a fresh server; afterwards it must still answer correctly."""
    manifest = repository.load_manifest(models / "digits" / "1")
    monkeypatch.setattr("serving.router.usable_cores", lambda: 1)

    @asynccontextmanager
    async def running():
        engine = GatedModel(poison=frozenset({13}))
        model = LoadedModel(engine, manifest, "fp32")
        batching = BatchingConfig(max_batch_size=64, queue_capacity=100, max_request_images=100)
        with closing(router_of(model, batching)) as router:
            config = ServerConfig(
                port=0, metrics_port=0, self_test_interval_s=0, transport=transport
            )
            server = Server(router, config)
            await server.start()
            # On grpcio it watches Health, and sends a server that drains nothing.
            async with AsyncClient(server.address, timeout_s=TIMEOUT_S, transport="h2") as client:
                try:
                    yield Running(server, engine, client)
                finally:
                    engine.open(1000)
                    await server.stop(grace_s=0)

    def run(scenario):
        async def whole():
            async with running() as server:
                await scenario(server)

        asyncio.run(asyncio.wait_for(whole(), 3 * TIMEOUT_S))

    return run


async def ends_well(running):
    running.engine.open(1000)
    assert await running.send(1, 2, 3) == [1, 2, 3]


@on_both
def test_cancelled_caller_is_never_run_and_its_mates_are(run):
    async def scenario(running):
        first = await running.occupy()
        cancelled, mate = running.send(41), running.send(42)
        await running.until_waiting(2)
        cancelled.cancel()
        await running.until_waiting(1)
        running.engine.open(2)
        assert [await first, await mate] == [[0], [2]]
        assert running.engine.ran == [[0], [42]]
        assert running.server.report().counts.requests["Classify", "CANCELLED"] == 1
        await ends_well(running)

    run(scenario)


@on_both
def test_deadline_that_passes_in_the_queue_is_never_run(run):
    async def scenario(running):
        first = await running.occupy()
        async with AsyncClient(running.server.address, timeout_s=0.3, transport="h2") as hasty:
            tasks = [asyncio.create_task(hasty.classify(images_of(41))) for _ in range(50)]
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
        await running.until_waiting(0)
        running.engine.open()
        assert await first == [0]
        await ends_well(running)
        assert running.engine.ran == [[0], [1, 2, 3]]

    run(scenario)


@on_both
def test_full_queue_is_refused_within_a_run_and_asks_for_a_pause(run):
    async def scenario(running):
        first = await running.occupy()
        accepted = running.send(*range(20, 120))
        await running.until_waiting(100)
        async with grpc.aio.insecure_channel(running.server.address) as channel:
            refused = channel.unary_unary(CLASSIFY)(encode_request(images_of(*range(20)).tobytes()))
            assert await refused.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert ("grpc-retry-pushback-ms", "100") in tuple(await refused.trailing_metadata())
        running.engine.open(100)
        assert await first == [0]
        assert await accepted == [value % 10 for value in range(20, 120)]
        await ends_well(running)

    run(scenario)


@on_both
def test_drain_answers_what_was_accepted_and_refuses_the_rest(run, monkeypatch):
    monkeypatch.setattr(
        "serving.client.transport._RETRYABLE", ()
    )  # the client would ask again and again

    async def scenario(running):
        first = await running.occupy()
        waiting = running.send(5)
        await running.until_waiting(1)
        drain = await running.begin_drain()
        late = running.send(6)
        refused = ("Classify", "UNAVAILABLE")
        await running.until(lambda report: report.counts.requests[refused] == 1)
        running.engine.open(3)
        assert await drain
        assert await first == [0]
        with pytest.raises(Unavailable):
            await late
        assert await waiting == [5]
        assert running.engine.ran == [[0], [5]]

    run(scenario)


def test_large_request_does_not_hold_up_a_small_one(run):
    async def scenario(running):
        await running.occupy()
        large = running.send(*[9] * 90)
        await running.until_waiting(90)
        own_connection = (("grpc.use_local_subchannel_pool", 1),)
        async with grpc.aio.insecure_channel(running.server.address, own_connection) as channel:
            small = channel.unary_unary(CLASSIFY)(encode_request(images_of(7).tobytes()))
            await running.until_waiting(91)
            running.engine.open(2)  # the first one's run, and one more
            assert (await small)[:3] == b"\x0a\x01\x07"
        assert not large.done()
        await ends_well(running)
        assert await large == [9] * 90

    run(scenario)
