import asyncio
import math
import threading
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from serving import AsyncClient, Client
from serving.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    ModelNotFound,
    Overloaded,
    Unauthenticated,
)
from serving.protocols.status import MODEL_TEXTS, STATUS
from tests.support.servers import fake_server, running_server


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize("num_images", [1, 300])
async def test_all_four_clients_answer_alike(server, classifier, images, num_images):
    with Client(server.address, timeout_s=math.inf) as client:
        answers = [client.classify(images[:num_images])]
    async with AsyncClient(server.address, timeout_s=math.inf) as awaited:
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
    with running_server(models, *options) as server, Client(server.address) as client:
        assert client.model_info().max_request_rows == 7
        predictions = client.classify(images[:100])
    assert len(predictions) == 100


def test_client_is_safe_to_share_between_threads(client, classifier, images):
    expected = classifier.classify(images).digits
    with ThreadPoolExecutor(16) as pool:
        answers = list(pool.map(lambda n: client.classify(images[n : n + 1]).digits[0], range(500)))
    assert answers == expected.tolist()


async def test_async_client_keeps_thousands_of_calls_in_flight(server, classifier, images):
    async with AsyncClient(server.address, timeout_s=60) as client:
        assert (await client.model_info()).name == classifier.model_info().name
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
        Client("127.0.0.1:1", token=token)


@pytest.mark.usefixtures("client_transport")
def test_server_that_never_answers_is_a_deadline_exceeded(images):
    release = threading.Event()

    def hang(request, context):
        release.wait()
        return b""

    with fake_server(hang) as address, Client(address, timeout_s=0.2) as client:
        with pytest.raises(DeadlineExceeded):
            client.classify(images[:1])
        release.set()


@pytest.mark.usefixtures("client_transport")
@pytest.mark.parametrize(
    "error_class",
    [InvalidRequest, ModelNotFound, Unauthenticated, Overloaded, DeadlineExceeded, ModelError],
)
def test_each_status_becomes_its_error(error_class, images):
    reason = MODEL_TEXTS[0] if error_class is ModelError else "für 100 % und mehr"

    def refuse(request, context):
        context.abort(grpc.StatusCode[STATUS[error_class].name], reason)
        return b""

    with (
        fake_server(refuse) as address,
        Client(address) as client,
        pytest.raises(error_class, match=reason),
    ):
        client.classify(images[:1])
