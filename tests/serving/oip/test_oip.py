"""The Open Inference Protocol as its callers see it: answers, errors, queries and streams."""

import subprocess
import sys
from functools import partial
from typing import Any

import grpc
import numpy as np
import pytest

from digit_classifier.predictions import DIGITS
from serving import Client
from serving.batching.run import Result
from serving.config import BatchingConfig
from serving.oip import queries
from serving.oip.infer import Asked, Infer, values_alone
from serving.oip.inference_pb import SERVICE, ModelInferRequest, ModelStreamInferResponse
from serving.oip.protobuf import sent_in
from serving.oip.request import understand
from serving.protocols.framing import frame
from serving.tensors import Tensor, TensorSignature
from tests.serving.transports import test_faults
from tests.support.fakes import images_of, model_in, router_of
from tests.support.raw import Peer, probabilities_in, raw_request, status_of, typed_request
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
        assert code is grpc.StatusCode.RESOURCE_EXHAUSTED
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
        *(({"raw_input_contents": [], "inputs": [TENSOR | {"contents": contents}]}, text)
          for contents, text in (
            ({"uint_contents": [0] * 783},
             "expected 784 uint_contents for images [1, 784], got 783"),
            ({"int_contents": [0] * 784}, "expected uint_contents for UINT8, got int_contents"))),
    ],
)  # fmt: skip
def test_bad_request_is_refused_with_what_was_expected_and_what_came(peer, fields, text):
    request = raw_request(IMAGE, **fields)
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


@pytest.mark.parametrize(
    "wrong",
    [{"raw_input_contents": [b"", b""]},
     {"inputs": [TENSOR | {"contents": {"uint_contents": [0] * 784}}]}],
)  # fmt: skip
def test_request_of_wrong_contents_is_counted_as_its_model_s(peer, wrong):
    def num_failed():
        (found,) = peer.call("ModelStatistics", name="digits").model_stats
        return found.inference_stats.fail.count

    before = num_failed()
    code, _ = status_of(lambda: peer.infer(raw_request(IMAGE, **wrong)))
    assert (code, num_failed() - before) == (grpc.StatusCode.INVALID_ARGUMENT, 1)
    code, text = status_of(lambda: peer.infer(raw_request(IMAGE, model_name="x", **wrong)))
    assert (code, text) == (grpc.StatusCode.NOT_FOUND, "no model 'x': this server serves 'digits'")


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
        assert server.facts["model"] == client.describe("mnist-prod").name == "mnist-prod"
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
            ("shared memory is", "CudaSharedMemoryStatus"),
            ("shared memory is not", "CudaSharedMemoryRegister"))},
    }  # fmt: skip
    for feature, call in calls.items():
        code, text = status_of(call)
        assert code is grpc.StatusCode.UNIMPLEMENTED
        assert text.startswith(feature)
        assert "images" not in text


UNKNOWN_FIELD = b"\x7a"  # number 15, length-delimited
TAG = b"\x3a\x90\x06"  # raw_input_contents, 784 bytes


@pytest.fixture
def learned(classifier):
    return Infer(router_of(*model_in(classifier)))


def test_head_of_a_plain_request_is_learned(learned, images):
    for num_images in (1, 2, 64):
        data = raw_request(images[:num_images]).SerializeToString()
        _, plan = learned.read(data)
        known = learned.known[frame(data)[: -num_images * DIGITS.image_bytes]]
        assert known.num_rows == plan.num_rows == num_images
        rows = np.arange(10 * num_images, dtype=np.float32).reshape(-1, 10)
        result = Result([rows], num_images, "7", DIGITS, 0.0, 0.0)
        assert known.encode(result, 0, 1) == plan.encode(result, 0, 1)
        others = raw_request(images[-num_images:]).SerializeToString()
        pixels, plan = learned.read(others)
        assert plan is known
        assert bytes(pixels) == images[-num_images:].tobytes()


@pytest.mark.parametrize(
    "fields",
    [{"id": "7"}, {"model_version": "1"}, {"parameters": {"timeout": {"int64_param": 1000}}}],
)
def test_head_that_asks_for_more_is_not_learned(learned, images, fields):
    learned.read(raw_request(images[:1], **fields).SerializeToString())
    assert not learned.known


def test_head_of_typed_contents_is_not_learned(learned, images):
    learned.read(typed_request(images[:1]).SerializeToString())
    assert not learned.known


def test_image_that_only_looks_like_the_end_is_not_taken_for_it(learned, images):
    image = images[:1].tobytes()
    data = raw_request(images[:1]).SerializeToString()
    inside = TAG + image  # repeated within a field that nobody reads
    learned.read(data + UNKNOWN_FIELD + bytes((0x93, 0x06)) + inside)
    assert not learned.known


def test_heads_are_bounded(learned, images):
    for number in range(300):
        hint = {"priority": {"int64_param": number}}
        learned.read(raw_request(images[:1], parameters=hint).SerializeToString())
    assert len(learned.known) <= 256


