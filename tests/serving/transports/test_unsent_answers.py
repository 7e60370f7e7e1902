"""Long answers that are not sent yet: the room that they hold, on one loop that the test turns."""

import gc
import json
import socket
import struct
from dataclasses import replace

import hpack
import numpy as np
import pytest
from hyperframe.frame import (
    DataFrame,
    Frame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from serving.errors import Unavailable
from serving.http2.frames import ErrorCode
from serving.model.loaded import LoadedModel
from serving.oip.inference_pb import ModelInferRequest
from serving.protocols.status import StatusCode
from serving.tensors import Tensor, TensorSignature
from tests.support.fakes import MANIFEST
from tests.support.wire import PREFACE, message, request_headers
from tests.support.world import INFER, MIB, STREAM, Caller, World

ANSWER_BYTES = 8 * MIB
"""More than the sockets' buffers hold."""
MOST_BYTES = 16 * MIB
"""Of answers that wait, one fits into three quarters of it."""
SIGNATURE = TensorSignature(
    (Tensor("size", "INT64", (1,)),), (Tensor("ones", "UINT8", (-1,)),), is_batchable=False
)


class Grower:
    """An engine that answers with as many bytes as it is asked for."""

    device = "cpu"
    tensors = SIGNATURE
    version = "1"
    max_concurrent_runs = 1

    def run(self, feeds):
        return [np.ones(int(feeds["size"][0]), np.uint8)]

    def stoppable(self, *, is_alone=False):
        return self.run, lambda: None


@pytest.fixture
def world(tmp_path):
    manifest = replace(MANIFEST, name="grow", version="1", signature=None)
    made = World(tmp_path, {"grow": LoadedModel(Grower(), manifest, "fp32", 1, MIB)}, MOST_BYTES)
    yield made
    made.close()


class HttpCaller(Caller):
    """One over HTTP; its requests that are alike in bytes repeat one another."""

    def __init__(self, world):
        super().__init__(world, world.web)

    def ask(self, number, in_bytes=True):
        given = {"name": "size", "datatype": "INT64", "shape": [1]}
        more = {"parameters": {"binary_data_size": 8}} if in_bytes else {"data": [number]}
        text = json.dumps({"inputs": [given | more], "parameters": {"binary_data_output": True}})
        body = text.encode() + (struct.pack("<q", number) if in_bytes else b"")
        self.send(
            b"POST /v2/models/grow/infer HTTP/1.1\r\nhost: 127.0.0.1\r\ncontent-length: %d\r\n"
            b"inference-header-content-length: %d\r\n\r\n%s" % (len(body), len(text), body)
        )

    def answer(self):
        """Read an answer; return its status and the body."""
        self.received = b""
        self.read()
        head, _, body = self.received.partition(b"\r\n\r\n")
        assert b"content-length: %d\r\n" % len(body) in head.lower() + b"\r\n"
        return int(head.split()[1]), body


def infer_of(number):
    ask = ModelInferRequest(model_name="grow")
    ask.inputs.add(name="size", datatype="INT64", shape=[1])
    ask.raw_input_contents.append(np.array([number]).tobytes())
    return message(ask.SerializeToString())


class GrpcCaller(Caller):
    """One over gRPC, with windows for all that comes; each call has a stream of its own."""

    path = INFER

    def __init__(self, world, window=2**31 - 1):
        super().__init__(world, world.grpc)
        self.encoder, self.decoder, self.stream = hpack.Encoder(), hpack.Decoder(), -1
        settings = SettingsFrame(0, {SettingsFrame.INITIAL_WINDOW_SIZE: window})
        more = WindowUpdateFrame(0, 2**31 - 1 - 65_535)
        ready = settings, more, SettingsFrame(0, flags=["ACK"])
        self.send(PREFACE + b"".join(each.serialize() for each in ready))

    def begin(self):
        """Send the headers of the next call."""
        self.stream += 2
        block = self.encoder.encode(request_headers(__path=self.path))
        self.send(HeadersFrame(self.stream, block, flags=["END_HEADERS"]).serialize())

    def ask(self, number):
        self.begin()
        self.send(DataFrame(self.stream, infer_of(number), flags=["END_STREAM"]).serialize())

    def answer(self):
        """Read an answer; return its status and the message."""
        self.received = b""
        self.read()
        data, headers = self.received, {}
        body = b""
        while data:
            frame, length = Frame.parse_frame_header(memoryview(data[:9]))
            frame.parse_body(memoryview(data[9 : 9 + length]))
            data = data[9 + length :]
            if isinstance(frame, HeadersFrame):
                headers |= dict(self.decoder.decode(frame.data))
            elif isinstance(frame, DataFrame):
                body += frame.data
        return StatusCode(int(headers.get("grpc-status", -1))).name, body[5:]


class StreamCaller(GrpcCaller):
    """One that asks by messages of a stream."""

    path = STREAM

    def ask(self, *numbers):
        if self.stream < 0:
            self.begin()
        asked = (DataFrame(self.stream, infer_of(number)) for number in numbers)
        self.send(b"".join(each.serialize() for each in asked))


KINDS = [HttpCaller, GrpcCaller, StreamCaller]


def slow_reader(world, kind):
    """A caller whose long answer is on its way."""
    caller = kind(world)
    caller.ask(3)  # read in full; the next one is recognised
    caller.read()
    caller.ask(ANSWER_BYTES)
    assert world.num_bytes >= ANSWER_BYTES
    return caller


@pytest.mark.parametrize("is_known", [False, True])
def test_answer_without_room_is_a_429_and_later_ones_have_it(world, is_known):
    slow, other = slow_reader(world, HttpCaller), HttpCaller(world)
    if is_known:
        other.ask(3)
        assert other.answer()[0] == 200
    other.ask(ANSWER_BYTES)
    status, body = other.answer()
    assert (status, json.loads(body)["reason"]) == (429, "OVERLOADED")
    assert b"retry-after: 1\r\n" in other.received
    assert "answers are not sent" in json.loads(body)["detail"]
    assert slow.answer()[0] == 200
    assert world.num_bytes == 0
    other.ask(ANSWER_BYTES)
    assert other.answer()[0] == 200
    assert world.num_bytes == 0


@pytest.fixture(autouse=True)
def without_collections():
    """Room that only the collection of circles gives back is a leak: it may come in minutes."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def leave(caller):
    caller.leave()


def send_no_more(caller):
    caller.socket.shutdown(socket.SHUT_WR)
    caller.world.turn()
    caller.leave()


def leave_after_a_part(caller):
    caller.read(3 * MIB)
    caller.leave()


def read_nothing(caller):
    caller.world.pass_time(30.0)
    assert caller.world.num_bytes
    for _ in range(3):
        caller.world.pass_time(40.0)


def reset_stream(caller):
    caller.send(RstStreamFrame(caller.stream, 8).serialize())
    caller.read(MIB)  # behind what the sockets have
    caller.read(MIB)


def end_of_the_server(caller):
    world = caller.world
    world.loop.drain(Unavailable("the end"))
    world.turn()
    assert not world.loop.drained.is_set()
    for _ in range(5):
        world.pass_time(1.0)
    assert world.loop.drained.is_set()


def drain_while_read(caller):
    caller.world.loop.drain(Unavailable("the end"))
    for _ in range(20):
        caller.read(MIB)
        caller.world.pass_time(1.0)
    caller.read()
    assert len(caller.received) > ANSWER_BYTES
    caller.leave()


def stop_at_once(caller):
    for port in caller.world.loop._ports:
        port.close()
    caller.read()
    caller.leave()


WAYS = [leave, send_no_more, leave_after_a_part, read_nothing, end_of_the_server, drain_while_read,
        stop_at_once]  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", KINDS)
def test_room_is_free_when_a_caller_is_gone(world, kind, way, caplog):
    caller = slow_reader(world, kind)
    way(caller)
    assert world.num_bytes == 0
    assert not caplog.records


@pytest.mark.parametrize("kind", KINDS[1:])
def test_room_is_free_when_a_stream_was_reset(world, kind):
    caller = slow_reader(world, kind)
    reset_stream(caller)
    assert world.num_bytes == 0


@pytest.mark.parametrize("kind", KINDS)
def test_room_is_free_when_an_answer_was_read(world, kind):
    caller = slow_reader(world, kind)
    caller.read()
    assert len(caller.received) > ANSWER_BYTES
    assert world.num_bytes == 0


def test_answer_without_room_is_refused_over_grpc(world):
    slow, other = slow_reader(world, HttpCaller), GrpcCaller(world)
    for _ in range(3):
        other.ask(ANSWER_BYTES)
        assert other.answer()[0] == "RESOURCE_EXHAUSTED"
    slow.leave()
    other.ask(ANSWER_BYTES)
    assert other.answer()[0] == "OK"
    assert world.num_bytes == 0


def test_answer_of_a_stream_without_room_is_an_error_of_its_message(world):
    slow, other = slow_reader(world, HttpCaller), StreamCaller(world)
    other.ask(ANSWER_BYTES)
    other.ask(3)
    other.read()
    assert b"answers are not sent" in other.received
    slow.leave()
    other.ask(ANSWER_BYTES)
    other.received = b""
    other.read()
    assert len(other.received) > ANSWER_BYTES
    assert world.num_bytes == 0


def test_long_answers_that_follow_one_another_on_a_stream_count_until_they_are_sent(world):
    caller = StreamCaller(world)
    caller.ask(3)
    caller.read()
    size = MOST_BYTES // 8
    caller.ask(size, size, size)
    assert world.num_bytes >= 3 * size
    caller.read(size + MIB)
    assert 2 * size <= world.num_bytes < 3 * size
    caller.read()
    assert world.num_bytes == 0


def test_requests_come_while_a_long_answer_waits(world):
    """Also such as have more bytes than the budget."""
    slow = HttpCaller(world)
    slow.ask(2 * MOST_BYTES)
    for other in HttpCaller(world), GrpcCaller(world):
        for _ in range(2):
            other.ask(3)
            assert other.answer()[0] in (200, "OK")
    part = GrpcCaller(world)
    part.begin()
    whole = infer_of(3)
    part.send(DataFrame(1, whole[:9]).serialize())
    part.send(DataFrame(1, whole[9:], flags=["END_STREAM"]).serialize())
    assert part.answer()[0] == "OK"
    assert len(slow.answer()[1]) > 2 * MOST_BYTES


def test_lone_long_answer_fits_beside_requests_on_their_way(world):
    part, caller = GrpcCaller(world), HttpCaller(world)
    part.begin()
    part.send(DataFrame(1, infer_of(3)[:9]).serialize())
    caller.ask(2 * MOST_BYTES, in_bytes=False)
    assert caller.answer()[0] == 200


@pytest.mark.parametrize("kind", KINDS)
def test_caller_that_reads_slowly_is_not_cut_off(world, kind):
    """It takes ten times as long as one that reads nothing may."""
    caller = slow_reader(world, kind)
    for _ in range(4 * ANSWER_BYTES // MIB):
        assert not caller.read(MIB // 4)
        for _ in range(20):
            world.pass_time(1.0)
    caller.read()
    assert len(caller.received) > ANSWER_BYTES


def test_caller_that_keeps_its_window_shut_is_reset_once_others_need_the_room(world):
    caller = GrpcCaller(world, window=65_535)
    caller.ask(ANSWER_BYTES)
    for _ in range(10):
        world.pass_time(60.0)
        caller.send(PingFrame(0, bytes(8)).serialize())
        caller.read()
    assert world.num_bytes, "nobody needs it"
    other = GrpcCaller(world)
    other.ask(ANSWER_BYTES)
    assert other.answer()[0] == "RESOURCE_EXHAUSTED"
    caller.received = b""
    for _ in range(2):
        world.pass_time(61.0)
        caller.send(PingFrame(0, bytes(8)).serialize())
    assert world.num_bytes == 0
    caller.read()
    assert RstStreamFrame(1, ErrorCode.CANCEL).serialize() in caller.received
    other.ask(ANSWER_BYTES)
    assert other.answer()[0] == "OK"


def test_caller_that_opens_its_window_slowly_keeps_its_answer(world):
    caller, other = GrpcCaller(world, window=65_535), GrpcCaller(world)
    caller.ask(ANSWER_BYTES)
    for _ in range(10):
        other.ask(ANSWER_BYTES)
        assert other.answer()[0] == "RESOURCE_EXHAUSTED"
        world.pass_time(61.0)
        caller.send(WindowUpdateFrame(1, 1000).serialize())
        caller.read()
    assert world.num_bytes
