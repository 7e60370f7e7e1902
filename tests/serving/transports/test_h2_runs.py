"""Runs on the loop's own thread, proved by the engine's record of its runs.

The loop reads nothing while the engine holds it: so calls sent meanwhile are read together, and
makes one batch.
"""

import asyncio
import itertools
import threading
from contextlib import closing
from dataclasses import dataclass, replace

import grpc
import pytest
from hyperframe.frame import DataFrame, HeadersFrame, PingFrame, WindowUpdateFrame

from digit_classifier.methods import methods as digits_methods
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from serving.batching.awaited import AsyncCaller, submit
from serving.batching.run import Rows
from serving.config import BatchingConfig, ServerConfig
from serving.http2.hpack import encode_literally
from serving.model.loaded import LoadedModel
from serving.router import Router
from serving.transports.h2_server import H2Server
from serving.transports.port_limits import PortLimits
from tests.support.fakes import (
    MANIFEST,
    TIMEOUT_S,
    FakeModel,
    GatedModel,
    images_of,
    router_of,
    versions_of,
)
from tests.support.h2_server import h2_server
from tests.support.raw import CLASSIFY, STREAM
from tests.support.wire import Connection, message, request_headers

GUILTY = 13


def request(*values):
    return message(encode_request(images_of(*values).tobytes()))


def digits(reply):
    return list(digits_pb2.ClassifyResponse.FromString(reply.body[5:]).digits)


@dataclass
class Held:
    """A server whose loop runs the images itself, and a connection to it."""

    engine: GatedModel
    router: Router
    address: str
    connection: Connection

    def occupy(self):
        """Send call 1 and wait until the engine has it; it is held until the gate opens."""
        self.connection.call(1, request(0))
        self.engine.wait_until_running()

    def frames(self, stream, body, **changed):
        """Build a whole call."""
        head = self.connection.headers(stream, request_headers(**changed))
        return [head, DataFrame(stream, body, flags=["END_STREAM"])]

    def assert_well(self, stream):
        """Check that the server still answers."""
        self.engine.open(1000)
        self.connection.call(stream, request(7))
        assert digits(self.connection.reply(stream)) == [7]

    @property
    def counts(self):
        """The calls by method and status, once a run's end is counted."""
        self.connection.ping()
        return self.router.metrics.snapshot().requests


@pytest.fixture
def batching():
    return BatchingConfig(max_batch_size=64, spot_checks="off")  # the rows of runs are counted


@pytest.fixture
def inline_rows():
    return 64


@pytest.fixture
def held(batching, inline_rows):
    engine = GatedModel(poison=frozenset({GUILTY}))
    model = LoadedModel(engine, MANIFEST, "fp32", inline_rows)
    limits = PortLimits(max_message_bytes=1_000_000)
    with (
        closing(router_of(model, batching)) as router,
        h2_server(router, limits) as address,
        Connection(address, TIMEOUT_S) as connection,
    ):
        connection.open_wide()
        try:
            yield Held(engine, router, address, connection)
        finally:
            engine.open(1000)


def test_guilty_request_of_a_stream_ends_it_after_the_earlier_answers(held):
    held.occupy()
    body = b"".join(request(value) for value in (1, GUILTY, 2))
    held.connection.send(*held.frames(3, body, __path=STREAM))
    held.engine.open(1000)
    reply = held.connection.reply(3)
    assert reply.status == "INTERNAL"
    assert digits(reply) == [1]
    held.assert_well(5)
    assert held.counts == {("Classify", "OK"): 2, ("ClassifyStream", "INTERNAL"): 1}


@pytest.mark.parametrize("inline_rows", [0])
def test_stream_with_more_requests_than_may_be_in_flight_is_answered(held):
    """The last ones arrive while the first run is held, and nothing comes after them."""
    num_requests = 600
    held.connection.send(
        held.connection.headers(1, request_headers(__path=STREAM)),
        *[DataFrame(1, request(1))] * num_requests,
        DataFrame(1, b"", flags=["END_STREAM"]),
    )
    held.engine.wait_until_running()
    held.connection.ping()
    held.engine.open(1000)
    assert held.connection.reply(1).status == "OK"
    assert sum(map(len, held.engine.ran)) == num_requests


def test_beat_waits_for_a_loop_that_is_stuck(batching):
    engine = GatedModel()
    model = LoadedModel(engine, MANIFEST, "fp32", inline_rows=64)

    async def beat_during_a_run(server):
        await server.start()
        await server.beat()
        route = router.find("digits")
        image, encoder = images_of(0).tobytes(), Rows(route, None, 1)
        rows = submit(router.owner, AsyncCaller(""), image, encoder)
        call = asyncio.create_task(rows)
        await asyncio.to_thread(engine.wait_until_running)
        beat = asyncio.create_task(server.beat())
        done, _ = await asyncio.wait([beat, call], timeout=0.1)
        assert not done
        engine.open()
        await asyncio.wait_for(beat, TIMEOUT_S)
        await call
        await server.stop(0.0)

    with closing(router_of(model, batching)) as router:
        methods = digits_methods(router, "h2")
        asyncio.run(beat_during_a_run(H2Server(router, methods, ServerConfig(port=0))))


def changing(held, stream):
    """Build a whole call whose timeout no other has."""
    return held.frames(stream, request(1), grpc_timeout=f"{1000 + stream}S")


def warm(held):
    """Have calls recognised that differ in their timeouts."""
    held.engine.open(1000)
    for stream in (1, 3, 5):
        held.connection.send(*changing(held, stream))
        assert digits(held.connection.reply(stream)) == [1]


