"""A real server whose callers send values that a model refuses, or that take for ever."""

import json
import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from onnx import helper

from serving.client import Client
from serving.errors import DeadlineExceeded, InvalidRequest
from serving.oip import inference_pb
from tests.serving.http.peer import HttpPeer
from tests.serving.model import graphs
from tests.serving.model.graphs import node, value
from tests.support.servers import on_both, serve_command, started

VOCABULARY = 500
TABLE = np.random.default_rng(0).normal(size=(VOCABULARY, 4)).astype(np.float32)


def tokens():
    """Three inputs of one length, and outputs of two types."""
    return graphs.model(
        [node("Gather", ["table", "ids"], ["found"]), node("Unsqueeze", ["mask", "last"], ["m"]),
         node("Mul", ["found", "m"], ["seen"]), node("ReduceSum", ["seen", "last"], ["sums"]),
         node("Not", ["flags"], ["others"])],
        [value("ids", "INT64", ["N", "T"]), value("mask", "FP32", ["N", "T"]),
         value("flags", "BOOL", ["N", 3])],
        [value("seen", "FP32", ["N", "T", 4]), value("sums", "FP32", ["N", "T", 1]),
         value("others", "BOOL", ["N", 3])],
        {"table": TABLE, "last": np.array([2])},
    )  # fmt: skip


def counted():
    """A loop that doubles a number as often as an input says."""
    body = helper.make_graph(
        [node("Identity", ["go"], ["on"]), node("Add", ["before", "before"], ["after"])], "body",
        [value("number", "INT64", []), value("go", "BOOL", []), value("before", "FP32", [1])],
        [value("on", "BOOL", []), value("after", "FP32", [1])],
    )  # fmt: skip
    return graphs.model(
        [node("Loop", ["times", "", "x"], ["y"], body=body)],
        [value("times", "INT64", []), value("x", "FP32", [1])], [value("y", "FP32", [1])],
    )  # fmt: skip


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("models")
    for name, model in (("tokens", tokens()), ("counted", counted())):
        graphs.save(model, folder, f"{name}.onnx")
    return folder


@pytest.fixture(scope="module")
def callers(folder, transport):
    files = [str(folder / f"{name}.onnx") for name in ("tokens", "counted")]
    command = serve_command(None, "--http-port", "0", "--transport", transport, *files)
    with started(command) as server:
        yield server
        assert server.stop() == 0


def inputs_of(*shape, seed=0):
    generator = np.random.default_rng(seed)
    return {
        "ids": generator.integers(0, VOCABULARY, shape),
        "mask": generator.normal(size=shape).astype(np.float32),
        "flags": generator.integers(0, 2, (shape[0], 3)).astype(bool),
    }


def check(answer, inputs):
    seen = TABLE[inputs["ids"]] * inputs["mask"][:, :, None]
    np.testing.assert_array_equal(answer["seen"], seen)
    np.testing.assert_allclose(answer["sums"], seen.sum(2, keepdims=True), rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(answer["others"], ~inputs["flags"])


@on_both
def test_calls_of_several_tensors_are_answered_each_with_its_own(callers):
    """Most are recognised by their prefix; rows and lengths differ, and texts of one are mixed."""

    def ask(seed):
        generator = np.random.default_rng(seed)
        with Client(callers.address) as client:
            for number in range(40):
                shape = int(generator.integers(1, 4)), int(generator.choice((5, 6, 60)))
                inputs = inputs_of(*shape, seed=100 * seed + number)
                check(client.infer("tokens", inputs), inputs)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(ask, range(8)))


def request_of(inputs, *outputs):
    types = {"ids": "INT64", "mask": "FP32", "flags": "BOOL"}
    names = ("flags", "ids", "mask")  # another order than the model's
    return inference_pb.ModelInferRequest(
        model_name="tokens", outputs=[{"name": name} for name in outputs],
        inputs=[{"name": name, "datatype": types[name], "shape": inputs[name].shape}
                for name in names],
        raw_input_contents=[inputs[name].tobytes() for name in names],
    )  # fmt: skip


