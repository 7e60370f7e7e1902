"""Replicas that leave, change, die, freeze or fail behind Envoy, under load: no call is lost."""

import shutil
import signal
import socketserver
import threading
from collections import Counter
from contextlib import contextmanager

import grpc
import pytest
from grpc_health.v1 import health_pb2

from digit_classifier.pb.digits.v1 import digits_pb2
from digit_classifier.wire import encode_request
from tests.deploy.replicas import replicas_behind
from tests.support.published import publish
from tests.support.raw import CLASSIFY, HEALTH, TIMEOUT_S
from tests.support.servers import paced_server, wait_until
from tests.support.wire import Peer

SERVING = health_pb2.HealthCheckResponse(status=1).SerializeToString()


class _Handler(socketserver.BaseRequestHandler):
    """Says that it is well, and resets every other call."""

    def handle(self):
        peer = Peer(self.request)
        for stream, path in peer.calls():
            if path == HEALTH:
                peer.answer(stream, SERVING)
            else:
                peer.http2.reset_stream(stream, 2)  # INTERNAL_ERROR


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True


@contextmanager
def faulty_replica():
    """Start one; gives its address."""
    with _Server(("127.0.0.1", 0), _Handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            host, port = server.server_address[:2]
            yield f"{host!s}:{port}"
        finally:
            server.shutdown()
            thread.join()


EJECTED = "cluster.replicas.outlier_detection.ejections_active"


def check_none_lost(load, replicas):
    """Fail, with Envoy's counts, if any call failed."""
    counts = Counter(call.code for call in load.calls)
    if set(counts) != {grpc.StatusCode.OK}:
        wait_until(lambda: bool(replicas.edge.failed_calls()))
        pytest.fail(f"{counts}: {replicas.edge.failed_calls()[:5]}")


def test_rolling_restart_loses_nothing(replicas, images):
    with replicas.load(images) as load:
        load.wait_for(200)
        for old in list(replicas.servers):
            new = replicas.start()
            kept = [server for server in replicas.servers if server not in (old, new)]
            assert old.stop() == 0
            replicas.servers.remove(old)
            replicas.name_to_envoy(new.address, *(server.address for server in kept))
            load.wait_for(200)
    check_none_lost(load, replicas)


def test_reload_loses_nothing(envoy, models, tmp_path, images):
    repository = shutil.copytree(models, tmp_path / "models")
    with (
        replicas_behind(envoy, tmp_path / "edge", repository) as replicas,
        replicas.load(images) as load,
    ):
        load.wait_for(200)
        publish(repository / "digits", "2", (models / "digits/1/model.onnx").read_bytes())
        for server in replicas.servers:
            server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: version_of(load.calls[-1].answer) == "2")
        load.wait_for(200)
        check_none_lost(load, replicas)


def version_of(answer):
    return digits_pb2.ClassifyResponse.FromString(answer).model_version


def test_calls_on_a_killed_replica_go_to_another(replicas, images):
    with replicas.load(images) as load:
        load.wait_for(200)
        replicas.servers[0].process.kill()
        wait_until(lambda: len(replicas.edge.healthy()) == 1)
        load.wait_for(200)
    check_none_lost(load, replicas)
    assert replicas.edge.statistic("cluster.replicas.upstream_rq_retry_success") > 0


def test_calls_on_a_frozen_replica_go_to_another(replicas, images):
    frozen = replicas.servers[0].process
    with replicas.load(images) as load:
        load.wait_for(200)
        frozen.send_signal(signal.SIGSTOP)
        wait_until(lambda: len(replicas.edge.healthy()) == 1)
        load.wait_for(200)
    check_none_lost(load, replicas)
    frozen.send_signal(signal.SIGCONT)
    wait_until(lambda: len(replicas.edge.healthy()) == 2)


def test_replica_that_resets_calls_is_ejected(replicas, images):
    with faulty_replica() as faulty:
        replicas.name_to_envoy(faulty, *(server.address for server in replicas.servers))
        with replicas.load(images) as load:
            wait_until(lambda: replicas.edge.statistic(EJECTED) == 1)
            load.wait_for(200)
    check_none_lost(load, replicas)


def test_overload_is_refused_with_a_pause_and_not_sent_again(replicas, images):
    slow = {"service_s": 0.05, "max_batch_size": 1, "queue_capacity": 1, "self_test_interval_s": 0}
    with paced_server(**slow) as one, paced_server(**slow) as other:
        replicas.name_to_envoy(one.address, other.address)
        while replicas.servers:  # Envoy keeps those that are well
            assert replicas.servers.pop().stop() == 0
        total = "cluster.replicas.membership_total"
        wait_until(lambda: replicas.edge.statistic(total) == 2)
        retries = "cluster.replicas.upstream_rq_retry"
        before = replicas.edge.statistic(retries)
        with replicas.load(images) as load:
            load.wait_for(200)
            with grpc.secure_channel(replicas.edge.tls, replicas.credentials) as channel:
                pauses = [pause_of(channel, images) for _ in range(20)]
        codes = {call.code for call in load.calls}
        assert codes == {grpc.StatusCode.OK, grpc.StatusCode.RESOURCE_EXHAUSTED}
        assert any(pause > 0 for pause in pauses)
        assert replicas.edge.statistic(retries) == before


def pause_of(channel, images):
    """Send a call; return the pause in ms that its refusal asks for, 0 if it was answered."""
    call = channel.unary_unary(CLASSIFY).future(encode_request(images[0].tobytes()), TIMEOUT_S)
    return int(dict(call.trailing_metadata()).get("grpc-retry-pushback-ms", 0))
