"""The server as its callers see it: a real process, a real socket, real clients."""

import re
import signal
import socket
from concurrent.futures import ThreadPoolExecutor

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digit_classifier.pb.digits.v1 import digits_pb2, digits_pb2_grpc
from digit_classifier.wire import encode_request
from serving import Client
from tests.serving.model.graphs import model, node, save, two_layers, value
from tests.support.raw import CLASSIFY, TIMEOUT_S, Raw, status_of
from tests.support.servers import ended, on_both, running_server, serve_command, wait_until


def test_start_line_says_what_is_served(server, transport):
    assert server.facts == {
        "model": "digits",
        "version": "1",
        "precision": "fp32",
        "device": "cpu",
        "transport": transport,
        "address": server.address,
        "metrics": server.facts["metrics"],
        "max_request_rows": "4096",
        "max_batch_size": "512",
    }
    assert server.address.startswith("127.0.0.1:")


def test_served_answers_equal_the_in_process_answers_bit_for_bit(client, classifier, images):
    for num_images in (1, 2, 128, 600):
        some = np.resize(images, (num_images, images.shape[1]))
        served, local = client.classify(some), classifier.classify(some)
        assert served.probabilities.tobytes() == local.probabilities.tobytes()
        assert served.digits.tobytes() == local.digits.tobytes()
        assert served.model_version == local.model_version


def test_generated_stub_works_as_any_client_would_use_it(server, images):
    with grpc.insecure_channel(server.address) as channel:
        stub = digits_pb2_grpc.DigitClassifierStub(channel)
        request = digits_pb2.ClassifyRequest(images=images[:2].tobytes())
        response = stub.Classify(request, timeout=TIMEOUT_S)
    assert len(response.digits) == 2
    assert len(response.probabilities) == 20
    assert response.model_version == "1"


@on_both
def test_health_says_serving_for_every_service(server):
    serving = health_pb2.HealthCheckResponse.SERVING
    with grpc.insecure_channel(server.address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        for service in ("", "digits.v1.DigitClassifier", "inference.GRPCInferenceService"):
            request = health_pb2.HealthCheckRequest(service=service)
            assert stub.Check(request, timeout=TIMEOUT_S).status == serving
        unknown = health_pb2.HealthCheckRequest(service="nope")
        code, _ = status_of(lambda: stub.Check(unknown, timeout=TIMEOUT_S))
        assert code is grpc.StatusCode.NOT_FOUND
        watch = stub.Watch(unknown, timeout=TIMEOUT_S)
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVICE_UNKNOWN


@on_both
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_drains_under_load_and_loses_nothing(models, images, transport, number):
    answered = refused = 0
    others: list[grpc.StatusCode] = []
    with (
        running_server(models, "--transport", transport) as server,
        grpc.insecure_channel(server.address) as channel,
        ThreadPoolExecutor(1) as pool,
    ):
        watch = health_pb2_grpc.HealthStub(channel).Watch(
            health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S
        )
        assert next(watch).status == health_pb2.HealthCheckResponse.SERVING
        state = pool.submit(next, watch)
        call = channel.unary_unary(CLASSIFY)
        data = encode_request(images[:64].tobytes())
        futures = [call.future(data, timeout=TIMEOUT_S) for _ in range(200)]
        futures[0].result()
        assert server.stop(number) == 0
        assert re.search(r"drained in \d+\.\d s: \d+ calls were", server.process.stderr.read())
        assert state.result().status == health_pb2.HealthCheckResponse.NOT_SERVING
    for future in futures:
        if future.code() is grpc.StatusCode.OK:
            answered += 1
        elif future.code() is grpc.StatusCode.UNAVAILABLE:
            refused += 1
        else:
            others.append(future.code())
    assert not others
    assert answered + refused == 200
    assert answered >= 1


@on_both
def test_connection_that_is_old_enough_is_replaced(models, images, transport):
    states: list[grpc.ChannelConnectivity] = []
    options = ("--transport", transport, "--max-connection-age", "0.2")
    with running_server(models, *options) as server:
        raw = Raw(server.address)
        raw.channel.subscribe(states.append)
        raw.classify(encode_request(images[:1].tobytes()))
        wait_until(lambda: states[-1:] == [grpc.ChannelConnectivity.IDLE])
        raw.classify(encode_request(images[:1].tobytes()))


@pytest.mark.parametrize("option", ["--port", "--http-port", "--metrics-port"])
@pytest.mark.parametrize(
    "options", [("--transport", "h2"), ("--transport", "grpcio"), ("--workers", "2")]
)
def test_taken_port_is_one_clear_line(models, options, option):
    with socket.create_server(("127.0.0.1", 0), reuse_port=True) as taken:
        port = taken.getsockname()[1]
        result = ended([*serve_command(models, *options), option, str(port)])
    assert result.returncode == 2
    assert result.stderr == (
        f"digit-serving: can't listen on 127.0.0.1:{port}: the port is taken; "
        f"choose another by {option}\n"
    )


def test_ready_line_has_the_limits_in_effect_of_each_model(tmp_path):
    for name in ("iris", "small", "total"):
        (tmp_path / name / "1").mkdir(parents=True)
        graph = sum_of_all() if name == "total" else two_layers()
        save(graph, tmp_path / name / "1")
    (tmp_path / "small" / "config.pbtxt").write_text("max_batch_size: 8")
    with running_server(tmp_path) as server:
        assert server.facts["model"] == "iris,small,total"
        assert server.facts["max_batch_size"] == "512,8,0"
        assert server.facts["max_request_rows"] == "4096,4096,none"
        with Client(server.address) as client:
            described = [client.describe(name) for name in client.models()]
    assert [each.max_batch_size for each in described] == [512, 8, 0]
    assert [each.max_request_rows for each in described] == [4096, 4096, None]


def sum_of_all():
    """A graph that mixes its rows."""
    return model(
        [node("ReduceSum", ["x"], ["y"], keepdims=0)],
        [value("x", "FP32", ["N", 4])], [value("y", "FP32", [])],
    )  # fmt: skip
