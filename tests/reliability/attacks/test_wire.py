"""Thousands of mutated messages to every method that reads one, and streams that stall."""

import random
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest

from serving import Client
from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from serving.protocols.oip import inference_pb
from tests.conftest import SEED
from tests.serving.transports.test_equality import mutate
from tests.support.h2_connection import Connection, request_headers
from tests.support.inference_peer import raw_request, typed_request
from tests.support.load import OWN_CONNECTION
from tests.support.processes import Footprint
from tests.support.servers import RunningServer, running_server

TIMEOUT_S = 20.0
NUM_MESSAGES = 3000
DIGITS = "/digits.v1.DigitClassifier/"
INFERENCE = f"/{inference_pb.SERVICE}/"
ALLOWED = {
    grpc.StatusCode.OK,
    grpc.StatusCode.INVALID_ARGUMENT,
    grpc.StatusCode.NOT_FOUND,  # a mutated model name
    # ModelInfer's "timeout" parameter, mutated to next to nothing.
    grpc.StatusCode.DEADLINE_EXCEEDED,
}


@pytest.fixture(scope="module")
def victim(models: Path) -> Iterator[RunningServer]:
    with running_server(models) as server:
        yield server


def originals(path: str, images: Images) -> list[bytes]:
    """Good messages to mutate."""
    if path.startswith(DIGITS):
        return [encode_request(images[:n].tobytes()) for n in (1, 2, 5)]
    named = {"model_name": "digits", "name": "digits", "version": "1"}
    if "Infer" not in path:
        request = getattr(inference_pb, path.rpartition("/")[2] + "Request")
        fields = {name: named[name] for name in request.DESCRIPTOR.fields_by_name if name in named}
        return [request(**fields).SerializeToString()]
    parameters = {"timeout": {"int64_param": 10_000_000}}
    return [
        raw_request(images[:1], id="a").SerializeToString(),
        raw_request(images[:3], parameters=parameters).SerializeToString(),
        typed_request(images[:1]).SerializeToString(),
    ]


PATHS = {
    DIGITS + "Classify": NUM_MESSAGES,
    INFERENCE + "ModelInfer": NUM_MESSAGES,
    DIGITS + "GetModel": 200,
    INFERENCE + "ModelReady": 500,
    INFERENCE + "ModelMetadata": 500,
    INFERENCE + "ModelConfig": 500,
    INFERENCE + "ModelStatistics": 500,
    INFERENCE + "RepositoryIndex": 200,
}


@pytest.mark.parametrize("path", PATHS)
def test_mutated_messages_are_answered_or_refused(
    victim: RunningServer, images: Images, generator: random.Random, path: str
) -> None:
    good = originals(path, images)
    messages = [mutate(generator.choice(good) or b"\x00", generator) for _ in range(PATHS[path])]
    with grpc.insecure_channel(victim.address, options=OWN_CONNECTION) as channel:
        method: Any = channel.unary_unary(path)

        def code_of(data: bytes) -> grpc.StatusCode:
            future = method.future(data, timeout=TIMEOUT_S)
            future.exception()
            code: grpc.StatusCode = future.code()
            return code

        with ThreadPoolExecutor(32) as pool:
            codes = Counter(pool.map(code_of, messages))
    print(path, {code.name: number for code, number in codes.items()})
    assert set(codes) <= ALLOWED, f"seed {SEED}"
    assert_well(victim, images)


@pytest.mark.parametrize(
    ("path", "num_streams"),
    [(DIGITS + "ClassifyStream", 300), (INFERENCE + "ModelStreamInfer", 300)],
)
def test_mutated_streams_are_answered_or_refused(
    victim: RunningServer,
    images: Images,
    generator: random.Random,
    path: str,
    num_streams: int,
) -> None:
    good = originals(path, images)
    streams = [
        [mutate(generator.choice(good), generator) for _ in range(10)] for _ in range(num_streams)
    ]
    with grpc.insecure_channel(victim.address, options=OWN_CONNECTION) as channel:
        method: Any = channel.stream_stream(path)

        def code_of(messages: list[bytes]) -> grpc.StatusCode:
            call = method(iter(messages), timeout=TIMEOUT_S)
            try:
                for _ in call:
                    pass
            except grpc.RpcError:
                pass
            code: grpc.StatusCode = call.code()
            return code

        with ThreadPoolExecutor(8) as pool:
            codes = Counter(pool.map(code_of, streams))
    print(path, {code.name: number for code, number in codes.items()})
    assert set(codes) <= ALLOWED, f"seed {SEED}"
    assert_well(victim, images)


def test_random_bytes_are_refused(
    victim: RunningServer, images: Images, generator: random.Random
) -> None:
    with grpc.insecure_channel(victim.address, options=OWN_CONNECTION) as channel:
        for path in (DIGITS + "Classify", INFERENCE + "ModelInfer"):
            method: Any = channel.unary_unary(path)
            calls = [
                method.future(generator.randbytes(generator.randrange(2000)), timeout=TIMEOUT_S)
                for _ in range(500)
            ]
            assert {call.code() for call in calls} <= ALLOWED - {grpc.StatusCode.OK}
    assert_well(victim, images)


def test_streams_that_open_and_stall_cost_little_and_hold_up_nobody(
    victim: RunningServer, images: Images
) -> None:
    num_streams = 500
    before = Footprint.of(victim.process.pid)
    with Connection(victim.address, TIMEOUT_S) as connection:
        connection.open()
        for stream in range(1, 2 * num_streams, 2):
            headers = request_headers(__path=DIGITS + "ClassifyStream")
            connection.send(connection.headers(stream, headers))
        connection.read()
        assert_well(victim, images)
        growth = Footprint.of(victim.process.pid).resident_bytes - before.resident_bytes
        print(f"{growth / 1024 / num_streams:.1f} KiB a stream")
        assert growth < num_streams * 128 * 1024
    assert_well(victim, images)
    assert victim.stop() == 0


def assert_well(server: RunningServer, images: Images) -> None:
    with Client(server.address) as client:
        assert len(client.classify(images[:3])) == 3
    assert server.process.poll() is None