def test_connection_that_breaks_the_protocol_after_recognised_calls_is_closed(held):
    warm(held)
    ping = b"\0\0\3\6\0\0\0\0\0abc"  # of a wrong length
    held.connection.send(*changing(held, 7), *changing(held, 9), ping)
    held.connection.wait_closed()
    with Connection(held.address, TIMEOUT_S) as other:
        other.open()
        other.call(1, request(7))
        assert digits(other.reply(1)) == [7]
        assert replace(held, connection=other).counts["Classify", "CANCELLED"] == 2


def test_late_call_with_a_wider_window_takes_no_other_along(held):
    with Connection(held.address, TIMEOUT_S) as connection:
        connection.open()
        held = replace(held, connection=connection)
        warm(held)
        late = held.frames(7, request(1), grpc_timeout="0n")
        connection.send(*late, WindowUpdateFrame(7, window_increment=1000), *changing(held, 9))
        assert digits(connection.reply(9)) == [1]
        assert connection.reply(7).status == "DEADLINE_EXCEEDED"


def literal(held, stream, *timeouts):
    """Build a whole call whose timeouts change no table."""
    block = held.connection.encode(request_headers())
    block += encode_literally([(b"grpc-timeout", each.encode()) for each in timeouts])
    data = DataFrame(stream, request(stream % 10), flags=["END_STREAM"])
    return [HeadersFrame(stream, block, flags=["END_HEADERS"]), data]


def test_late_call_of_the_second_run_of_a_read_is_answered(held):
    """The first ones that are found by the bytes around values, and a wider window."""
    held.engine.open(1000)
    with Connection(held.address, TIMEOUT_S) as connection:
        connection.open()
        held = replace(held, connection=connection)
        for stream in (1, 3, 5, 7):
            connection.send(*literal(held, stream, f"100{stream}S"))
            assert digits(connection.reply(stream)) == [stream]
        late = *literal(held, 11, "0000n"), WindowUpdateFrame(11, window_increment=1000)
        connection.send(*literal(held, 9, "1009S"), PingFrame(0, bytes(8)), *late)
        assert digits(connection.reply(9)) == [9]
        assert connection.reply(11).status == "DEADLINE_EXCEEDED"


def test_calls_that_come_together_have_their_own_deadlines(held):
    """Recognised by the bytes around their timeouts, once a few have come; malformed ones, too."""
    held.engine.open(1000)
    streams = itertools.count(1, 2)
    together = ("9000S", "0000n", "9001S", "0000m", "900xS", "9002S", "0000H", "9003S", "9004S")
    for timeouts in (("1001S",), ("1002S",), ("1003S",), ("1004S",), together, together):
        sent, frames = {}, []
        for stream, timeout in zip(streams, timeouts, strict=False):
            sent[stream] = timeout
            frames += literal(held, stream, timeout)
        held.connection.send(*frames)
        for stream, timeout in sent.items():
            reply = held.connection.reply(stream)
            if timeout == "900xS":
                assert reply.status == "INVALID_ARGUMENT"
            elif timeout.startswith("000"):
                assert reply.status == "DEADLINE_EXCEEDED"
            else:
                assert digits(reply) == [stream % 10]
    assert held.counts["Classify", "OK"] == 14


def test_each_of_two_timeouts_has_to_be_one(held):
    held.engine.open(1000)
    for stream in range(1, 21, 2):
        first = "x" if stream % 4 == 1 else "1S"
        held.connection.send(*literal(held, stream, first, f"100{stream:02}S"))
        expected = "INVALID_ARGUMENT" if first == "x" else "OK"
        assert held.connection.reply(stream).status == expected


def test_grpcio_callers_are_answered_though_their_table_is_given_up(held):
    """Each has a deadline and a trace of its own, which grpcio inserts until it is asked not to."""
    held.engine.open(1000)
    with grpc.insecure_channel(held.address) as channel:
        classify = channel.unary_unary(CLASSIFY)
        for number in range(20):
            calls = {}
            for value in range(10):
                trace = f"00-{number:032x}-{value + 1:016x}-01"
                calls[value] = classify.future(
                    encode_request(images_of(value).tobytes()),
                    timeout=TIMEOUT_S + (10 * number + value) / 10,
                    metadata=(("traceparent", trace),),
                )
            for value, call in calls.items():
                assert list(digits_pb2.ClassifyResponse.FromString(call.result()).digits) == [value]
    assert held.counts["Classify", "OK"] == 200


def test_known_calls_run_elsewhere_once_the_model_is_slow(held):
    warm(held)
    threads: set[str] = set()

    class Slow(FakeModel):
        def classify(self, images):
            threads.add(threading.current_thread().name.partition("-")[0])
            return super().classify(images)

    manifest = replace(MANIFEST, version="99")
    held.router.change("digits", versions_of(LoadedModel(Slow(), manifest, "fp32", 0)))
    for stream in (7, 9, 11):
        held.connection.send(*changing(held, stream))
        held.connection.reply(stream)
        if stream == 7:
            threads.clear()
    assert threads == {"runner"}


@pytest.mark.parametrize("inline_rows", [1])
def test_round_in_which_all_calls_are_late_is_as_any_other(held, caplog):
    warm(held)
    held.connection.send(*held.frames(7, request(1), grpc_timeout="0n"))
    assert held.connection.reply(7).status == "DEADLINE_EXCEEDED"
    held.assert_well(9)
    assert not caplog.records