@pytest.mark.parametrize("width", [2, 0])
def test_rows_without_elements_have_no_layout(width):
    """Calls of one layout run together, and these may not: see `_alike` of the batcher."""
    both = Tensor("a", "FP32", (-1, -1)), Tensor("b", "FP32", (-1, -1))
    signature = TensorSignature(both, both, is_batchable=True)
    request = ModelInferRequest(raw_input_contents=[bytes(4 * width)] * 2)
    for each in both:
        request.inputs.add(name=each.name, datatype="FP32", shape=[1, width])
    sent = sent_in(request)
    asked = Asked(Any, signature, *understand(sent, "m", signature, 8))
    found = values_alone(sent, asked, lambda _: b"")
    assert (found is not None) == (width > 0)


# Metadata, configuration and statistics over the inference protocol


def test_server_and_model_are_described(peer):
    assert peer.call("ServerLive").live
    assert peer.call("ServerReady").ready
    for fields in ({}, {"version": "1"}):
        assert peer.call("ModelReady", name="digits", **fields).ready
    for fields in ({}, {"ready": True}):
        (model,) = peer.call("RepositoryIndex", **fields).models
        assert (model.name, model.version, model.state) == ("digits", "1", "READY")
    described = peer.call("ServerMetadata")
    assert (described.name, bool(described.version)) == ("digit-serving", True)
    assert list(described.extensions) == ["model_configuration", "statistics"]


def test_config_describes_tensors_without_the_batch_axis(peer, classifier):
    info = classifier.describe()
    config = peer.call("ModelConfig", name=info.name).config
    found = config.name, config.platform, config.max_batch_size
    assert found == (info.name, "onnxruntime_onnx", 512)
    assert [(tensor.name, list(tensor.dims)) for tensor in (*config.input, *config.output)] == [
        ("images", [DIGITS.image_bytes]),
        ("probabilities", [DIGITS.num_classes]),
    ]
    assert config.HasField("dynamic_batching")
    assert config.parameters["max_request_rows"].string_value == "4096"


def test_statistics_count_images_runs_failures_and_times(models, images):
    def statistics():
        (counts,) = peer.call("ModelStatistics", name="digits").model_stats
        return counts

    with (
        running_server(models, "--self-test-interval", "0") as server,
        grpc.insecure_channel(server.address) as channel,
    ):
        peer = Peer(channel)
        before = statistics()
        peer.infer(raw_request(images[:100]))
        peer.infer(typed_request(images[:1]))
        status_of(lambda: peer.infer(raw_request(images[:1], id="x" * 513)))
        other = raw_request(images[:1], model_name="letters")
        status_of(lambda: peer.infer(other))  # not ours to count
        after = statistics()
    assert (after.name, after.version) == ("digits", "1")
    assert after.inference_count - before.inference_count == 101
    assert after.execution_count - before.execution_count == 2
    assert after.last_inference > 1_600_000_000_000
    for name, times in (("success", 2), ("fail", 1), ("queue", 2), ("compute_input", 2),
                        ("compute_infer", 2), ("compute_output", 2)):  # fmt: skip
        old, new = getattr(before.inference_stats, name), getattr(after.inference_stats, name)
        assert new.count - old.count == times
        assert new.ns > old.ns or name in ("fail", "compute_input")  # neither is timed here
    parts = ("queue", "compute_input", "compute_infer", "compute_output")
    stats = after.inference_stats
    assert sum(getattr(stats, name).ns for name in parts) <= stats.success.ns
    assert sum(size.compute_infer.count for size in after.batch_stats) == after.execution_count


