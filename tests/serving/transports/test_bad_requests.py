"""Whatever is sent, the answer is the right status, and the server goes on."""

import random
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import pytest

from serving import Classifier
from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from serving.signature import DIGITS
from tests.support.raw import CLASSIFY, TIMEOUT_S, Raw, status_of
from tests.support.servers import RunningServer


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
    data = encode_request(bytes(num_images * DIGITS.image_bytes))
    code, text = status_of(lambda: raw.classify(data))
    assert code is grpc.StatusCode.INVALID_ARGUMENT
    assert text == f"expected at most 4096 images in a request, got {num_images}"


def test_message_over_the_size_limit_is_refused(raw: Raw) -> None:
    data = encode_request(bytes(10_000 * DIGITS.image_bytes))
    assert status_of(lambda: raw.classify(data))[0] is grpc.StatusCode.RESOURCE_EXHAUSTED


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


def test_unknown_method_is_unimplemented(raw: Raw) -> None:
    call = raw.method("/digits.v1.DigitClassifier/Nope")
    assert status_of(lambda: call(b"", timeout=TIMEOUT_S))[0] is grpc.StatusCode.UNIMPLEMENTED


def test_gzip_bomb_is_never_inflated(server: RunningServer) -> None:
    bomb = encode_request(bytes(10_000 * DIGITS.image_bytes))  # zeros: a few kilobytes as gzip
    with grpc.insecure_channel(server.address, compression=grpc.Compression.Gzip) as channel:
        call: Any = channel.unary_unary(CLASSIFY)
        code, _ = status_of(lambda: call(bomb, timeout=TIMEOUT_S))
    assert code is grpc.StatusCode.UNIMPLEMENTED


def test_cancelled_calls_leave_the_server_well(raw: Raw, images: Images) -> None:
    call = raw.method()
    futures = [call.future(encode_request(images.tobytes()), timeout=TIMEOUT_S) for _ in range(30)]
    for future in futures:
        future.cancel()
    codes = {future.code() for future in futures}
    assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
