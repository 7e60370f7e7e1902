"""One real server with models of every kind, asked by gRPC, HTTP and tritonclient's messages."""

import json
import time
from typing import Any

import grpc
import numpy as np
import pytest

from digit_classifier import Classifier
from serving.client import Client
from serving.errors import ModelNotFound
from serving.model.onnx_runtime import runtime
from serving.oip import inference_pb
from tests.serving.http.peer import HttpPeer
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value
from tests.support.servers import on_both, serve_command, started

GENERATOR = np.random.default_rng(0)
SLOW_SIZE = 700
"""A product of such matrices takes too long for the loop to run it itself."""


def models():
    """Several inputs and outputs, open axes, texts, state, rows that depend on each other."""
    both = [value("a", "FP32", ["N", 3]), value("b", "INT64", ["N", 3])]
    square = np.eye(SLOW_SIZE, dtype=np.float32)
    slow = [node("MatMul", [f"h{i}" if i else "x", "w"], [f"h{i + 1}"]) for i in range(40)]
    return {
        "two": graphs.model(
            [node("Cast", ["b"], ["c"], to=1), node("Add", ["a", "c"], ["sum"]),
             node("Mul", ["b", "b"], ["square"])],
            both, [value("sum", "FP32", ["N", 3]), value("square", "INT64", ["N", 3])]),
        "layers": graphs.two_layers(),
        "open": graphs.rows_model(node("Softmax", ["x"], ["y"]), num_columns="T"),
        "mean": graphs.rows_model(node("ReduceMean", ["x"], ["y"], axes=[0], keepdims=1)),
        "fixed": graphs.model([node("Neg", ["x"], ["y"])], [value("x", "FP16", [2, 2])],
                              [value("y", "FP16", [2, 2])]),
        "text": graphs.model([node("Identity", ["x"], ["y"])], [value("x", "BYTES", ["N"])],
                             [value("y", "BYTES", ["N"])]),
        "none": graphs.model([node("Constant", [], ["y"], value_floats=[1.0, 2.0])], [],
                             [value("y", "FP32", [2])]),
        "flags": graphs.model([node("Not", ["x"], ["y"])], [value("x", "BOOL", ["N", 4])],
                              [value("y", "BOOL", ["N", 4])]),
        "scalar": graphs.model([node("Add", ["x", "x"], ["y"])], [value("x", "FP64", [])],
                               [value("y", "FP64", [])]),
        "slow": graphs.model(
            [*slow, node("Identity", ["h40"], ["y"])], [value("x", "FP32", ["N", SLOW_SIZE])],
            [value("y", "FP32", ["N", SLOW_SIZE])], {"w": square}),
    }  # fmt: skip


INPUTS: dict[str, dict[str, Any]] = {
    "two": {"a": GENERATOR.normal(size=(5, 3)).astype(np.float32),
            "b": GENERATOR.integers(-9, 9, (5, 3))},
    "layers": {"x": GENERATOR.normal(size=(7, 4)).astype(np.float32)},
    "open": {"x": GENERATOR.normal(size=(2, 9)).astype(np.float32)},
    "mean": {"x": GENERATOR.normal(size=(3, 4)).astype(np.float32)},
    "fixed": {"x": GENERATOR.normal(size=(2, 2)).astype(np.float16)},
    "text": {"x": np.array(["", "größer", "a\0b"], object)},
    "none": {},
    "flags": {"x": GENERATOR.integers(0, 2, (3, 4)).astype(bool)},
    "scalar": {"x": np.array(2.5)},
    "slow": {"x": GENERATOR.normal(size=(3, SLOW_SIZE)).astype(np.float32)},
}  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in models().items():
        graphs.save(model, folder, f"{name}.onnx")
    return folder


@pytest.fixture(scope="module", params=["h2"])
def many(folder, request):
    files = [str(folder / f"{name}.onnx") for name in INPUTS]
    command = serve_command(None, "--http-port", "0", "--transport", request.param, *files)
    with started(command) as server:
        yield server
        assert server.stop() == 0


def expected(folder, name, inputs):
    """ONNX Runtime's answer in this process."""
    session = runtime().InferenceSession((folder / f"{name}.onnx").read_bytes())
    names = [output.name for output in session.get_outputs()]
    return dict(zip(names, session.run(None, inputs), strict=True))


