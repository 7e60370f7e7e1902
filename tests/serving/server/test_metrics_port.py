"""Metrics, liveness and readiness over HTTP; hostile peers can't exhaust the port."""

import itertools
import os
import signal
import socket
import threading
from contextlib import ExitStack, suppress

import grpc
import pytest

from digit_classifier.wire import encode_request
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.server.lifetime import serve
from serving.server.metrics_port import MetricsPort
from serving.system.usage import Usage
from serving.telemetry.metrics import Counts, QueueUsage, Readiness, Report, Served
from tests.serving.http.peer import HttpPeer
from tests.serving.server.test_supervisor import workers_of
from tests.support.fakes import image_with
from tests.support.raw import CLASSIFY, TIMEOUT_S
from tests.support.servers import (
    connected,
    is_serving,
    on_both,
    paced_server,
    running_server,
    wait_until,
)

MODELS = (Served("digits", "1", "cpu", "fp32", "h2", "default", 10),)


def get(address, path, method="GET"):
    """Ask once; status and body."""
    reply = HttpPeer(f"http://{address}").ask(method, path)
    return reply.status, reply.body.decode()


QUEUES = {("digits", "1"): QueueUsage(0, 100)}


def report():
    return Report(MODELS, BatchingConfig(), QUEUES, 0, True, Usage.now(), Counts())


@pytest.fixture
def exporter():
    exporter = MetricsPort("127.0.0.1", 0)
    exporter.serve(report, lambda: Readiness(is_serving=True))
    yield exporter
    exporter.close()


def test_only_three_paths_are_answered(exporter):
    assert get(exporter.address, "/healthz") == (200, "alive\n")
    assert get(exporter.address, "/readyz?verbose=1") == (200, "SERVING\n")
    status, page = get(exporter.address, "/metrics")
    assert status == 200
    assert 'serving_queue_capacity_rows{model="digits",version="1"} 100.0' in page
    for path in ("/", "/metricsx", "/healthz/", "/debug", "*"):
        assert get(exporter.address, path)[0] == 404, path


def test_only_reading_is_allowed(exporter):
    assert get(exporter.address, "/healthz", "HEAD") == (200, "")
    for method in ("POST", "PUT", "DELETE", "OPTIONS"):
        assert get(exporter.address, "/healthz", method)[0] == 405


def test_open_metrics_are_sent_to_who_asks_for_them(exporter):
    peer = HttpPeer(f"http://{exporter.address}")
    reply = peer.get("/metrics", accept="application/openmetrics-text")
    assert reply.headers["content-type"].startswith("application/openmetrics-text")
    assert reply.body.endswith(b"# EOF\n")


