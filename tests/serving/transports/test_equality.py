"""grpcio is the reference: h2 gives every call the same status and text, and the same bytes."""

import os
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

import grpc
import pytest
from grpc import StatusCode

from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.predictions import DIGITS
from digit_classifier.wire import encode_request
from serving.oip import inference_pb
from tests.support.raw import CLASSIFY, GET_MODEL, HEALTH, TIMEOUT_S, raw_request, typed_request
from tests.support.servers import running_server

NUM_CALLS = int(os.environ.get("EQUALITY_CALLS", "1000"))
IMAGE_BYTES = DIGITS.image_bytes
STREAM = CLASSIFY + "Stream"
INFER, STREAM_INFER = (f"/{inference_pb.SERVICE}/{name}" for name in
                       ("ModelInfer", "ModelStreamInfer"))  # fmt: skip
QUERIES = [f"/{inference_pb.SERVICE}/{name}" for name in (
    "ServerLive", "ServerReady", "ModelReady", "ServerMetadata", "ModelMetadata", "ModelConfig",
    "ModelStatistics", "RepositoryIndex")]  # fmt: skip


@pytest.fixture(scope="module")
def channels(models):
    """To h2, and to grpcio."""
    with (
        running_server(models, "--transport", "h2") as ours,
        running_server(models, "--transport", "grpcio") as reference,
        grpc.insecure_channel(ours.address) as first,
        grpc.insecure_channel(reference.address) as second,
    ):
        yield [first, second]


def outcome(channel, path, *messages, **options):
    """Send messages; a unary method answers a stream of one, too."""
    call = channel.stream_stream(path)(iter(messages), timeout=TIMEOUT_S, **options)
    answers: list[Any] = []
    with suppress(grpc.RpcError):
        answers.extend(comparable(path, answer) for answer in call)
    return call.code(), call.details(), answers


def comparable(path, answer):
    """An answer without the fields that vary by transport or time; maps have no order in bytes."""
    if path == GET_MODEL:
        model = digits_pb2.GetModelResponse.FromString(answer)
        model.ClearField("transport")
        return model
    if path not in QUERIES:
        return answer
    message = getattr(inference_pb, path.rpartition("/")[2] + "Response").FromString(answer)
    return len(message.model_stats) if path.endswith("Statistics") else message


@pytest.mark.parametrize(
    ("path", "message", "code"),
    [
        (CLASSIFY, encode_request(bytes(4096 * IMAGE_BYTES)), StatusCode.OK),
        (CLASSIFY, b"", StatusCode.INVALID_ARGUMENT),
        (CLASSIFY, encode_request(bytes(785)), StatusCode.INVALID_ARGUMENT),
        (CLASSIFY, encode_request(bytes(4097 * IMAGE_BYTES)), StatusCode.RESOURCE_EXHAUSTED),
        (CLASSIFY, encode_request(bytes(10_000 * IMAGE_BYTES)), StatusCode.RESOURCE_EXHAUSTED),
        (STREAM, encode_request(bytes(IMAGE_BYTES)), StatusCode.OK),
        (STREAM, b"\xff", StatusCode.INVALID_ARGUMENT),
        (STREAM_INFER, b"\xff", StatusCode.OK),
        (INFER, b"\xff", StatusCode.INVALID_ARGUMENT),
        (INFER, b"\x0a\x01a", StatusCode.NOT_FOUND),
        (HEALTH, b"", StatusCode.OK),
        (HEALTH, b"\x0a\x01a", StatusCode.NOT_FOUND),
        ("/digits.v1.DigitClassifier/Nope", b"", StatusCode.UNIMPLEMENTED),
        ("/", b"", StatusCode.UNIMPLEMENTED),
    ],
)  # fmt: skip
def test_each_status_is_the_same(channels, path, message, code):
    ours, reference = (outcome(channel, path, message) for channel in channels)
    assert ours[0] is reference[0] is code
    if code is not StatusCode.RESOURCE_EXHAUSTED:  # else the text is that of gRPC's core
        assert ours == reference


def test_compressed_message_has_the_limit_of_others(channels):
    bomb = encode_request(bytes(10_000 * IMAGE_BYTES))  # zeros: a few kilobytes as gzip
    for channel in channels:
        code, *_ = outcome(channel, CLASSIFY, bomb, compression=grpc.Compression.Gzip)
        assert code is StatusCode.RESOURCE_EXHAUSTED


def test_generated_calls_have_the_same_outcome(channels, generator, images):
    calls = [generate(generator, images) for _ in range(NUM_CALLS)]
    with ThreadPoolExecutor(16) as pool:
        ours, reference = (
            [*pool.map(lambda call, to=channel: outcome(to, *call), calls)] for channel in channels
        )
    for call, mine, other in zip(calls, ours, reference, strict=True):
        assert mine == other, call
    codes = Counter(code for code, *_ in reference)
    print(codes)
    assert codes.keys() == {StatusCode.OK, StatusCode.INVALID_ARGUMENT, StatusCode.NOT_FOUND}


def generate(generator, images):
    """A method, and its messages: good, mutated or random ones."""
    path = generator.choice((CLASSIFY, STREAM, INFER, STREAM_INFER, GET_MODEL, HEALTH, *QUERIES))
    messages = []
    for _ in range(generator.randrange(10) if "Stream" in path else 1):
        message = valid(path, generator, images)
        if path not in (GET_MODEL, HEALTH) and generator.random() < 0.4:
            message = mutate(message, generator) if message else generator.randbytes(9)
        messages.append(message)
    return path, *messages


def valid(path, generator, images):
    some = images[generator.randrange(300) :][: generator.choice((1, 1, 2, 5, 18))]
    if path in (CLASSIFY, STREAM):
        return encode_request(some.tobytes())
    if path in (INFER, STREAM_INFER):
        if generator.random() < 0.3:
            return bytes(typed_request(some[:2]).SerializeToString())
        return bytes(raw_request(some, id=generator.choice(("", "a"))).SerializeToString())
    if path not in QUERIES:
        return b""
    name = generator.choice(("digits", "digits", "nobody"))
    named = {"model_name": name, "name": name, "version": generator.choice(("", "1"))}
    request = getattr(inference_pb, path.rpartition("/")[2] + "Request")
    fields = {name: named[name] for name in request.DESCRIPTOR.fields_by_name if name in named}
    return bytes(request(**fields).SerializeToString())


def mutate(data, generator):
    """Replace, insert or remove a few bytes, mostly where the header is; sometimes cut the end."""
    mutated = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        position = generator.choice((generator.randrange(4), generator.randrange(len(mutated))))
        replacement = generator.randbytes(generator.randint(0, 2))
        mutated[position : position + generator.randint(0, 2)] = replacement
    if generator.random() < 0.2:
        del mutated[generator.randrange(len(mutated)) :]
    return bytes(mutated)
