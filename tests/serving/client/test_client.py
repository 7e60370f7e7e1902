import asyncio
import base64
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from digit_classifier import AsyncClassifier, Classifier
from serving.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    Unavailable,
)
from serving.protocols import error_info
from serving.protocols.status import TABLE, Status
from tests.support.servers import fake_server, running_server


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize("num_images", [1, 300])
async def test_all_four_clients_answer_alike(server, classifier, images, num_images):
    with Classifier.connect(server.address, timeout_s=math.inf) as client:
        answers = [client.classify(images[:num_images])]
    async with AsyncClassifier.connect(server.address, timeout_s=math.inf) as awaited:
        answers.append(await awaited.classify(images[:num_images]))
    expected = classifier.classify(images[:num_images])
    for answer in answers:
        np.testing.assert_array_equal(answer.probabilities, expected.probabilities)
        np.testing.assert_array_equal(answer.digits, expected.digits)
        assert answer.model_version == expected.model_version


def test_client_and_classifier_refuse_the_same_images(client, classifier):
    size = classifier.signature.image_bytes
    for bad in (np.zeros((1, size)), np.zeros((1, 9), np.uint8), np.zeros((0, size), np.uint8)):
        texts = []
        for either in (client, classifier):
            with pytest.raises(InvalidRequest) as caught:
                either.classify(bad)
            texts.append(str(caught.value))
        assert texts[0] == texts[1]


def test_large_request_is_split_to_the_servers_limit(models, images):
    options = ("--max-request-rows", "7", "--queue-capacity", "1000")
    with running_server(models, *options) as server, Classifier.connect(server.address) as client:
        assert client.describe().max_request_rows == 7
        predictions = client.classify(images[:100])
    assert len(predictions) == 100


def test_client_is_safe_to_share_between_threads(client, classifier, images):
    expected = classifier.classify(images).digits
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: client.classify(images[n : n + 1]).digits[0], range(500)))
    assert answers == expected.tolist()


async def test_async_client_keeps_thousands_of_calls_in_flight(server, classifier, images):
    async with AsyncClassifier.connect(server.address, timeout_s=60) as client:
        assert (await client.describe()).name == classifier.describe().name
        answers = await asyncio.gather(
            *(client.classify(images[n % 500][None]) for n in range(1200))
        )
        many = await client.classify(images)
    expected = classifier.classify(images).digits.tolist()
    assert many.digits.tolist() == expected
    assert [answer.digits[0] for answer in answers] == [expected[n % 500] for n in range(1200)]


@pytest.mark.parametrize("token", ["two\nlines", "schlüssel", "nul\0"])
def test_token_that_cannot_be_sent_is_refused_when_the_client_is_made(token):
    with pytest.raises(ConfigurationError, match="printable ASCII"):
        Classifier.connect("127.0.0.1:1", token=token)


@pytest.mark.usefixtures("client_transport")
def test_server_that_never_answers_is_a_deadline_exceeded(images):
    release = threading.Event()

    def hang(request, context):
        release.wait()
        return b""

    with fake_server(hang) as address, Classifier.connect(address, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            client.classify(images[:1])
        release.set()


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize(
    "error_class",
    [error for error in TABLE if error is not Unavailable],
)
def test_each_status_becomes_its_error(error_class, images):
    status = Status.of(error_class("any text"))
    reason = "für 100 % und mehr"

    def refuse(request, context):
        row = TABLE[error_class]
        details = base64.b64decode(error_info.encode(row.code, reason, row.reason) + "==")
        context.set_trailing_metadata(((error_info.TRAILER, details),))
        context.abort(grpc.StatusCode[status.code.name], reason)
        return b""

    with (
        fake_server(refuse) as address,
        Classifier.connect(address) as client,
        pytest.raises(error_class, match=reason),
    ):
        client.classify(images[:1])