@pytest.mark.parametrize("name", INPUTS)
def test_each_model_answers_as_onnx_runtime_does(many, folder, name):
    wanted = expected(folder, name, INPUTS[name])
    with Client(many.address) as client:
        for _ in range(3):  # read in full; then by its prefix, where it has one
            answer = client.infer(name, INPUTS[name])
            assert answer.keys() == wanted.keys()
            for output, array in wanted.items():
                assert answer[output].dtype == array.dtype
                np.testing.assert_array_equal(answer[output], array)


def post(server, path, body):
    return HttpPeer(server.facts["http"]).post(path, json.dumps(body))


@pytest.mark.parametrize("name", INPUTS)
def test_json_gives_the_same(many, folder, name):
    datatypes = {np.float32: "FP32", np.float16: "FP16", np.float64: "FP64", np.int64: "INT64",
                 np.bool_: "BOOL"}  # fmt: skip
    inputs = [
        {"name": each, "shape": array.shape, "data": array.tolist() if array.ndim else [array[()]],
         "datatype": datatypes.get(array.dtype.type, "BYTES")}
        for each, array in INPUTS[name].items()
    ]  # fmt: skip
    answer = post(many, f"/v2/models/{name}/infer", {"inputs": inputs}).json
    for output in answer["outputs"]:
        wanted = expected(folder, name, INPUTS[name])[output["name"]]
        assert output["shape"] == list(wanted.shape)
        np.testing.assert_array_equal(np.array(output["data"], wanted.dtype), wanted.ravel())


# Versions, labels, and the repository


@pytest.fixture
def repository(tmp_path):
    """Two versions of one model, which answer their number."""
    for version in ("1", "2"):
        (tmp_path / "plus" / version).mkdir(parents=True)
        graphs.save(
            graphs.rows_model(node("Add", ["x", "c"], ["y"]),
                              constants={"c": np.full(4, int(version), np.float32)}),
            tmp_path / "plus" / version,
        )  # fmt: skip
    return tmp_path


ZEROS = np.zeros((1, 4), np.float32)


def answered(client, version=""):
    return int(client.infer("plus", {"x": ZEROS}, version=version)["y"][0, 0])


def labels(repository, **content):
    path = repository / "plus" / "labels.json"
    path.with_suffix(".new").write_text(json.dumps(content))
    path.with_suffix(".new").rename(path)


def test_labels_and_versions_over_the_network(repository):
    labels(repository, stable="1", next="2")
    options = ("--versions", "all", "--reload-interval", "0.05")
    with started(serve_command(repository, *options)) as server, Client(server.address) as client:
        assert [answered(client, version) for version in ("", "1", "2", "next")] == [1, 1, 2, 2]
        with pytest.raises(ModelNotFound, match="no version '3', only 2, 1, stable, next"):
            answered(client, "3")
        with (
            Classifier.connect(server.address) as classifier,
            pytest.raises(ModelNotFound, match="no classifier of images is served"),
        ):
            classifier.classify(np.zeros((1, 784), np.uint8))
        labels(repository, stable="2")
        deadline_s = time.monotonic() + 10
        while answered(client) != 2:
            assert time.monotonic() < deadline_s
        assert server.stop() == 0


@on_both
def test_model_is_loaded_and_unloaded_by_its_name(repository, transport):
    options = ("--allow-repository-control", "--http-port", "0", "--transport", transport)
    with started(serve_command(repository, *options)) as server, Client(server.address) as client:
        for _ in range(3):
            assert answered(client) == 2
        post(server, "/v2/repository/models/plus/unload", {})
        with pytest.raises(ModelNotFound):
            answered(client)
        assert post(server, "/v2/repository/index", {"ready": True}).json == []
        assert post(server, "/v2/repository/index", {}).json == [
            {"name": "plus", "version": "", "state": "UNAVAILABLE", "reason": "unloaded"}
        ]
        post(server, "/v2/repository/models/plus/load", {})
        assert answered(client) == 2
        with grpc.insecure_channel(server.address) as channel:
            change = {"config": {"string_param": "{}"}}
            request = inference_pb.RepositoryModelLoadRequest(model_name="plus", parameters=change)
            call = channel.unary_unary(f"/{inference_pb.SERVICE}/RepositoryModelLoad")
            with pytest.raises(grpc.RpcError, match="expected no parameters"):
                call(request.SerializeToString())
        for parameters in ({"config": "{}"}, {"file:1/model.onnx": "YQ=="}):
            body = {"parameters": parameters}
            assert post(server, "/v2/repository/models/plus/load", body).status == 400
        memory = "systemsharedmemory/region/x/register"
        for path in (memory, "logging", "models/plus/trace/setting"):
            assert post(server, f"/v2/{path}", {}).status == 501
        assert server.stop() == 0
