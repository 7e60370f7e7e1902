"""Large requests to a server, many at a time: each comes within the budget of bytes."""

import time
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest

from serving.oip import inference_pb
from tests.serving.http.peer import HttpPeer
from tests.serving.model import graphs
from tests.support.servers import Footprint, connected, running_server

MIB = 1 << 20
ROWS, SIDE = 32, 224
NUM_CALLERS = 8


@pytest.fixture(scope="module")
def pictures(tmp_path_factory):
    """A server of a model of pictures, and a request of 19 MB; its budget is that of before."""
    model = graphs.model(
        [graphs.node("ReduceMax", ["x"], ["y"], axes=[1, 2, 3], keepdims=0)],
        [graphs.value("x", "FP32", ["N", 3, SIDE, SIDE])], [graphs.value("y", "FP32", ["N"])],
    )  # fmt: skip
    file = graphs.save(model, tmp_path_factory.mktemp("pictures"), "pictures.onnx")
    options = "--http-port", "0", "--max-buffered-bytes", "64M"
    with running_server(None, str(file), *options) as server:
        yield server


def ask_grpc(server, data):
    request = inference_pb.ModelInferRequest(model_name="pictures")
    request.inputs.add(name="x", datatype="FP32", shape=[ROWS, 3, SIDE, SIDE])
    request.raw_input_contents.append(data)
    options = [("grpc.use_local_subchannel_pool", 1), ("grpc.enable_retries", 0),
               ("grpc.max_send_message_length", -1)]  # fmt: skip
    with grpc.insecure_channel(server.address, options) as channel:
        method = channel.unary_unary("/inference.GRPCInferenceService/ModelInfer")
        try:
            method(request.SerializeToString(), timeout=60)
        except grpc.RpcError as err:
            return err.code().name
    return "OK"


def ask_http(server, data):
    head = (
        b'{"inputs":[{"name":"x","datatype":"FP32","shape":[%d,3,%d,%d],'
        b'"parameters":{"binary_data_size":%d}}]}' % (ROWS, SIDE, SIDE, len(data))
    )
    fields = {"Inference_Header_Content_Length": str(len(head))}
    reply = HttpPeer(server.facts["http"]).post("/v2/models/pictures/infer", head + data, **fields)
    return "OK" if reply.status == 200 else str(reply.status)


@pytest.mark.slow
@pytest.mark.parametrize("ask", [ask_grpc, ask_http])
def test_callers_of_19_mb_each_are_all_answered(pictures, ask):
    data = np.zeros((ROWS, 3, SIDE, SIDE), np.float32).tobytes()
    with ThreadPoolExecutor(NUM_CALLERS) as threads:
        for _ in range(3):
            outcomes = [*threads.map(lambda _: ask(pictures, data), range(NUM_CALLERS))]
            assert outcomes == ["OK"] * NUM_CALLERS
    assert Footprint.of(pictures.process.pid).resident_bytes < 600 * MIB


@pytest.mark.slow
def test_callers_who_send_slowly_do_not_block_others(pictures):
    """Four of them reserve all there is, and send no more."""
    data = bytes(ROWS * 3 * SIDE * SIDE * 4)
    head = (
        b"POST /v2/models/pictures/infer HTTP/1.1\r\nHost: localhost\r\n"
        b"Content-Length: 20000000\r\n\r\n"
    )
    attackers = [connected(pictures.facts["http"]) for _ in range(4)]
    for attacker in attackers:
        attacker.sendall(head + bytes(1000))
    begun_s = time.monotonic()
    assert ask_grpc(pictures, data) == "OK"
    assert time.monotonic() - begun_s < 20.0, "less than the time that a body may take"
    for attacker in attackers:
        attacker.close()
