"""Whatever is sent, the answer is the right status, and the server goes on."""

from concurrent.futures import ThreadPoolExecutor

import grpc

from serving import Classifier
from serving.images import Images
from serving.protocols.digits_v1.wire import encode_request
from tests.support.raw import TIMEOUT_S, Raw, status_of
from tests.support.servers import on_both


def test_wrong_byte_count_is_refused_and_the_connection_stays_usable(
    raw: Raw, images: Images
) -> None:
    for num_bytes in (1, 783, 785, 784 * 3 - 1):
        code, text = status_of(lambda n=num_bytes: raw.classify(encode_request(bytes(n))))  # type: ignore[misc]
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert f"expected N x 784 bytes of images, got {num_bytes}" in text
    assert len(raw.classify(encode_request(images[:1].tobytes())).digits) == 1


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


@on_both
def test_cancelled_calls_leave_the_server_well(raw: Raw, images: Images) -> None:
    call = raw.method()
    futures = [call.future(encode_request(images.tobytes()), timeout=TIMEOUT_S) for _ in range(30)]
    for future in futures:
        future.cancel()
    codes = {future.code() for future in futures}
    assert codes <= {grpc.StatusCode.CANCELLED, grpc.StatusCode.OK}
