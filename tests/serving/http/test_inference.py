"""The Open Inference Protocol over HTTP: JSON and binary tensors, and queries about models."""

import json
from contextlib import closing
from dataclasses import fields
from http.client import HTTPConnection
from typing import Any

import numpy as np
import pytest

from serving import Client, ModelInfo
from tests.serving.http.peer import HttpPeer
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value
from tests.support.servers import running_server, serve_command, started

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


def test_name_of_a_parameter_that_is_no_text_is_refused(http):
    reply = http.post("/v2/repository/models/digits/load", b'{"parameters": {"\\ud800": NaN}}')
    assert reply.status == 400
    assert "parameters as printable text" in reply.json["detail"]


def test_long_json_is_read_in_the_memory_that_there_is(http, images):
    body = json.dumps({"inputs": [tensor(images[:1], data=images[:1].tolist())]}).encode()
    assert http.post(INFER, body + b" " * (8 << 20)).status == 200
    reply = http.post(INFER, b'{"inputs": [' + b"[]," * (8 << 20) + b"[]]}")
    assert (reply.status, reply.json["detail"]) == (413, "it needs too much memory")


@pytest.mark.parametrize(
    "part",
    [
        {"parameters": {str(number): 1 for number in range(6000)}},
        {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [0, 784], "data": []}] * 6000},
        {"outputs": [{"name": "probabilities"}] * 6000},
        {"id": "a" * 70_000},
        {"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2**62] * 6000, "data": []}]},
    ],
)
def test_request_of_many_parts_is_refused_before_the_loop_reads_it(part, http, images):
    request = {"inputs": [tensor(images[:1], data=images[:1].tolist())]} | part
    reply = infer(http, request)
    assert reply.status == 400
    assert "expected at most" in reply.json["detail"]


def test_each_request_of_a_connection_is_answered_for_itself(http, images):
    """One that is like the one before but for its values is not read whole."""
    rows = images[:3].tolist()
    requests = [
        *(tensor(images[:1], data=[row]) for row in rows),
        tensor(images[:3], data=rows),
        tensor(images[:1], data=[[*rows[0][1:], True]]),
        tensor(images[:1], data=[rows[0][1:]]),
        tensor(images[:1], data=[[*rows[0][1:], float("nan")]]),
        tensor(images[:1], data=rows[0]),
    ]
    connection = HTTPConnection(http.url.rpartition("/")[2])
    with closing(connection):
        for request in requests:
            body = json.dumps({"inputs": [request]})
            connection.request("POST", INFER, body)
            reply, alone = connection.getresponse(), http.post(INFER, body)
            assert (reply.status, json.load(reply)) == (alone.status, alone.json)


def test_flat_data_is_read_too(http, images):
    nested, flat = (
        infer(http, {"inputs": [tensor(images[:3], data=data)]}).json["outputs"]
        for data in (images[:3].tolist(), images[:3].ravel().tolist())
    )
    assert nested == flat


def test_json_of_three_million_numbers_is_read(http):
    """In the memory that a decoding process has."""
    data = [0] * (4096 * 784)
    many = {"name": "images", "datatype": "UINT8", "shape": [4096, 784], "data": data}
    reply = infer(http, {"inputs": [many]})
    assert (reply.status, reply.json["reason"]) == (413, "TOO_LARGE"), "this server takes 64 rows"
    data[-1] = True
    reply = infer(http, {"inputs": [many]})
    assert reply.status == 400
    assert "expected data as integers for UINT8" in reply.json["error"]


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
    ({"inputs": [{**GOOD, "data": "0"}]}, 'data as a list, got "0": a list of 1 item is ["0"]'),
    ({"inputs": [{key: GOOD[key] for key in ("name", "datatype", "shape")}]}, "expected data"),
    ({"inputs": [{**GOOD, "parameters": {"binary_data_size": 784}}]}, "binary_data_size from 0"),
    ({"inputs": [{**GOOD, "parameters": {"x": [1]}}]}, "parameter 'x'"),
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


def test_request_of_too_many_rows_is_413(http):
    many = {"inputs": [{**GOOD, "shape": [65, 784], "data": [0] * 784 * 65}]}
    reply = http.post(INFER, json.dumps(many))
    assert (reply.status, reply.json["reason"]) == (413, "TOO_LARGE")
    assert "expected at most 64 rows in a request, got 65" in reply.json["detail"]


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


# KServe's first protocol over HTTP: instances in, predictions out


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    folder = tmp_path_factory.mktemp("v1")
    both = [value("a", "FP32", ["N", 3]), value("b", "INT64", ["N"])]
    two = graphs.model(
        [node("Neg", ["a"], ["c"]), node("Mul", ["b", "b"], ["d"])],
        both, [value("c", "FP32", ["N", 3]), value("d", "INT64", ["N"])])  # fmt: skip
    one = graphs.rows_model(node("Log", ["x"], ["y"]))
    text = graphs.model([node("Identity", ["x"], ["y"])], [value("x", "BYTES", ["N"])],
                        [value("y", "BYTES", ["N"])])  # fmt: skip
    rows = [value("x", "FP32", ["N", 2])]
    total = graphs.model(
        [node("ReduceSum", ["x"], ["y"], keepdims=0)], rows, [value("y", "FP32", [])]
    )
    picture = graphs.model(
        [node("GlobalAveragePool", ["x"], ["y"])], [value("x", "FP32", ["N", 3, 640, 640])],
        [value("y", "FP32", ["N", 3, 1, 1])])  # fmt: skip
    served = {"two": two, "one": one, "text": text, "total": total, "picture": picture}
    for name, model in served.items():
        (folder / name / "1").mkdir(parents=True)
        graphs.save(model, folder / name / "1")
    with started(serve_command(folder, "--http-port", "0")) as server:
        yield server.facts["http"]


