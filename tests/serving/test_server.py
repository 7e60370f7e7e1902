"""The server as its callers see it: a real process, a real socket, real clients."""

import queue
import random
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from serving import Classifier, Client
from serving.images import IMAGE_BYTES, Images
from serving.rpc.pb.digits.v1 import digits_pb2, digits_pb2_grpc
from serving.rpc.wire import encode_request
from tests.servers import RunningServer, running_server, serve_command
from training.data import Mnist

CLASSIFY = "/digits.v1.DigitClassifier/Classify"
TIMEOUT_S = 20.0


def status_of(call: Callable[[], object]) -> tuple[grpc.StatusCode, str]:
    """The status that a call ends with, and its text."""
    with pytest.raises(grpc.RpcError) as caught:
        call()
    return caught.value.code(), caught.value.details() or ""


class Raw:
    """A channel that sends bytes as they are."""

    def __init__(self, address: str, *options: tuple[str, int]) -> None:
        self.channel = grpc.insecure_channel(address, options=options)

    def method(self, path: str = CLASSIFY) -> Any:
        """A method that takes bytes and answers with a ClassifyResponse."""
        return self.channel.unary_unary(
            path, response_deserializer=digits_pb2.ClassifyResponse.FromString
        )

    def classify(self, data: bytes) -> digits_pb2.ClassifyResponse:
        response: digits_pb2.ClassifyResponse = self.method()(data, timeout=TIMEOUT_S)
        return response


@pytest.fixture
def raw(server: RunningServer) -> Raw:
    return Raw(server.address)


@pytest.fixture(autouse=True)
def still_answers(
    request: pytest.FixtureRequest, classifier: Classifier, images: Images
) -> Iterator[None]:
    """After each test, whatever it did, the shared server still answers correctly."""
    yield
    if {"server", "raw", "client"} & set(request.fixturenames):
        server: RunningServer = request.getfixturevalue("server")
        with Client(server.address) as client:
            answer = client.classify(images[:3])
        np.testing.assert_array_equal(answer.digits, classifier.classify(images[:3]).digits)


def test_start_line_says_what_is_served(server: RunningServer, transport: str) -> None:
    assert server.facts == {
        "model": "digits",
        "version": "1",
        "precision": "fp32",
        "device": "cpu",
        "transport": transport,
        "address": server.address,
        "metrics": server.facts["metrics"],
        "max_request_images": "4096",
        "max_batch_size": "128",
    }
    assert server.address.startswith("127.0.0.1:")


def test_served_answers_equal_the_in_process_answers_bit_for_bit(
    client: Client, classifier: Classifier, images: Images
) -> None:
    for num_images in (1, 2, 128, 500):
        served = client.classify(images[:num_images])
        local = classifier.classify(images[:num_images])
        assert served.probabilities.tobytes() == local.probabilities.tobytes()
        assert served.digits.tobytes() == local.digits.tobytes()
        assert served.model_version == local.model_version


def test_served_accuracy_is_the_manifests_to_the_image(client: Client, mnist_sample: Mnist) -> None:
    right = int(
        (client.classify(mnist_sample.test_images).digits == mnist_sample.test_labels).sum()
    )
    assert right == round(client.model_info().test_accuracy * len(mnist_sample.test_labels))


def test_get_model_tells_what_is_served(client: Client, transport: str) -> None:
    info = client.model_info()
    assert (info.name, info.version, info.device) == ("digits", "1", "cpu")
    assert (info.precision, info.transport) == ("fp32", transport)
    assert (info.max_request_images, info.max_batch_size) == (4096, 128)
    assert 0.8 < info.test_accuracy < 1


def test_generated_stub_works_as_any_client_would_use_it(
    server: RunningServer, images: Images
) -> None:
    with grpc.insecure_channel(server.address) as channel:
        stub: Any = digits_pb2_grpc.DigitClassifierStub(channel)  # type: ignore[no-untyped-call]
        request = digits_pb2.ClassifyRequest(images=images[:2].tobytes())
        response = stub.Classify(request, timeout=TIMEOUT_S)
    assert len(response.digits) == 2
    assert len(response.probabilities) == 20
    assert response.model_version == "1"


def test_wrong_byte_count_is_refused_and_the_connection_stays_usable(
    raw: Raw, images: Images
) -> None:
    for num_bytes in (1, 783, 785, 784 * 3 - 1):
        code, text = status_of(lambda n=num_bytes: raw.classify(encode_request(bytes(n))))  # type: ignore[misc]
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"expected N x 784 bytes of images, got {num_bytes}" in text
    assert len(raw.classify(encode_request(images[:1].tobytes())).digits) == 1