def test_server_that_loads_its_model_is_alive_and_not_ready(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    seen = []

    def load(*_):
        paths = ("/healthz", "/readyz", "/metrics")
        seen.extend(get(f"127.0.0.1:{port}", path) for path in paths)
        raise ConfigurationError("seen enough")

    monkeypatch.setattr("serving.server.lifetime.Catalog", load)
    serving = serve(ModelConfig(), BatchingConfig(), ServerConfig(port=0, metrics_port=port))
    with pytest.raises(ConfigurationError, match="seen enough"):
        serving.send(None)
    assert seen == [(200, "alive\n"), (503, "NOT_SERVING\n"), (503, "starting\n")]


def test_ipv6(models):
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    with running_server(models, "--metrics-host", "::1", "--host", "::1") as server:
        assert server.facts["metrics"].startswith("[::1]:")
        assert get(server.facts["metrics"], "/readyz")[0] == 200
        assert is_serving(server.address)


def test_idle_connections_take_few_threads_and_keep_nobody_out(exporter):
    num_threads, num_files = threading.active_count(), open_files()
    with ExitStack() as closing:
        for _ in range(400):
            closing.enter_context(connected(exporter.address, TIMEOUT_S))
        assert get(exporter.address, "/healthz")[0] == 200
        assert get(exporter.address, "/metrics")[0] == 200
        # Those that gave way end a moment later.
        wait_until(lambda: threading.active_count() <= num_threads + 64)
        wait_until(lambda: open_files() < num_files + 400 + 80)


def open_files():
    return len(os.listdir("/proc/self/fd"))


def test_an_unknown_version_of_a_format_is_no_failure(exporter):
    peer = HttpPeer(f"http://{exporter.address}")
    for accept in ("application/openmetrics-text;version=x", ";", "text/plain;version=,;q=\xff"):
        reply = peer.get("/metrics", accept=accept)
        assert reply.status == 200, accept


def test_foreign_hosts_are_refused(exporter):
    peer = HttpPeer(f"http://{exporter.address}")
    assert peer.get("/metrics", host="evil.example").status == 421


@on_both
def test_readiness_follows_the_engine_and_the_drain_and_liveness_does_not(transport):
    with paced_server(transport, self_test_interval_s=0.3) as server:
        metrics = server.facts["metrics"]
        assert get(metrics, "/readyz")[0] == 200
        server.tell("hold")
        wait_until(lambda: get(metrics, "/readyz")[0] == 503)
        assert get(metrics, "/healthz")[0] == 200
        server.tell("release")
        wait_until(lambda: get(metrics, "/readyz")[0] == 200)
        server.tell("hold")
        with grpc.insecure_channel(server.address) as channel:
            before, request = server.num_begun(), encode_request(image_with(1).tobytes())
            call = channel.unary_unary(CLASSIFY).future(request, timeout=TIMEOUT_S)
            wait_until(lambda: server.num_begun() > before)
            server.process.send_signal(signal.SIGTERM)
            wait_until(lambda: get(metrics, "/readyz")[0] == 503)
            assert [get(metrics, path)[0] for path in ("/healthz", "/metrics")] == [200, 200]
            server.tell("release")
            assert call.code() is grpc.StatusCode.OK
        assert server.process.wait(TIMEOUT_S) == 0


@pytest.mark.slow
def test_readiness_of_several_workers_is_that_of_all(models):
    with running_server(models, "--workers", "2") as server:
        metrics = server.facts["metrics"]
        assert get(metrics, "/readyz")[0] == 200
        worker = workers_of(server)[0]
        os.kill(worker, signal.SIGSTOP)
        wait_until(lambda: get(metrics, "/readyz")[0] == 503)
        assert get(metrics, "/healthz")[0] == 200
        os.kill(worker, signal.SIGCONT)
        wait_until(lambda: get(metrics, "/readyz")[0] == 200)
        assert server.stop() == 0


def whole(caller):
    """Return all that comes until the port closes the connection."""
    return b"".join(iter(lambda: caller.recv(1 << 16), b""))


def answers(address, data):
    with connected(address, TIMEOUT_S) as caller:
        caller.sendall(data)
        return whole(caller)


@pytest.mark.parametrize(("request_bytes", "status"), [
    (b"hello\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nhost: a\r\nhost: localhost\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nhost: localhost\nx: 1\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n folded\r\n\r\n", 400),
    (b"\x16\x03\x01\x02\0\r\n\r\n", 400),
    (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    (b"GET /healthz HTTP/1.1\r\n" + b"x" * 20_000, 431),
    (b"GET /healthz HTTP/1.0\r\n\r\n", 200),
    (b"GET /healthz HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n", 200),
    (b"POST /healthz HTTP/1.1\r\nhost: localhost\r\ncontent-length: 3\r\n\r\nabc", 405),
])  # fmt: skip
def test_connection_ends_behind_its_last_request(exporter, request_bytes, status):
    received = answers(exporter.address, request_bytes)
    assert received.startswith(b"HTTP/1.1 %d " % status)
    assert received.count(b"HTTP/1.1 ") == 1
    assert b"connection: close" in received
    assert get(exporter.address, "/healthz") == (200, "alive\n")


def test_one_request_is_answered_on_a_connection(exporter):
    request = b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n"
    twice = (
        (request + b"\r\n") * 2,
        request + b"content-length: 60\r\ncontent-length: 0\r\n\r\n" + request + b"\r\n",
        request + b"transfer-encoding: chunked\r\n\r\n0\r\n\r\n" + request + b"\r\n",
    )
    for data in twice:
        received = answers(exporter.address, data)
        assert received.count(b"HTTP/1.1 200") == 1
        assert received.endswith(b"alive\n")


def test_time_of_an_exchange_is_limited():
    exporter = MetricsPort("127.0.0.1", 0, exchange_s=0.2)
    try:
        with connected(exporter.address, TIMEOUT_S) as slow, connected(exporter.address) as silent:
            for byte in b"GET /healthz HTT":
                with suppress(OSError):  # the port has closed it
                    slow.sendall(bytes([byte]))
            for peer in (slow, silent):
                with suppress(ConnectionResetError):
                    assert peer.recv(100) == b""
        with connected(exporter.address, TIMEOUT_S) as staying:
            staying.sendall(b"GET /healthz HTTP/1.1\r\nhost: localhost\r\n\r\n")
            assert whole(staying).endswith(b"alive\n")  # and is closed, though it stays
            wait_until(lambda: not exchanges())
    finally:
        exporter.close()


def test_each_reason_is_one_line_whatever_a_file_says():
    reasons = {"iris/4": "it is\nSERVING\n", "risk": "no version is good"}
    exporter = MetricsPort("127.0.0.1", 0)
    try:
        state = Readiness(
            is_serving=True, stuck_models=frozenset({"risk", "hung"}), reasons=reasons
        )
        exporter.serve(report, lambda: state)
        assert get(exporter.address, "/readyz")[1].splitlines() == [
            "SERVING",
            "NOT_SERVING model hung",
            "NOT_SERVING model iris version 4: it is SERVING",
            "NOT_SERVING model risk: no version is good",
        ]
    finally:
        exporter.close()


def exchanges():
    return [each for each in threading.enumerate() if "process_request_thread" in each.name]


def test_callers_of_answers_that_take_long_keep_their_places():
    exporter = MetricsPort("127.0.0.1", 0, exchange_s=60.0, max_exchanges=2)
    begun, made = threading.Semaphore(0), threading.Event()

    def slow_state():
        begun.release()
        assert made.wait(TIMEOUT_S)
        return Readiness(is_serving=True)

    exporter.serve(report, slow_state)
    request = b"GET /readyz HTTP/1.1\r\nhost: localhost\r\n\r\n"
    with ExitStack() as closing:
        closing.callback(exporter.close)
        callers = []
        for _ in range(2):
            callers.append(closing.enter_context(connected(exporter.address, TIMEOUT_S)))
            callers[-1].sendall(request)
            assert begun.acquire(timeout=TIMEOUT_S)
        callers.append(closing.enter_context(connected(exporter.address, TIMEOUT_S)))
        callers[-1].sendall(request)  # it waits until the first two have their answers
        made.set()
        for caller in callers:
            assert whole(caller).startswith(b"HTTP/1.1 200")


def test_flood_of_connections_leaves_the_probes_answered(exporter):
    is_over = threading.Event()

    def flood():
        with ExitStack() as closing:
            for number in itertools.count():
                with suppress(OSError):
                    peer = closing.enter_context(connected(exporter.address))
                    peer.send(b"GET /healthz HTTP/1.1\r\n")
                if number % 200 == 199:
                    closing.close()
                if is_over.is_set():
                    return

    threads = [threading.Thread(target=flood) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        statuses = [get(exporter.address, "/healthz")[0] for _ in range(50)]
    finally:
        is_over.set()
        for thread in threads:
            thread.join()
    assert statuses == [200] * 50