def ask(url, path, body=None):
    peer = HttpPeer(url)
    reply = peer.get(path) if body is None else peer.post(path, json.dumps(body))
    return reply.status, reply.json


def test_rows_are_answered(url):
    assert ask(url, "/v1/models") == (200, {"models": ["one", "picture", "text", "total", "two"]})
    assert ask(url, "/v1/models/one") == (200, {"name": "one", "ready": True})
    rows = [[1.0, 2.0, 4.0, 0.5], [1.0, 1.0, 1.0, 1.0]]
    code, answer = ask(url, "/v1/models/one:predict", {"instances": rows})
    assert code == 200
    np.testing.assert_allclose(answer["predictions"], np.log(rows), rtol=1e-6)
    named = [{"x": row} for row in rows]
    assert ask(url, "/v1/models/one:predict", {"instances": named}) == (200, answer)
    two = [{"a": [1, 2, 3], "b": 5}, {"a": [4, 5, 6], "b": 6}]
    wanted = [{"c": [-1, -2, -3], "d": 25}, {"c": [-4, -5, -6], "d": 36}]
    assert ask(url, "/v1/models/two:predict", {"instances": two}) == (200, {"predictions": wanted})
    text = {"instances": ["größer", ""]}
    assert ask(url, "/v1/models/text:predict", text) == (200, {"predictions": ["größer", ""]})
    _, answer = ask(url, "/v1/models/one:predict", {"instances": [[0.0, 1.0, 1.0, -1.0]]})
    assert answer["predictions"][0][:2] == [-np.inf, 0]
    assert np.isnan(answer["predictions"][0][3])


def test_picture_of_floats_fits_into_json(url):
    """As doubles, the longest way to write them: 24 MB, in a process with a limit of memory."""
    array = np.random.default_rng(0).random((1, 3, 640, 640))
    tensor = {"name": "x", "datatype": "FP32", "shape": array.shape, "data": array.ravel().tolist()}
    code, answer = ask(url, "/v2/models/picture/infer", {"inputs": [tensor]})
    assert code == 200, answer
    means = array.mean((0, 2, 3))
    np.testing.assert_allclose(answer["outputs"][0]["data"], means, rtol=1e-4)
    code, answer = ask(url, "/v1/models/picture:predict", {"instances": array.tolist()})
    assert code == 200, answer
    np.testing.assert_allclose(np.ravel(answer["predictions"]), means, rtol=1e-4)


def test_number_without_axes_is_a_prediction(url):
    rows = [[1.0, 2.0], [3.0, 4.0]]
    assert ask(url, "/v1/models/total:predict", {"instances": rows}) == (200, {"predictions": 10.0})
    body = {"instances": [[float("nan"), 1.0]]}
    code, answer = ask(url, "/v1/models/total:predict", body)
    assert (code, np.isnan(answer["predictions"])) == (200, True)


def test_many_rows_are_read_and_written_elsewhere(url):
    rows = np.random.default_rng(0).random((3000, 4)).tolist()
    _, answer = ask(url, "/v1/models/one:predict", {"instances": rows})
    np.testing.assert_allclose(answer["predictions"], np.log(rows), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    ("path", "body", "status", "expected"),
    [
        ("one:predict", {"instances": []}, 400, 'expected {"instances": [...]}'),
        ("one:predict", {"inputs": [[1]]}, 400, 'expected {"instances": [...]}'),
        ("one:predict", [], 400, "the body as an object"),
        ("one:predict", {"instances": [[1, 2], [3]]}, 400, "lists of one depth and length"),
        (
            "one:predict",
            {"instances": json.loads("[" * 900 + "]" * 900)},
            400,
            "at most 64 sizes in shape, got 65",
        ),
        ("one:predict", {"instances": [["a"] * 4]}, 400, "expected data as numbers for FP32"),
        ("one:predict", {"instances": [{"y": [1] * 4}]}, 400, 'an object with "x"'),
        ("two:predict", {"instances": [{"a": [1, 2, 3]}]}, 400, 'an object with "a", "b"'),
        ("two:predict", {"instances": [[1, 2, 3]]}, 400, 'an object with "a", "b"'),
        ("one:predict", {"instances": [[1.0, 2.0]]}, 400, "x"),
        ("nope:predict", {"instances": [[1]]}, 404, "no model 'nope'"),
        ("one:explain", {"instances": [[1]]}, 501, "NAME:predict"),
        ("one", {"instances": [[1]]}, 501, "NAME:predict"),
    ],
)
def test_mistake_is_named(url, path, body, status, expected):
    code, answer = ask(url, f"/v1/models/{path}", body)
    assert code == status
    assert expected in answer["error"]


def test_facts_of_a_model_are_those_that_describe_has(models):
    """All but the tensors, which the metadata have, and those that are not known."""
    with running_server(models, "--http-port", "0") as server, Client(server.address) as client:
        info = client.describe("digits")
        peer = HttpPeer(server.facts["http"])
        for path in ("/v2/models/digits", "/v2/models/digits/versions/1"):
            metadata = peer.get(path).json
            facts = metadata.pop("parameters")
            for name, value in facts.items():
                if name not in ("axes", "pictures"):
                    known = getattr(info, name)
                    assert value == ([*known] if isinstance(known, tuple) else known), name
            known = {field.name for field in fields(ModelInfo) if getattr(info, field.name)}
            assert known - facts.keys() == {"name", "inputs", "outputs", "is_batchable"}
            assert metadata.keys() == {"name", "versions", "platform", "inputs", "outputs"}
            assert info.is_batchable == (facts["max_batch_size"] > 0)