def test_zero_images_are_refused(raw: Raw) -> None:
    for data in (b"", encode_request(b"")):
        code, text = status_of(lambda data=data: raw.classify(data))  # type: ignore[misc]
        assert (code, text) == (
            grpc.StatusCode.INVALID_ARGUMENT,
            "expected at least 1 image, got 0",
        )


@pytest.mark.parametrize("num_images", [4097, 8192])
def test_more_images_than_a_request_may_hold_are_refused_with_the_limit(
    raw: Raw, num_images: int
) -> None:
    data = encode_request(bytes(num_images * IMAGE_BYTES))
    code, text = status_of(lambda: raw.classify(data))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"expected at most 4096 images in a request, got {num_images}"


def test_message_over_the_size_limit_is_refused(raw: Raw, transport: str) -> None:
    data = encode_request(bytes(10_000 * IMAGE_BYTES))
    code, _ = status_of(lambda: raw.classify(data))
    assert (
        code
        is {
            "grpcio": grpc.StatusCode.RESOURCE_EXHAUSTED,  # grpcio's own limit
            "native": grpc.StatusCode.INVALID_ARGUMENT,  # read whole, then refused
        }[transport]
    )


def test_largest_request_is_split_and_answered_whole_and_in_order(
    raw: Raw, classifier: Classifier, images: Images
) -> None:
    many = np.resize(images, (4096, IMAGE_BYTES))
    response = raw.classify(encode_request(many.tobytes()))
    assert list(response.digits) == classifier.classify(many).digits.tolist()


def test_one_bad_request_among_a_thousand_leaves_the_others_right(
    raw: Raw, classifier: Classifier, images: Images
) -> None:
    expected = classifier.classify(images).digits
    call = raw.method()
    bad = 437
    requests = [encode_request(images[number % 500].tobytes()) for number in range(1000)]
    requests[bad] = requests[bad][:-1]
    with ThreadPoolExecutor(32) as pool:
        futures = list(pool.map(lambda data: call.future(data, timeout=TIMEOUT_S), requests))
    for number, future in enumerate(futures):
        if number == bad:
            assert future.exception().code() is grpc.StatusCode.INVALID_ARGUMENT
        else:
            assert list(future.result().digits) == [expected[number % 500]]


def test_mutated_messages_are_invalid_arguments_or_answered(raw: Raw, images: Images) -> None:
    seed = 20_261_124
    generator = random.Random(seed)
    valid = encode_request(images[0].tobytes())
    call = raw.method()

    def code_of(data: bytes) -> grpc.StatusCode:
        future = call.future(data, timeout=TIMEOUT_S)
        future.exception()
        code: grpc.StatusCode = future.code()
        return code

    with ThreadPoolExecutor(32) as pool:
        codes = set(pool.map(code_of, (mutate(valid, generator) for _ in range(3000))))
    assert codes == {grpc.StatusCode.OK, grpc.StatusCode.INVALID_ARGUMENT}, f"seed {seed}"


def mutate(data: bytes, generator: random.Random) -> bytes:
    """Replace, insert or remove a few bytes, mostly where the header is; sometimes cut the end."""
    mutated = bytearray(data)
    for _ in range(generator.randint(1, 4)):
        position = generator.choice((generator.randrange(4), generator.randrange(len(mutated))))
        replacement = generator.randbytes(generator.randint(0, 2))
        mutated[position : position + generator.randint(0, 2)] = replacement
    if generator.random() < 0.2:
        del mutated[generator.randrange(len(mutated)) :]
    return bytes(mutated)


STREAM = "/digits.v1.DigitClassifier/ClassifyStream"


def stream(raw: Raw) -> Any:
    """ClassifyStream: bytes in, ClassifyResponses out."""
    return raw.channel.stream_stream(
        STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
    )


def test_stream_is_answered_in_order(raw: Raw, classifier: Classifier, images: Images) -> None:
    sizes = [1 + number % 7 for number in range(100)]  # 397 images in all
    messages = np.split(images[: sum(sizes)], np.cumsum(sizes)[:-1])
    requests = (encode_request(message.tobytes()) for message in messages)
    responses = list(stream(raw)(requests, timeout=TIMEOUT_S))
    assert [len(response.digits) for response in responses] == sizes
    answered = [digit for response in responses for digit in response.digits]
    assert answered == classifier.classify(images[: sum(sizes)]).digits.tolist()


