"""Frames of good conversations, mutated, into the `h2` transport in this process: it stays well."""

import os
import random
from contextlib import suppress
from pathlib import Path

import pytest
from hyperframe.frame import DataFrame, Frame, PingFrame, RstStreamFrame, WindowUpdateFrame

import serving
from serving import Classifier
from serving.protocols.digits_v1.wire import encode_request
from serving.signature import DIGITS
from serving.transports.h2.limits import Limits
from tests.support.h2_connection import Connection, message, request_headers
from tests.support.h2_server import h2_server

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


def mutated(data: bytes, generator: random.Random) -> bytes:
    """Flip, insert or drop a few bytes."""
    changed = bytearray(data)
    for _ in range(generator.choice((0, 1, 1, 2, 8))):
        at = generator.randrange(len(changed))
        changed[at : at + generator.randint(0, 3)] = generator.randbytes(generator.randint(0, 3))
    return bytes(changed)


@pytest.mark.timeout(300)
def test_mutated_conversations_leave_the_loop_well(generator: random.Random) -> None:
    limits = Limits(
        max_message_bytes=100_000,
        max_held_bytes=20_000,
        max_stream_unread_bytes=1000,
        max_unread_bytes=5000,
        stream_window_bytes=2000,
        max_connections=20,
    )
    with (
        Classifier.load(MODEL, device="cpu") as classifier,
        h2_server(classifier, limits) as address,
    ):
        for number in range(NUM_CONVERSATIONS):
            with Connection(address, TIMEOUT_S) as connection, suppress(OSError):
                connection.open(INITIAL_WINDOW_SIZE=generator.choice((0, 10, 65_535)))
                data = mutated(conversation(connection, generator), generator)
                at = generator.randrange(len(data))
                connection.send(data[:at])
                connection.send(data[at:])
                if generator.random() < 0.1:
                    connection.socket.settimeout(0.02)
                    connection.socket.recv(1 << 16)
            if number % 100 == 0:
                assert_well(address)
        assert_well(address)


def assert_well(address: str) -> None:
    with Connection(address, TIMEOUT_S) as connection:
        connection.open()
        connection.call(1, REQUEST)
        assert connection.reply(1).status == 0
