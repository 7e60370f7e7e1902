"""Calls through Envoy, with the file that is delivered: TLS, mTLS, tokens, limits, streams."""

import re
import socket
import ssl
import subprocess
from queue import Queue

import grpc
import numpy as np
import pytest
import trustme

from deploy.edge import running_envoy, write_certificates, write_configuration
from digit_classifier import Classifier
from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from serving.errors import Unauthenticated, Unavailable
from tests.deploy.replicas import replicas_behind
from tests.support.fleet.collector import running_collector
from tests.support.raw import CLASSIFY, STREAM, TIMEOUT_S, status_of
from tests.support.servers import running_server, wait_until

TOKEN = "token-0123456789abcdef"


def test_answer_over_tls_is_the_models(shared, classifier, images):
    with shared.client() as client:
        answer = client.classify(images)
    assert answer.digits.tolist() == classifier.classify(images).digits.tolist()


def test_mtls_answers_callers_with_a_certificate_only(shared, images):
    authority = shared.certificates / "client-ca.pem"

    def call(certificate, key):
        with Classifier.connect(
            shared.edge.mtls, tls_ca=authority, tls_cert=certificate, tls_key=key, timeout_s=2
        ) as client:
            return len(client.classify(images[:3]))

    mine = shared.certificates / "client-cert.pem", shared.certificates / "client-key.pem"
    assert call(*mine) == 3
    with pytest.raises(Unavailable):
        call(None, None)
    folder = shared.edge.folder / "strangers"
    folder.mkdir()
    write_certificates(folder, trustme.CA())
    with pytest.raises(Unavailable):
        call(folder / "client-cert.pem", folder / "client-key.pem")


def test_tokens_are_the_servers_matter(envoy, models, tmp_path):
    tokens = tmp_path / "tokens"
    tokens.write_text(TOKEN)
    image = np.zeros((1, 784), np.uint8)
    options = ("--token-file", str(tokens))
    with replicas_behind(envoy, tmp_path / "edge", models, *options, number=1) as replicas:
        with replicas.client(TOKEN) as client:
            assert len(client.classify(image)) == 1
        for token in (None, "x" * 20):
            with replicas.client(token) as client, pytest.raises(Unauthenticated):
                client.classify(image)


def test_refusals_of_the_server_arrive_unchanged(shared):
    with grpc.secure_channel(shared.edge.tls, shared.credentials) as channel:

        def status(path, data):
            method = channel.unary_unary(path)
            return status_of(lambda: method(data, timeout=TIMEOUT_S))

        assert status(CLASSIFY, b"") == (
            grpc.StatusCode.INVALID_ARGUMENT, "expected at least 1 image, got 0",
        )  # fmt: skip
        code, text = status(CLASSIFY, bytes(7_000_000))
        assert (code, text[:31]) == (
            grpc.StatusCode.RESOURCE_EXHAUSTED, "expected a message of at most 6",
        )  # fmt: skip
        assert status("/a.B/C", b"")[0] is grpc.StatusCode.UNIMPLEMENTED


def test_stream_is_answered_while_it_is_open(shared, images):
    requests: Queue[bytes | None] = Queue()
    with grpc.secure_channel(shared.edge.tls, shared.credentials) as channel:
        method = channel.stream_stream(
            STREAM, response_deserializer=digits_pb2.ClassifyResponse.FromString
        )
        answers = method(iter(requests.get, None), timeout=TIMEOUT_S)
        for size in (1, 300, 2):
            requests.put(encode_request(images[:size].tobytes()))
            assert len(next(answers).digits) == size
        requests.put(None)
        assert list(answers) == []


def test_new_certificate_is_used_without_a_restart(replicas, images):
    old = replicas.credentials
    write_certificates(replicas.certificates, trustme.CA())

    def answers():
        try:
            with replicas.client() as client:
                return len(client.classify(images[:1])) == 1
        except Unavailable:
            return False

    wait_until(answers)
    with grpc.secure_channel(replicas.edge.tls, old) as channel:
        method = channel.unary_unary(CLASSIFY)
        code, _ = status_of(lambda: method(b"", timeout=5))
    assert code is grpc.StatusCode.UNAVAILABLE


def test_connections_have_a_limit(envoy, tmp_path):
    write_configuration(tmp_path, ["127.0.0.1:1"], (0, 0))
    path = tmp_path / "envoy.yaml"
    limit = "max_active_downstream_connections: "
    assert f"{limit}8192" in path.read_text()
    path.write_text(path.read_text().replace(f"{limit}8192", f"{limit}3"))
    context = ssl.create_default_context(cafile=str(tmp_path / "certs" / "client-ca.pem"))
    with running_envoy(envoy, tmp_path, "--concurrency", "1") as edge:
        host, _, port = edge.tls.rpartition(":")

        def connect():
            return context.wrap_socket(
                socket.create_connection((host, int(port)), TIMEOUT_S), server_hostname=host
            )

        with connect(), connect(), connect(), pytest.raises(OSError, match=r"closed|reset|EOF"):
            connect()


def test_spans_of_envoy_and_server_are_one_trace(envoy, models, images, tmp_path):
    folder = tmp_path / "edge"
    folder.mkdir()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    with (
        running_collector() as (spans, endpoint),
        running_server(models, "--otlp-endpoint", endpoint) as server,
    ):
        write_configuration(folder, [server.address], (0, 0))
        path = folder / "envoy.yaml"
        (command,) = re.findall(r"`(sed -i .*otel.*) envoy\.yaml`", path.read_text())
        subprocess.check_call([*command.split(), path])
        port = endpoint.rpartition(":")[2]
        path.write_text(path.read_text().replace("port_value: 4317", f"port_value: {port}"))
        with running_envoy(envoy, folder) as edge:
            authority = (folder / "certs" / "client-ca.pem").read_bytes()
            credentials = grpc.ssl_channel_credentials(authority)
            with grpc.secure_channel(edge.tls, credentials) as channel:
                method = channel.unary_unary(CLASSIFY)
                sent = (("traceparent", f"00-{trace}-00f067aa0ba902b7-01"),)
                method(encode_request(images[0].tobytes()), timeout=TIMEOUT_S, metadata=sent)
            wait_until(lambda: any(each["service.name"] == "edge" for each in spans.resources))
        assert server.stop() == 0
    by_service = {
        resource["service.name"]: span
        for resource, span in zip(spans.resources, spans.spans, strict=True)
        if span.trace_id.hex() == trace
    }
    assert by_service.keys() == {"edge", "digit-serving"}
    assert by_service["digit-serving"].parent_span_id == by_service["edge"].span_id
