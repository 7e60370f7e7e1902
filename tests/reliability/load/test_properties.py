"""Whatever the batching, the answers are those of a slow reference: one image at a time, alone."""

import random
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import pytest
from hypothesis import given, seed, settings
from hypothesis import strategies as st

from serving import Classifier
from serving.config import BatchingConfig
from serving.digits.wire import decode_response, encode_request
from serving.model.onnx_runtime import runtime
from serving.predictions import Probabilities
from serving.protocols.oip import inference_pb
from tests.conftest import SEED
from tests.support.load import OWN_CONNECTION
from tests.support.raw import CLASSIFY, TIMEOUT_S, probabilities_in, raw_request
from tests.support.servers import running_server

TOLERANCE = 1e-6
"""Batches of other sizes may add in another order: some units in the last place."""
INFER = "/inference.GRPCInferenceService/ModelInfer"

sizes = st.lists(st.integers(1, 40), min_size=1, max_size=30)
"""Images in each of some requests that are sent at once."""


@pytest.fixture(scope="module")
def reference(models, images):
    """(500, 10): each image run alone, by ONNX Runtime and nothing of ours."""
    session = runtime().InferenceSession(models / "digits" / "1" / "model.onnx")
    return np.concatenate([session.run(None, {"images": image[None]})[0] for image in images])


@pytest.fixture(scope="module")
def small(models):
    """A server with small batches: requests are split and mixed all the time."""
    options = ("--max-batch-size", "7")
    with running_server(models, *options) as server:
        yield server


def check(found, numbers, reference):
    np.testing.assert_allclose(found, reference[numbers], atol=TOLERANCE, rtol=0)
    assert found.argmax(axis=1).tolist() == reference[numbers].argmax(axis=1).tolist()


def drawn(sizes, generator):
    """Which images each request holds."""
    return [[generator.randrange(500) for _ in range(size)] for size in sizes]


@seed(SEED)
@settings(max_examples=150, deadline=None)
@given(
    sizes=sizes,
    max_batch_size=st.integers(1, 64),
    num_threads=st.integers(1, 8),
    delay_s=st.sampled_from([0.0, 0.001]),
    draw=st.integers(0, 1 << 32),
)
def test_engine_and_batcher_equal_the_reference(
    models, images, reference, sizes, max_batch_size, num_threads, delay_s, draw
):
    batching = BatchingConfig(max_batch_size=max_batch_size, max_queue_delay_s=delay_s)
    requests = drawn(sizes, random.Random(draw))
    with (
        Classifier.load(models / "digits", device="cpu", batching=batching) as classifier,
        ThreadPoolExecutor(num_threads) as pool,
    ):
        answers = pool.map(lambda numbers: classifier.classify(images[numbers]), requests)
        for numbers, answer in zip(requests, answers, strict=True):
            check(answer.probabilities, numbers, reference)


@seed(SEED)
@settings(max_examples=100, deadline=None)
@given(sizes=sizes, draw=st.integers(0, 1 << 32))
def test_server_equals_the_reference(small, images, reference, sizes, draw):
    requests = drawn(sizes, random.Random(draw))
    with grpc.insecure_channel(small.address, options=OWN_CONNECTION) as channel:
        classify = channel.unary_unary(CLASSIFY)
        infer = channel.unary_unary(INFER)
        calls: list[tuple[list[int], Callable[[bytes], Probabilities], Any]] = []
        for turn, numbers in enumerate(requests):
            if turn % 3:
                data = encode_request(images[numbers].tobytes())
                calls.append((numbers, of_classify, classify.future(data, timeout=TIMEOUT_S)))
            else:
                data = raw_request(images[numbers]).SerializeToString()
                calls.append((numbers, of_infer, infer.future(data, timeout=TIMEOUT_S)))
        for numbers, decode, call in calls:
            check(decode(call.result()), numbers, reference)


def of_classify(data):
    return decode_response(data).probabilities


def of_infer(data):

    response = inference_pb.ModelInferResponse
    return probabilities_in(response.FromString(data))
