"""Frames of good conversations, mutated, into the `h2` transport in this process: it stays well."""

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest
from hyperframe.frame import DataFrame, Frame, PingFrame, RstStreamFrame, WindowUpdateFrame

import serving
from serving import Classifier
from serving.config import BatchingConfig
from serving.http2.limits import Limits as Http2Limits
from serving.protocols.digits_v1.wire import encode_request
from serving.signature import DIGITS
from serving.transports.h2.limits import Limits
from tests.support.h2_connection import Connection, message, request_headers
from tests.support.h2_server import h2_server
from tests.support.processes import wait_until

MODEL = Path(serving.__file__).parent / "pretrained" / "digits"
TIMEOUT_S = 10.0
NUM_CONVERSATIONS = int(os.environ.get("FUZZ_CONVERSATIONS", "2000"))
REQUEST = message(encode_request(bytes(DIGITS.image_bytes)))
PATHS = (
    "/digits.v1.DigitClassifier/Classify", "/digits.v1.DigitClassifier/ClassifyStream",
    "/digits.v1.DigitClassifier/GetModel", "/grpc.health.v1.Health/Watch",
    "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo", "/x/y",
)  # fmt: skip


def conversation(connection: Connection, generator: random.Random) -> bytes:
    """A few calls, well formed, whose frames are in any order."""
    frames: list[Frame] = []
    for stream in range(1, 2 * generator.randint(2, 6), 2):
        headers = request_headers(__path=generator.choice(PATHS))
        frames.append(connection.headers(stream, headers))
        cut = generator.randrange(len(REQUEST))
        frames += [DataFrame(stream, REQUEST[:cut]), DataFrame(stream, REQUEST[cut:])]
        if generator.random() < 0.5:
            frames[-1].flags.add("END_STREAM")
        if generator.random() < 0.3:
            frames.append(RstStreamFrame(stream, error_code=8))
        if generator.random() < 0.2:
            frames.append(WindowUpdateFrame(stream, window_increment=1 << generator.randrange(31)))
        if generator.random() < 0.1:
            frames.append(connection.headers(stream, [("x", "y")], "END_STREAM"))
    frames.append(PingFrame(0, bytes(8)))
    if generator.random() < 0.3:
        generator.shuffle(frames)
    return b"".join(frame.serialize() for frame in frames)


def overload(connection: Connection, generator: random.Random) -> bytes:
    """Calls that are alike, most of which find no room."""
    frames: list[Frame] = []
    for stream in range(1, 240, 2):
        changed = {"x": str(stream)} if generator.random() < 0.01 else {}
        frames.append(connection.headers(stream, request_headers(**changed)))
        if generator.random() < 0.1:
            frames.append(WindowUpdateFrame(stream, window_increment=5))
        frames.append(DataFrame(stream, REQUEST, flags=["END_STREAM"]))
        if generator.random() < 0.1:
            frames.append(RstStreamFrame(stream, error_code=8))
    return b"".join(frame.serialize() for frame in frames)


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Flip, insert or drop a few bytes."""
    changed = bytearray(data)
    for _ in range(generator.choice((0, 1, 1, 2, 8))):
        at = generator.randrange(len(changed))
        changed[at : at + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
    return bytes(changed)


def send_in_two(connection: Connection, data: bytes, generator: random.Random) -> None:
    """Send bytes in two parts, cut anywhere."""
    at = generator.randrange(len(data))
    connection.send(data[:at])
    connection.send(data[at:])


@contextmanager
def small_server(batching: BatchingConfig | None = None) -> Iterator[str]:
    """A server that has little of everything but, unless it is told, of room in its queue."""
    limits = Limits(
        max_message_bytes=100_000,
        max_held_bytes=20_000,
        max_stream_unread_bytes=1000,
        max_unread_bytes=5000,
        http2=Http2Limits(stream_window_bytes=2000),
        max_connections=20,
    )
    with (
        Classifier.load(MODEL, device="cpu", batching=batching) as classifier,
        h2_server(classifier, limits) as address,
    ):
        yield address


@pytest.mark.timeout(300)
def test_mutated_conversations_leave_the_loop_well(generator: random.Random) -> None:
    with small_server() as address:
        for number in range(NUM_CONVERSATIONS):
            with Connection(address, TIMEOUT_S) as connection, suppress(OSError):
                connection.open(INITIAL_WINDOW_SIZE=generator.choice((0, 10, 65_535)))
                data = mutated(conversation(connection, generator), generator)
                send_in_two(connection, data, generator)
                if generator.random() < 0.1:
                    connection.socket.settimeout(0.02)
                    connection.socket.recv(1 << 16)
            if number % 100 == 0:
                assert status_of_new_caller(address) == 0
        assert status_of_new_caller(address) == 0


@pytest.mark.timeout(300)
def test_mutated_bursts_that_find_no_room_leave_the_loop_well(generator: random.Random) -> None:
    with small_server(BatchingConfig(queue_capacity=8, max_request_images=8)) as address:
        num_refused = 0
        for number in range(NUM_CONVERSATIONS // 8):
            with Connection(address, TIMEOUT_S) as connection, suppress(OSError):
                connection.open()
                data = overload(connection, generator)
                third = len(data) // 3  # the first teaches what is recognised in the others
                for part in (data[:third], data[third : 2 * third]):
                    connection.send(part)
                    connection.read(quiet_s=0.002)
                send_in_two(connection, mutated(data[2 * third :], generator), generator)
                num_refused += list(connection.statuses.values()).count(8)
            if number % 50 == 0:
                wait_until(partial(has_room, address))
        wait_until(partial(has_room, address))
    print(f"{num_refused} calls were refused")
    assert num_refused > NUM_CONVERSATIONS // 8


def has_room(address: str) -> bool:
    """Whether a new caller is answered; else it finds the queue full, and nothing worse."""
    status = status_of_new_caller(address)
    assert status in (0, 8)
    return status == 0


def status_of_new_caller(address: str) -> int | None:
    with Connection(address, TIMEOUT_S) as connection:
        connection.open()
        connection.call(1, REQUEST)
        return connection.reply(1).status