@on_both
def test_recognised_call_is_answered_as_the_first(callers):
    """Whichever order the inputs have and whichever outputs are asked for, byte for byte."""
    with grpc.insecure_channel(callers.address) as channel:
        call = channel.unary_unary(f"/{inference_pb.SERVICE}/ModelInfer")
        for outputs in ((), ("sums",), ("others", "seen")):
            first = call(request_of(inputs_of(2, 7), *outputs).SerializeToString())
            assert call(request_of(inputs_of(2, 7), *outputs).SerializeToString()) == first
            message = inference_pb.ModelInferResponse.FromString(first)
            names = [output.name for output in message.outputs]
            assert names == list(outputs or ("seen", "sums", "others"))


@on_both
def test_recognised_call_with_other_sizes_inside_fails_alone(callers):
    """The prefix and the length are those of good calls; a tensor is longer than its shape says."""
    good = request_of(inputs_of(2, 7))
    bad = inference_pb.ModelInferRequest.FromString(good.SerializeToString())
    bad.raw_input_contents[1] += bytes(8)
    bad.raw_input_contents[2] = bad.raw_input_contents[2][:-8]
    not_boolean = inference_pb.ModelInferRequest.FromString(good.SerializeToString())
    not_boolean.raw_input_contents[0] = bytes(5) + b"\2"
    with grpc.insecure_channel(callers.address) as channel:
        call = channel.unary_unary(f"/{inference_pb.SERVICE}/ModelInfer")
        for _ in range(2):
            expected = call(good.SerializeToString())
        requests = [good, bad, good, not_boolean, good]
        sent = [call.future(each.SerializeToString(), timeout=10) for each in requests]
        for request, reply in zip(requests, sent, strict=True):
            if request is good:
                assert reply.result() == expected
            else:
                assert reply.code() is grpc.StatusCode.INVALID_ARGUMENT
                assert reply.details().startswith("expected ")


@on_both
def test_value_that_an_operator_refuses_is_the_callers_mistake(callers):
    good, bad = inputs_of(1, 5), inputs_of(1, 5)
    bad["ids"][0, 2] = VOCABULARY
    text = "the model does not take these values: Gather: indices element out of data bounds, "
    text += "idx=500 must be within the inclusive range [-500,499]"

    def ask(number):
        with Client(callers.address) as client:
            for _ in range(10):
                if number % 2:
                    check(client.infer("tokens", good), good)
                    continue
                with pytest.raises(InvalidRequest) as refused:
                    client.infer("tokens", bad)
                assert str(refused.value).endswith(text)

    with ThreadPoolExecutor(6) as pool:
        list(pool.map(ask, range(6)))


def test_http_names_the_operator_too(callers):
    inputs = inputs_of(1, 5)
    inputs["ids"][0, 0] = -VOCABULARY - 1
    types = {"ids": "INT64", "mask": "FP32", "flags": "BOOL"}
    tensors = [{"name": name, "datatype": types[name], "shape": list(array.shape),
                "data": array.tolist()} for name, array in inputs.items()]  # fmt: skip
    body = json.dumps({"inputs": tensors})
    reply = HttpPeer(callers.facts["http"]).post("/v2/models/tokens/infer", body)
    assert reply.status == 400
    assert "these values: Gather: indices element" in reply.json["detail"]


@on_both
def test_stuck_run_ends_at_its_deadline_and_holds_nobody_up(callers):
    """A loop of 2^62 turns on each core: other models answer at once, and this one afterwards."""
    x = np.ones(1, np.float32)
    with ThreadPoolExecutor(4) as pool, Client(callers.address, timeout_s=3.0) as client:
        for _ in range(3):  # recognised, and timed
            assert client.infer("counted", {"x": x, "times": np.array(3)})["y"] == 8
        stuck = [
            pool.submit(client.infer, "counted", {"x": x, "times": np.array(2**62)})
            for _ in range(4)
        ]
        longest_s = 0.0
        while not any(each.done() for each in stuck):
            begun_s, inputs = time.monotonic(), inputs_of(1, 5)
            check(client.infer("tokens", inputs), inputs)
            longest_s = max(longest_s, time.monotonic() - begun_s)
        for each in stuck:
            with pytest.raises(DeadlineExceeded):
                each.result()
        assert longest_s < 2.0
        assert client.infer("counted", {"x": x, "times": np.array(5)})["y"] == 32