def test_stream_answers_while_the_caller_still_sends(raw: Raw, images: Images) -> None:
    requests: queue.Queue[bytes | None] = queue.Queue()
    responses = stream(raw)(iter(requests.get, None), timeout=TIMEOUT_S)
    for image in images[:5]:
        requests.put(encode_request(image.tobytes()))
        assert len(next(responses).digits) == 1
    requests.put(None)
    assert list(responses) == []


def test_bad_message_ends_a_stream_after_the_earlier_answers(raw: Raw, images: Images) -> None:
    good = encode_request(images[0].tobytes())
    responses = stream(raw)(iter([good, good, good[:-1], good]), timeout=TIMEOUT_S)
    assert len(next(responses).digits) == 1
    assert len(next(responses).digits) == 1
    code, text = status_of(lambda: next(responses))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert "ClassifyRequest" in text


def test_stream_larger_than_the_queue_slows_down_and_is_never_rejected(
    models: Path, images: Images, transport: str
) -> None:
    options = ("--queue-capacity", "10", "--max-request-images", "10", "--transport", transport)
    with running_server(models, *options) as server:
        raw = Raw(server.address)
        requests = (encode_request(images[:9].tobytes()) for _ in range(500))
        assert sum(1 for _ in stream(raw)(requests, timeout=TIMEOUT_S)) == 500


def test_stream_whose_caller_stops_reading_is_stopped(
    server: RunningServer, client: Client, images: Images
) -> None:
    sent = 0
    message = encode_request(images[:100].tobytes())
    end = threading.Event()

    def requests() -> Iterator[bytes]:
        nonlocal sent
        while not end.is_set():
            sent += 1
            yield message

    raw = Raw(server.address)
    responses = stream(raw)(requests(), timeout=TIMEOUT_S)
    seen = -1
    while sent != seen:  # until flow control holds the caller up: else the test times out
        seen = sent
        client.classify(images[:1])  # others are served meanwhile
        time.sleep(0.3)
    end.set()
    responses.cancel()


def test_unknown_method_is_unimplemented(raw: Raw) -> None:
    call = raw.method("/digits.v1.DigitClassifier/Nope")
    assert status_of(lambda: call(b"", timeout=TIMEOUT_S))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_gzip_bomb_is_refused(server: RunningServer, transport: str) -> None:
    bomb = encode_request(bytes(10_000 * IMAGE_BYTES))  # zeros: a few kilobytes as gzip
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        call: Any = channel.unary_unary(CLASSIFY)
        code, _ = status_of(lambda: call(bomb, timeout=TIMEOUT_S))
    assert (
        code
        is {
            "grpcio": grpc.StatusCode.UNIMPLEMENTED,  # never inflated
            "native": grpc.StatusCode.INVALID_ARGUMENT,  # inflated, then refused
        }[transport]
    )


def test_health_says_serving_for_every_service(server: RunningServer) -> None:
    serving = health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "digits.v1.DigitClassifier"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=TIMEOUT_S).status == serving
        unknown = health_pb2.HealthCheckRequest(service="nope")
        code, _ = status_of(lambda: stub.Check(unknown, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(unknown, timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_under_load_and_loses_nothing(
    models: Path, images: Images, transport: str, number: signal.Signals
) -> None:
    answered = refused = 0
    others: list[grpc.StatusCode] = []
    with (
        running_server(models, "--transport", transport) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        told = pool.submit(next, watch)
        call: Any = channel.unary_unary(CLASSIFY)
        data = encode_request(images[:64].tobytes())
        futures = [call.future(data, timeout=TIMEOUT_S) for _ in range(200)]
        futures[0].result()
        assert server.stop(number) == 0
        assert told.result().status == health_pb2.HealthCheckResponse.NOT_SERVING
    for future in futures:
        if future.code() is grpc.StatusCode.OK:
            answered += 1
        elif future.code() is grpc.StatusCode.UNAVAILABLE:
            refused += 1
        else:
            others.append(future.code())
    assert not others
    assert answered + refused == 200
    assert answered >= 1


def test_taken_port_is_one_clear_line(models: Path, transport: str) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        command = [*serve_command(models, "--transport", transport), "--port", str(port)]
        result = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    assert result.returncode == 2
    assert result.stderr == (
        f"digits-serve: can't listen on 127.0.0.1:{port}: is the port taken?\n"
    )


def test_cancelled_calls_leave_the_server_well(raw: Raw, images: Images) -> None:
    call = raw.method()
    futures = [call.future(encode_request(images.tobytes()), timeout=TIMEOUT_S) for _ in range(30)]
    for future in futures:
        future.cancel()
    codes = {future.code() for future in futures}
    assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
