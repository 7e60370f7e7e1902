import numpy as np
import pytest

from serving.batching.runs import Result
from serving.protocols.method import frame
from serving.protocols.oip.infer import Infer, raw_ending
from serving.protocols.oip.inference_pb import ModelInferRequest
from serving.protocols.oip.tensors import decode
from serving.tensors import DIGITS, Tensor, TensorSignature
from tests.support.fakes import router_of
from tests.support.inference_peer import raw_request, typed_request

UNKNOWN_FIELD = b"\x7a"  # number 15, length-delimited
TAG = b"\x3a\x90\x06"  # raw_input_contents, 784 bytes


@pytest.fixture
def method(classifier):
    return Infer(router_of(classifier.served))


def test_head_of_a_plain_request_is_learned(method, images):
    for num_images in (1, 2, 64):
        data = raw_request(images[:num_images]).SerializeToString()
        _, plan = method.read(data)
        known = method.prefixes[frame(data)[: -num_images * DIGITS.image_bytes]]
        assert known.num_rows == plan.num_rows == num_images
        rows = np.arange(10 * num_images, dtype=np.float32).reshape(-1, 10)
        result = Result([rows], num_images, "7", DIGITS, 0.0, 0.0)
        assert known.encode(result, 0, 1) == plan.encode(result, 0, 1)
        others = raw_request(images[-num_images:]).SerializeToString()
        pixels, plan = method.read(others)
        assert plan is known
        assert bytes(pixels) == images[-num_images:].tobytes()


@pytest.mark.parametrize(
    "fields",
    [
        {"id": "7"},
        {"model_version": "1"},
        {"parameters": {"timeout": {"int64_param": 1000}}},
    ],
)
def test_head_that_asks_for_more_is_not_learned(method, images, fields):
    method.read(raw_request(images[:1], **fields).SerializeToString())
    assert not method.prefixes


def test_head_of_typed_contents_is_not_learned(method, images):
    method.read(typed_request(images[:1]).SerializeToString())
    assert not method.prefixes


def test_image_that_only_looks_like_the_end_is_not_taken_for_it(method, images):
    image = images[:1].tobytes()
    data = raw_request(images[:1]).SerializeToString()
    inside = TAG + image  # repeated within a field that nobody reads
    method.read(data + UNKNOWN_FIELD + bytes((0x93, 0x06)) + inside)
    assert not method.prefixes


def test_heads_are_bounded(method, images):
    for number in range(300):
        hint = {"priority": {"int64_param": number}}
        method.read(raw_request(images[:1], parameters=hint).SerializeToString())
    assert len(method.prefixes) <= 256


@pytest.mark.parametrize("width", [2, 0])
def test_rows_without_elements_have_no_layout(width):
    """Calls of one layout run together, and these may not: see `_alike` of the batcher."""
    both = Tensor("a", "FP32", (-1, -1)), Tensor("b", "FP32", (-1, -1))
    signature = TensorSignature(both, both, is_batchable=True)
    request = ModelInferRequest(raw_input_contents=[bytes(4 * width)] * 2)
    for each in both:
        request.inputs.add(name=each.name, datatype="FP32", shape=[1, width])
    found = raw_ending(request, decode(request, signature, 8), signature, lambda _: b"")
    assert (found is not None) == (width > 0)
