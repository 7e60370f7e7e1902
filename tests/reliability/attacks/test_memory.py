"""Callers that ask for memory: messages too large, gzip bombs, answers that nobody reads."""

import threading
import time
from typing import Any

import grpc
import pytest

from serving import Client
from serving.digits.protocol.wire import encode_request
from serving.signature import DIGITS
from tests.support.h2_connection import Connection, request_headers
from tests.support.load import OWN_CONNECTION
from tests.support.processes import Footprint
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import on_both, running_server

MIB = 1 << 20
LARGE = encode_request(bytes(20_000 * DIGITS.image_bytes))
"""15.7 MB, more than twice the largest request; a few kilobytes as gzip."""


@pytest.fixture
def victim(models, transport):
    with running_server(models, "--transport", transport) as server:
        yield server


def growth(server, before):
    """MiB of resident memory."""
    return (Footprint.of(server.process.pid).resident_bytes - before.resident_bytes) / MIB


def warm(server, images):
    """Send the largest allowed request once: its memory is no growth later."""
    with Client(server.address) as client:
        client.classify(images.repeat(8, axis=0))
    return Footprint.of(server.process.pid)


@pytest.mark.parametrize("compression", [grpc.Compression.NoCompression, grpc.Compression.Gzip])
def test_messages_too_large_are_refused(victim, transport, images, compression):
    before = warm(victim, images)
    with grpc.insecure_channel(
        victim.address, options=OWN_CONNECTION, compression=compression
    ) as channel:
        method: Any = channel.unary_unary(CLASSIFY)
        codes = {method.future(LARGE, timeout=TIMEOUT_S).code() for _ in range(20)}
    grew = growth(victim, before)
    print(f"{transport}, {compression.name}: {grew:+.1f} MiB")
    is_gzip = compression is grpc.Compression.Gzip
    refusal = grpc.StatusCode.UNIMPLEMENTED if is_gzip else grpc.StatusCode.RESOURCE_EXHAUSTED
    assert codes == {refusal}
    # 314 MB were offered; only the bytes within HTTP/2's windows were held before the refusal.
    assert grew < 64, "messages that are refused must not be read"
    with Client(victim.address) as client:
        assert len(client.classify(images[:3])) == 3


@on_both
def test_answers_that_nobody_reads_wait_in_bounded_memory(victim, transport, images):
    message = encode_request(images.repeat(8, axis=0).tobytes())  # 4,000 images, 3.1 MB
    before = warm(victim, images)
    sent = [0] * 4
    ended = threading.Event()

    def requests(number):
        while not ended.is_set():
            sent[number] += 1
            yield message

    channels = [grpc.insecure_channel(victim.address, options=OWN_CONNECTION) for _ in sent]
    calls = []
    for number, channel in enumerate(channels):
        method: Any = channel.stream_stream("/digits.v1.DigitClassifier/ClassifyStream")
        calls.append(method(requests(number), timeout=10 * TIMEOUT_S))
    seen: list[int] = []
    while sent != seen:  # until flow control holds them all up: else the test times out
        seen = sent[:]
        with Client(victim.address) as client:
            assert len(client.classify(images[:3])) == 3  # others are served meanwhile
        time.sleep(0.5)
    grew = growth(victim, before)
    print(f"{transport}: {sum(sent)} messages of 3.1 MB sent, {grew:+.1f} MiB")
    ended.set()
    for call in calls:
        call.cancel()
    for channel in channels:
        channel.close()
    # A stream: 4 MiB in flight, a message that waits for memory, and the bytes in HTTP/2's windows.
    assert grew < len(sent) * 40
    assert victim.stop() == 0


def test_streams_that_open_and_stall_cost_little_and_hold_up_nobody(victim, images):
    num_streams = 500
    before = Footprint.of(victim.process.pid)
    with Connection(victim.address, TIMEOUT_S) as connection:
        connection.open()
        for stream in range(1, 2 * num_streams, 2):
            headers = request_headers(__path="/digits.v1.DigitClassifier/ClassifyStream")
            connection.send(connection.headers(stream, headers))
        connection.read()
        with Client(victim.address) as client:
            assert len(client.classify(images[:3])) == 3
        grew = growth(victim, before)
        print(f"{1024 * grew / num_streams:.1f} KiB a stream")
        assert grew < num_streams / 8
    assert victim.stop() == 0
