"""The Open Inference Protocol over HTTP: JSON and binary tensors, and queries about models."""

import json
from typing import Any

import numpy as np
import pytest

INFER = "/v2/models/digits/infer"


def tensor(images, **more):
    return {"name": "images", "datatype": "UINT8", "shape": list(images.shape), **more}


def infer(http, request, path=INFER, **headers):
    return http.post(path, json.dumps(request), **headers)


def binary(http, images, **more):
    """Ask with the images as bytes behind the JSON."""
    size = {"binary_data_size": images.nbytes}
    head = json.dumps({"inputs": [tensor(images, parameters=size)], **more}).encode()
    return http.post(INFER, head + images.tobytes(), Inference_Header_Content_Length=str(len(head)))


@pytest.mark.parametrize("path", [INFER, "/v2/models/digits/versions/1/infer"])
def test_json_answers_equal_the_classifier(path, http, images, classifier):
    reply = infer(http, {"id": "a", "inputs": [tensor(images[:5], data=images[:5].tolist())]}, path)
    assert (reply.status, reply.headers["content-type"]) == (200, "application/json")
    answer = reply.json
    assert (answer["model_name"], answer["model_version"], answer["id"]) == ("digits", "1", "a")
    output = answer["outputs"][0]
    assert (output["name"], output["datatype"], output["shape"]) == (
        "probabilities",
        "FP32",
        [5, 10],
    )
    np.testing.assert_allclose(
        np.reshape(output["data"], (5, 10)),
        classifier.classify(images[:5]).probabilities,
        atol=1e-5,
    )


@pytest.mark.parametrize(
    "part",
    [
        {"parameters": {str(number): 1 for number in range(1100)}},
        {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [0, 784], "data": []}] * 1100},
        {"outputs": [{"name": "probabilities"}] * 1100},
        {"id": "a" * 70_000},
    ],
)
def test_request_of_many_parts_is_refused_before_the_loop_reads_it(part, http, images):
    request = {"inputs": [tensor(images[:1], data=images[:1].tolist())]} | part
    reply = infer(http, request)
    assert reply.status == 400
    assert "expected at most" in reply.json["detail"]


def test_flat_data_is_read_too(http, images):
    nested, flat = (
        infer(http, {"inputs": [tensor(images[:3], data=data)]}).json["outputs"]
        for data in (images[:3].tolist(), images[:3].ravel().tolist())
    )
    assert nested == flat


def test_binary_tensors_go_in_and_come_out(http, images, classifier):
    outputs = [{"name": "probabilities", "parameters": {"binary_data": True}}]
    reply = binary(http, images[:64], outputs=outputs)
    assert reply.status == 200, reply.body
    length = int(reply.headers["inference-header-content-length"])
    head = json.loads(reply.body[:length])
    assert head["outputs"][0]["parameters"] == {"binary_data_size": 64 * 40}
    rows = np.frombuffer(reply.body[length:], "<f4").reshape(64, 10)
    expected = classifier.classify(images[:64]).probabilities
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_binary_in_and_json_out(http, images):
    reply = binary(http, images[:1])
    assert reply.headers["content-type"] == "application/json"
    assert len(reply.json["outputs"][0]["data"]) == 10


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v2", {"name": "digit-serving"}),
        ("/v2/health/live", {"live": True}),
        ("/v2/health/ready", {"ready": True}),
        ("/v2/models/digits", {"name": "digits", "versions": ["1"]}),
        ("/v2/models/digits/versions/1", {"name": "digits"}),
        ("/v2/models/digits/ready", {"ready": True}),
        ("/v2/models/digits/config", {"name": "digits", "max_batch_size": 512}),
    ],
)
def test_queries_are_answered(path, expected, http):
    reply = http.get(path)
    assert reply.status == 200
    assert reply.json.items() >= expected.items()


def test_model_that_is_not_there_is_not_ready(http):
    assert http.get("/v2/models/letters/ready").status == 503
    assert http.get("/v2/models/letters").status == 404


def test_index_lists_the_model(http):
    expected = [{"name": "digits", "version": "1", "state": "READY", "reason": ""}]
    assert http.post("/v2/repository/index").json == expected
    assert http.post("/v2/repository/index", b'{"ready": true}').json == expected
    assert http.post("/v2/repository/index", b'{"ready": 1}').status == 400


def test_statistics_count_http_requests(http, images):
    def counts():
        statistics = http.get("/v2/models/digits/stats").json["model_stats"][0]
        parts = statistics["inference_stats"]
        return statistics["inference_count"], parts["success"]["count"], parts["fail"]["count"]

    before = counts()
    binary(http, images[:7])
    infer(http, {"inputs": []})
    assert np.subtract(counts(), before).tolist() == [7, 1, 1]


GOOD: dict[str, Any] = {"name": "images", "datatype": "UINT8", "shape": [1, 784], "data": [0] * 784}
BAD_REQUESTS: list[tuple[Any, str]] = [
    (b"{", "expected JSON"),
    (b"[]", "the body as an object"),
    (b"\xff", "expected JSON"),
    (b'{"id": "\\ud800", "inputs": []}', "no low surrogate"),
    ({"inputs": 1}, "inputs as a list"),
    ({"inputs": []}, "expected inputs 'images', got none"),
    ({"inputs": [{**GOOD, "datatype": "FP32"}]}, "expected images UINT8 [N, 784], got FP32"),
    ({"inputs": [{**GOOD, "shape": [1.5, 784]}]}, "list of integers"),
    ({"inputs": [{**GOOD, "shape": [2**63, 784]}]}, "64 bits"),
    (
        {"inputs": [{**GOOD, "data": [0] * 783}]},
        "expected 784 values of 'images' for the shape [1, 784], got 783",
    ),
    ({"inputs": [{**GOOD, "data": "0"}]}, "data as a list"),
    ({"inputs": [{key: GOOD[key] for key in ("name", "datatype", "shape")}]}, "expected data"),
    ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 784}}]}, "binary_data_size from 0"),
    ({"inputs": [{**GOOD, "parameters": {"x": [1]}}]}, "parameter 'x'"),
    ({"inputs": [{**GOOD, "shape": [65, 784], "data": [0] * 784 * 65}]}, "at most 64"),
    (b"[" * 100_000, "expected JSON"),
]


@pytest.mark.parametrize(("request_", "words"), BAD_REQUESTS)
def test_bad_requests_are_400_and_say_what_was_expected(request_, words, http):
    body = request_ if isinstance(request_, bytes) else json.dumps(request_)
    reply = http.post(INFER, body)
    assert reply.status == 400, reply.body
    assert reply.headers["content-type"] == "application/problem+json"
    problem = reply.json
    assert (problem["title"], problem["status"]) == ("Bad Request", 400)
    assert words in problem["detail"]
    assert problem["error"] == problem["detail"]  # read by the protocol's clients


@pytest.mark.parametrize("length", ["-1", "x", "1e3", "9" * 30, "900"])
def test_bad_header_lengths_are_refused(length, http):
    reply = http.post(INFER, b"{}", Inference_Header_Content_Length=length)
    assert reply.status == 400, reply.body
    assert http.get("/v2/health/ready").status == 200


def test_bytes_behind_the_tensors_are_refused(http, images):
    head = json.dumps(
        {"inputs": [tensor(images[:1], parameters={"binary_data_size": 784})]}
    ).encode()
    reply = http.post(
        INFER, head + images[:1].tobytes() + b"x", Inference_Header_Content_Length=str(len(head))
    )
    assert (reply.status, "1 bytes more" in reply.json["detail"]) == (400, True)
