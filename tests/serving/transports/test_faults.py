"""Faults while calls wait and run, proved by the engine's record of its runs.

A real server on a real socket, in this process, around an engine whose gate the test opens: so each
fault happens at a moment of the test's choosing.
"""

import asyncio
import json
import logging
import queue
from contextlib import ExitStack, asynccontextmanager, closing
from functools import partial

import grpc
import pytest

from digit_classifier import AsyncClassifier
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from serving.config import BatchingConfig, ServerConfig
from serving.errors import DeadlineExceeded, Unavailable
from serving.model import repository
from serving.model.loaded import LoadedModel
from serving.server.server import Server
from tests.serving.http.peer import HttpPeer
from tests.support.fakes import TIMEOUT_S, GatedModel, images_of, router_of, until
from tests.support.raw import CLASSIFY, GET_MODEL, STREAM, Raw, assert_stopped_until_it_reads
from tests.support.servers import connected, on_both, running_server


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
    await channel.unary_unary(GET_MODEL)(b"", timeout=TIMEOUT_S)


@pytest.fixture
def running(models, transport, monkeypatch):
    """A fresh server."""
    manifest = repository.load_manifest(models / "digits" / "1")
    monkeypatch.setattr("serving.router.usable_cores", lambda: 1)

    @asynccontextmanager
    async def fresh():
        engine = GatedModel(poison=frozenset({13}))
        model = LoadedModel(engine, manifest, "fp32")
        batching = BatchingConfig(max_batch_size=64, queue_capacity=100, max_request_rows=100)
        with closing(router_of(model, batching)) as router:
            config = ServerConfig(
                port=0, metrics_port=0, http_port=0, self_test_interval_s=0, transport=transport
            )
            server = Server(router, config)
            await server.start()
            # On grpcio it watches Health, and sends a server that drains nothing.
            async with AsyncClassifier.connect(
                server.address, timeout_s=TIMEOUT_S, transport="h2"
            ) as client:
                try:
                    yield Running(server, engine, client)
                finally:
                    engine.open(1000)
                    await server.stop(grace_s=0)

    return fresh()


async def ends_well(running):
    running.engine.open(1000)
    assert await running.send(1, 2, 3) == [1, 2, 3]


@on_both
async def test_cancelled_caller_is_never_run_and_its_mates_are(running):
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


@on_both
async def test_deadline_that_passes_in_the_queue_is_never_run(running):
    first = await running.occupy()
    async with AsyncClassifier.connect(
        running.server.address, timeout_s=0.3, transport="h2"
    ) as hasty:
        tasks = [asyncio.create_task(hasty.classify(images_of(41))) for _ in range(50)]
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert {type(outcome) for outcome in outcomes} == {DeadlineExceeded}
    await running.until_waiting(0)
    running.engine.open()
    assert await first == [0]
    await ends_well(running)
    assert running.engine.ran == [[0], [1, 2, 3]]


@on_both
async def test_full_queue_is_refused_within_a_run_and_asks_for_a_pause(running):
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


@on_both
async def test_drain_answers_what_was_accepted_and_refuses_the_rest(running, monkeypatch):
    # Past any deadline: the client asks once, and not again and again.
    monkeypatch.setattr("serving.client.retries._SHORTEST_BACKOFF_S", 3600.0)
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


async def test_drain_over_http_answers_what_was_accepted_and_closes_the_port_last(running):
    peer = HttpPeer(running.server.http_url)
    body = json.dumps({"images": images_of(7).tolist()}).encode()
    ask = partial(asyncio.to_thread, peer.post, "/v1/digits", body, Content_Type="application/json")
    first = asyncio.create_task(ask())
    await asyncio.to_thread(running.engine.wait_until_running)
    drain = await running.begin_drain()
    assert (await asyncio.to_thread(peer.get, "/v2/health/ready")).status == 503
    while (refused := await ask()).status == 200:
        pass
    assert (refused.status, refused.headers["retry-after"]) == (503, "1")
    assert "shutting down" in refused.json["detail"]
    assert not drain.done()
    running.engine.open(1000)
    assert (await drain, (await first).status) == (True, 200)
    with pytest.raises(ConnectionRefusedError):
        await ask()


@on_both
async def test_drain_beside_stopped_bodies_logs_nothing(running, caplog, monkeypatch):
    monkeypatch.setattr("serving.transports.http_port._GRACE_S", 0.1)
    head = b"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
    url = running.server.http_url
    with caplog.at_level(logging.INFO), ExitStack() as stack:
        callers = [stack.enter_context(connected(url)) for _ in range(20)]
        for caller in callers:
            caller.sendall(head)
        await asyncio.to_thread(HttpPeer(url).get, "/v2")  # each has begun
        assert await running.server.drain()
        for caller in callers:
            assert caller.recv(100).startswith(b"HTTP/1.1 503")
    assert not caplog.records


# ClassifyStream: in order, bounded in flight, never rejected half-way


def stream_of(raw):
    """ClassifyStream: bytes in, ClassifyResponses out."""
    return raw.channel.stream_stream(
        STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
    )


def test_stream_answers_while_the_caller_still_sends(raw, images):
    requests: queue.Queue[bytes | None] = queue.Queue()
    responses = stream_of(raw)(iter(requests.get, None), timeout=TIMEOUT_S)
    for size in (1, 300, 2, 1):  # one that comes in many pieces delays none behind it
        requests.put(encode_request(images[:size].tobytes()))
        assert len(next(responses).digits) == size
    requests.put(None)
    assert list(responses) == []


@on_both
def test_streams_larger_than_the_queue_slow_down_and_are_never_rejected(models, images, transport):
    options = ("--queue-capacity", "10", "--max-request-rows", "10", "--transport", transport)
    with running_server(models, *options) as server:
        requests = [encode_request(images[:9].tobytes())] * 20
        all_responses = [stream_of(Raw(server.address))(iter(requests)) for _ in range(8)]
        for responses in all_responses:
            assert sum(1 for _ in responses) == 20


@on_both
def test_stream_whose_caller_stops_reading_is_stopped(server, client, images):
    message = encode_request(images[:100].tobytes())
    assert_stopped_until_it_reads(
        server.address, STREAM, message, lambda: client.classify(images[:1])
    )


def open_stream(channel):
    method = channel.stream_stream(
        STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
    )
    return method()


def message(*values):
    return encode_request(images_of(*values).tobytes())


@on_both
async def test_streams_together_wait_where_their_share_of_the_queue_is_full(running):
    first = await running.occupy()
    async with grpc.aio.insecure_channel(running.server.address) as channel:
        calls = [open_stream(channel) for _ in range(6)]
        for call in calls:
            await call.write(message(*[5] * 30))
        await running.until_waiting(60)  # more than half of the queue's 100
        await round_trip(channel)
        assert running.server.report().num_waiting == 60
        running.engine.open(1000)
        for call in calls:
            assert list((await call.read()).digits) == [5] * 30
            await call.done_writing()
            assert await call.read() is grpc.aio.EOF
    assert await first == [0]


@on_both
async def test_drain_ends_a_stream_after_the_answers_to_what_was_accepted(running):
    first = await running.occupy()
    async with grpc.aio.insecure_channel(running.server.address) as channel:
        call = open_stream(channel)
        await call.write(message(5))
        await running.until_waiting(1)
        drain = await running.begin_drain()
        await call.write(message(6))
        await round_trip(channel)
        running.engine.open(3)
        assert list((await call.read()).digits) == [5]
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert caught.value.code() is grpc.StatusCode.UNAVAILABLE
        assert await drain
        assert await first == [0]
        assert running.engine.ran == [[0], [5]]