def test_messages_stay_out_of_the_default_pool():
    code = (
        "import serving.server.server\n"
        "from google.protobuf import descriptor_pool\n"
        "try:\n"
        "    descriptor_pool.Default().FindMessageTypeByName('inference.ModelInferRequest')\n"
        "except KeyError:\n"
        "    raise SystemExit(0)\n"
        "raise SystemExit('other clients of the protocol could not be imported')\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


ODD = TensorSignature(
    (Tensor("text", "BYTES", (-1, 1)), Tensor("state", "FP16", (2, -1, 64))),
    (Tensor("score", "FP64", ()),),
    is_batchable=False,
)


def test_model_that_does_not_batch_has_all_axes_and_no_batch_size():
    assert queries.model_metadata("odd", ("1", "3"), ODD) == {
        "name": "odd",
        "versions": ["1", "3"],
        "platform": "onnxruntime_onnx",
        "inputs": [
            {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
            {"name": "state", "datatype": "FP16", "shape": [2, -1, 64]},
        ],
        "outputs": [{"name": "score", "datatype": "FP64", "shape": []}],
    }
    assert queries.model_config("odd", ODD, BatchingConfig(), {}) == {
        "name": "odd",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 0,
        "input": [
            {"name": "text", "data_type": "TYPE_STRING", "dims": [-1, 1]},
            {"name": "state", "data_type": "TYPE_FP16", "dims": [2, -1, 64]},
        ],
        "output": [{"name": "score", "data_type": "TYPE_FP64", "dims": []}],
        "parameters": {},
        "backend": "onnxruntime",
    }


def test_models_are_not_loaded_where_that_is_not_allowed(peer):
    for method in ("RepositoryModelLoad", "RepositoryModelUnload"):
        code, text = status_of(partial(peer.call, method, model_name="digits"))
        assert code is grpc.StatusCode.FAILED_PRECONDITION
        assert "without --allow-repository-control" in text


# ModelStreamInfer and its faults, proved by a gated engine's runs as in test_faults


running = test_faults.running
STREAM = f"/{SERVICE}/ModelStreamInfer"


def test_stream_is_answered_in_order_and_errors_do_not_end_it(peer, classifier, images):
    requests = [raw_request(images[i : i + 1 + i % 7], id=str(i)) for i in range(300)]
    requests[50].inputs[0].datatype = "FP32"
    requests[51].model_name = "nobody"
    requests[299].raw_input_contents[0] = b""
    messages = [request.SerializeToString() for request in requests]
    messages[100] = b"\xff"
    responses = list(peer.stream(iter(messages)))
    assert len(responses) == 300
    errors = {i: r.error_message for i, r in enumerate(responses) if r.error_message}
    assert errors.keys() == {50, 51, 100, 299}
    assert "images UINT8" in errors[50]
    assert "'nobody'" in errors[51]
    assert "expected an inference.ModelInferRequest" in errors[100]
    for i, response in enumerate(responses):
        assert response.infer_response.id == ("" if i == 100 else str(i))
        if i not in errors:
            local = classifier.classify(images[i : i + 1 + i % 7]).probabilities
            np.testing.assert_array_equal(probabilities_in(response.infer_response), local)


def test_stream_answers_typed_and_raw_each_in_its_form(peer, images):
    messages = [request(images[:2]).SerializeToString() for request in (raw_request, typed_request)]
    raw, typed = (response.infer_response for response in peer.stream(iter(messages)))
    assert len(raw.raw_output_contents) == 1
    assert not typed.raw_output_contents
    np.testing.assert_array_equal(probabilities_in(raw), probabilities_in(typed))


def test_large_typed_contents_on_a_stream_are_answered_in_order(peer, images):
    large = np.resize(images, (60, images.shape[1]))
    requests = [
        typed_request(large, id="0"),
        raw_request(images[:1], id="1"),
        typed_request(large, id="2", model_name="nobody"),
        typed_request(large, id="3"),
    ]
    assert len(requests[0].SerializeToString()) > 32 << 10
    responses = list(peer.stream(request.SerializeToString() for request in requests))
    assert [each.infer_response.id for each in responses] == ["0", "1", "2", "3"]
    assert [bool(each.error_message) for each in responses] == [False, False, True, False]
    first, last = responses[0].infer_response, responses[3].infer_response
    assert not first.raw_output_contents
    np.testing.assert_array_equal(probabilities_in(first), probabilities_in(last))


def test_messages_of_too_many_inputs_are_refused_and_the_server_goes_on(peer, images):
    bomb = raw_request(images[:1]).SerializeToString() + b"\x2a\0" * 1_500_000
    responses = list(peer.stream(iter([bomb, raw_request(images[:1]).SerializeToString()])))
    assert [bool(each.error_message) for each in responses] == [True, False]


def test_empty_stream_ends_well(peer):
    assert list(peer.stream(iter([]))) == []


def message(*values, **fields):
    data: bytes = raw_request(images_of(*values), **fields).SerializeToString()
    return data


def open_stream(channel):
    method = channel.stream_stream(
        STREAM, response_deserializer=ModelStreamInferResponse.FromString
    )
    return method()


async def test_failed_run_is_the_error_of_one_message(running):
    running.engine.open(1000)
    async with grpc.aio.insecure_channel(running.server.address) as channel:
        call = open_stream(channel)
        for value in (12, 13, 14):
            await call.write(message(value, id=str(value)))
        await call.done_writing()
        good, bad, last = [response async for response in call]
    assert bad.error_message == "the model failed on this request"
    assert bad.infer_response.id == "13"
    assert probabilities_in(good.infer_response).argmax() == 2
    assert probabilities_in(last.infer_response).argmax() == 4


async def test_timeout_that_passes_in_the_queue_is_never_run(running):
    first = await running.occupy()
    async with grpc.aio.insecure_channel(running.server.address) as channel:
        method = channel.unary_unary(f"/{SERVICE}/ModelInfer")
        calls = [
            method(message(41, parameters={"timeout": {kind: 1000}}))
            for kind in ("int64_param", "uint64_param")
        ]
        for call in calls:
            assert await call.code() is grpc.StatusCode.DEADLINE_EXCEEDED
        running.engine.open()
        assert await first == [0]
    await test_faults.ends_well(running)
    assert running.engine.ran == [[0], [1, 2, 3]]
