"""ModelInfer as its callers see it: answers and error messages."""

from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from serving import Client
from serving.tensors import DIGITS
from tests.support.inference_peer import (
    Peer,
    probabilities_in,
    raw_request,
    status_of,
    typed_request,
)
from tests.support.servers import on_both, running_server


def test_version_output_and_parameters_may_be_named(peer, classifier, images):
    expected = classifier.classify(images[:1]).probabilities
    parameters = {"priority": {"uint64_param": 1}, "note": {"string_param": "x"}}
    for timeout in ({"int64_param": 10**7}, {"uint64_param": 10**7}, {"int64_param": 0}):
        request = raw_request(
            images[:1],
            model_version="1",
            outputs=[{"name": "probabilities"}],
            parameters={**parameters, "timeout": timeout},
        )
        np.testing.assert_array_equal(probabilities_in(peer.infer(request)), expected)


def test_largest_request_is_answered_and_one_more_image_is_refused(peer, classifier, images):
    many = np.resize(images, (4097, images.shape[1]))
    expected = classifier.classify(many[:4096]).probabilities
    for request in (raw_request, typed_request):
        answer = peer.infer(request(many[:4096]))
        np.testing.assert_array_equal(probabilities_in(answer), expected)
        code, text = status_of(lambda request=request: peer.infer(request(many)))
        assert code is grpc.StatusCode.INVALID_ARGUMENT
        assert text == "expected at most 4096 rows in a request, got 4097"


IMAGE = np.zeros((1, DIGITS.image_bytes), np.uint8)
TENSOR: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, DIGITS.image_bytes]}


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"inputs": [TENSOR | {"name": "x" * 10_000}]},
         f"expected inputs 'images', got '{'x' * 199}..."),
        ({"inputs": [TENSOR | {"shape": [0, 784]}]}, "expected at least 1 row, got 0"),
        ({"raw_input_contents": []}, "expected 784 uint_contents for images [1, 784], got 0"),
        (
            {"inputs": [TENSOR | {"contents": {"uint_contents": [0] * 784}}]},
            "expected contents or raw_input_contents, got both",
        ),
        ({"outputs": [{"name": "logits"}]}, "expected outputs 'probabilities', got 'logits'"),
        (
            {"parameters": {"timeout": {"string_param": "1"}}},
            "expected timeout as int64_param or uint64_param, got string_param",
        ),
        (
            {"parameters": {"timeout": {"int64_param": -1}}},
            "expected a timeout of at least 0, got -1",
        ),
        ({"id": "x" * 513}, "expected an id of at most 512 characters, got 513"),
    ],
)  # fmt: skip
def test_bad_request_is_refused_with_what_was_expected_and_what_came(peer, fields, text):
    request = raw_request(IMAGE, **fields)
    assert status_of(lambda: peer.infer(request)) == (grpc.StatusCode.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("contents", "text"),
    [
        ({"uint_contents": [0] * 783}, "expected 784 uint_contents for images [1, 784], got 783"),
        ({"int_contents": [0] * 784}, "expected uint_contents for UINT8, got int_contents"),
    ],
)
def test_bad_contents_are_refused_with_what_was_expected_and_what_came(peer, contents, text):
    inputs = [TENSOR | {"contents": contents}]
    request = raw_request(IMAGE, raw_input_contents=[], inputs=inputs)
    assert status_of(lambda: peer.infer(request)) == (grpc.StatusCode.INVALID_ARGUMENT, text)


@pytest.mark.parametrize(
    ("fields", "text"),
    [
        ({"model_name": "letters"}, "no model 'letters': this server serves 'digits'"),
        ({"model_version": "9"}, "model 'digits' has no version '9', only 1"),
    ],
)
def test_unknown_model_or_version_is_not_found(peer, fields, text):
    request = raw_request(IMAGE, **fields)
    assert status_of(lambda: peer.infer(request)) == (grpc.StatusCode.NOT_FOUND, text)
    named = {name.removeprefix("model_"): value for name, value in fields.items()}
    question = {"name": "digits", **named}
    for method in ("ModelMetadata", "ModelConfig", "ModelStatistics"):
        code, details = status_of(lambda method=method: peer.call(method, **question))
        assert (code, details) == (grpc.StatusCode.NOT_FOUND, text)
    assert not peer.call("ModelReady", **question).ready


@pytest.mark.parametrize("method", ["ModelInfer", "ModelReady", "ModelMetadata", "RepositoryIndex"])
def test_malformed_message_is_refused(peer, method):
    expected = f"expected an inference.{method}Request, got 3 bytes that are none"
    for data in (b"\x0a\x7f\x00", b"\xff\xff\xff"):
        code, text = status_of(lambda data=data: peer.send(method, data))
        assert (code, text) == (grpc.StatusCode.INVALID_ARGUMENT, expected)


def test_model_answers_to_its_served_name_only(models, images):
    options = ("--served-name", "mnist-prod")
    with (
        running_server(models, *options) as server,
        grpc.insecure_channel(server.address) as channel,
        Client(server.address) as client,
    ):
        assert server.facts["model"] == client.model_info().name == "mnist-prod"
        peer = Peer(channel)
        for _ in range(3):  # the second reuses parts of the first answer
            response = peer.infer(raw_request(images[:1], model_name="mnist-prod"))
            assert response.model_name == "mnist-prod"
        assert peer.call("ModelMetadata", name="mnist-prod").name == "mnist-prod"
        code, text = status_of(lambda: peer.infer(raw_request(images[:1])))
        assert code is grpc.StatusCode.NOT_FOUND
        assert text == "no model 'digits': this server serves 'mnist-prod'"


@on_both
def test_features_of_other_servers_are_refused_by_their_names(peer):
    images = np.zeros((1, DIGITS.image_bytes), np.uint8)
    classes = {"name": "probabilities", "parameters": {"classification": {"int64_param": 3}}}
    region = TENSOR | {"parameters": {"shared_memory_region": {"string_param": "x"}}}
    calls: dict[str, Any] = {
        "classification": lambda: peer.infer(raw_request(images, outputs=[classes])),
        "shared memory": lambda: peer.infer(raw_request(images, inputs=[region])),
        **{feature: partial(peer.send, method, b"") for feature, method in (
            ("trace settings", "TraceSetting"), ("log settings", "LogSettings"),
            ("shared memory is", "SystemSharedMemoryStatus"),
            ("shared memory is not", "CudaSharedMemoryRegister"))},
    }  # fmt: skip
    for feature, call in calls.items():
        code, text = status_of(call)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert text.startswith(feature)
        assert "images" not in text
