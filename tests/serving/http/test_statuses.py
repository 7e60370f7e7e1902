"""Every status of the table, each over a real socket; and requests without a token."""

import json
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager, suppress

import pytest
from PIL import Image

from digit_classifier import http as application
from serving.config import BatchingConfig, SecurityConfig, ServerConfig
from serving.http_api.http_server import HttpServer
from serving.model import repository
from serving.model.loaded import LoadedModel
from serving.oip.queries import Queries
from serving.protocols.health import Health
from serving.protocols.status import TABLE
from serving.system.host import Host
from serving.transports.loop import Loop
from serving.transports.port_limits import PortLimits
from tests.serving.http.peer import HttpPeer
from tests.support.fakes import GatedModel, images_of, router_of
from tests.support.h2_server import server_inside
from tests.support.pictures import encoded
from tests.support.servers import connected

pytestmark = pytest.mark.process

TOKEN = "token-0123456789abcdef"
JSON = {"Content_Type": "application/json"}


def body_of(*values):
    return json.dumps({"images": images_of(*values).tolist()}).encode()


class Gated:
    """An HTTP port around an engine whose gate the test opens."""

    def __init__(self, engine, router, server, loop):
        self.engine = engine
        self.router = router
        self.loop = loop
        self.peer = HttpPeer(server.url)
        self.statuses: dict[str, int] = {}
        self._threads: list[threading.Thread] = []

    def send(self, name, *values, **headers):
        """Ask in the background."""

        def ask():
            reply = self.peer.post("/v1/digits", body_of(*values), **JSON, **headers)
            self.statuses[name] = reply.status

        self._threads.append(threading.Thread(target=ask))
        self._threads[-1].start()

    def finish(self):
        self.engine.open(1000)
        for thread in self._threads:
            thread.join()
        return self.statuses


@contextmanager
def gated_server(models, **limits):
    engine = GatedModel(poison=frozenset({13}))
    model = LoadedModel(engine, repository.load_manifest(models / "digits" / "1"), "fp32")
    batching = BatchingConfig(max_batch_size=4, queue_capacity=8, max_request_rows=8)
    with closing(router_of(model, batching)) as router:
        queries = Queries(router, Health())
        some = PortLimits(max_message_bytes=4_000_000, **limits)
        server = HttpServer(router, queries, ServerConfig(http_port=0), [application], some)
        loop = Loop(router, poll=False, host=Host())
        loop.start()
        server.start(loop)
        gated = Gated(engine, router, server, loop)
        try:
            yield gated
        finally:
            gated.finish()
            loop.stop()
            server.stop()


@pytest.fixture
def gated(models, monkeypatch):
    monkeypatch.setattr("serving.router.usable_cores", lambda: 1)
    with gated_server(models) as gated:
        yield gated


def test_every_error_has_a_status_of_failure():
    assert all(row.http >= 400 for row in TABLE.values())


def test_full_queue_is_429_with_retry_after(gated):
    gated.send("first", 1)
    gated.engine.wait_until_running()
    for number in (1, 2):  # as over gRPC, room is kept for connections with few calls
        gated.send(f"waits {number}", *range(8))
        while gated.router.num_waiting < 8 * number:
            pass
    reply = gated.peer.post("/v1/digits", body_of(1), **JSON)
    assert (reply.status, reply.headers["retry-after"]) == (429, "1")
    assert gated.finish() == {"first": 200, "waits 1": 200, "waits 2": 200}


def test_bodies_over_the_budget_are_429_with_retry_after(models):
    with gated_server(models, max_buffered_bytes=len(body_of(1, 2))) as gated:
        reply = gated.peer.post("/v1/digits", body_of(1, 2, 3), **JSON)
        assert (reply.status, reply.headers["retry-after"]) == (429, "1")
        gated.engine.open(1000)
        for _ in range(3):  # the memory was freed
            assert gated.peer.post("/v1/digits", body_of(1), **JSON).status == 200


def test_stalled_bodies_leave_room_for_others(models):
    with gated_server(models, max_buffered_bytes=60_000) as gated, ExitStack() as stack:
        gated.engine.open(1000)
        head = b"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: 40000\r\n\r\n"
        for _ in range(2):
            stalled = stack.enter_context(connected(gated.peer.url))
            stalled.sendall(head + bytes(29_000))
        for _ in range(5):
            assert gated.peer.post("/v1/digits", body_of(1), **JSON).status == 200


def test_requests_far_ahead_of_an_answer_are_not_read_and_not_lost(gated):
    """Far more than the kernel's buffers take, some 10 MB."""
    body = body_of(1)
    head = f"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
    request = head.encode() + b"Content-Type: application/json\r\n\r\n" + body
    with connected(gated.peer.url) as sock:
        sock.sendall(request)
        gated.engine.wait_until_running()
        sock.settimeout(1.0)
        sent, rest = 1, memoryview(b"")
        with suppress(TimeoutError):
            while sent * len(request) < 32 << 20:
                rest = rest or memoryview(request)
                rest = rest[sock.send(rest) :]
                sent += not rest
        assert sent * len(request) < 32 << 20, "nothing stops the caller"
        gated.engine.open(20_000)
        sock.settimeout(60.0)
        answered = b""
        with ThreadPoolExecutor() as pool:
            pool.submit(sock.sendall, rest)
            while answered.count(b"HTTP/1.1 200") < sent + bool(rest):
                answered += sock.recv(1 << 20)


def test_silent_and_slow_connections_make_room(models):
    with gated_server(models, max_connections=4) as gated, ExitStack() as stack:
        gated.engine.open(1000)
        others = [stack.enter_context(connected(gated.peer.url)) for _ in range(4)]
        for number, other in enumerate(others):
            other.sendall(b"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\n"[: 10 * number])
        for _ in range(6):
            assert gated.peer.post("/v1/digits", body_of(1), **JSON).status == 200


def test_caller_that_leaves_is_never_run(gated):
    gated.send("first", 1)
    gated.engine.wait_until_running()
    head = f"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body_of(42))}\r\n"
    with connected(gated.peer.url) as caller:
        caller.sendall(head.encode() + b"Content-Type: application/json\r\n\r\n" + body_of(42))
        while gated.router.num_waiting < 1:
            pass
    while gated.router.num_waiting:
        pass
    gated.finish()
    assert gated.engine.ran == [[1]]


def test_guilty_images_are_500_without_the_reason(gated):
    gated.send("guilty", 13)
    assert gated.finish() == {"guilty": 500}


@pytest.mark.parametrize("timeout", ["0", "-1", "x", "nan", "inf"])
def test_bad_timeouts_are_400(timeout, http):
    reply = http.post("/v1/digits", body_of(1), **JSON, Request_Timeout=timeout)
    assert (reply.status, "request-timeout" in reply.json["detail"]) == (400, True)


def test_unknown_paths_are_404_and_methods_405(http):
    assert http.get("/nothing").status == 404
    assert http.post("/v2/models/letters/infer", b"{}").status == 404
    assert http.post("/v2/models/digits/versions/9/infer", b"{}").status == 404
    reply = http.get("/v1/digits")
    assert (reply.status, reply.headers["allow"]) == (405, "POST")
    assert reply.headers["content-type"] == "application/problem+json"


@pytest.mark.parametrize("path", ["/v1/digits", "/v2/models/digits/infer"])
def test_long_bodies_are_413_before_they_are_sent(path, http):
    with connected(http.url) as caller:
        caller.sendall(
            f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {10**9}\r\n\r\n".encode()
        )
        assert caller.recv(100).startswith(b"HTTP/1.1 413")


def test_long_bodies_without_a_length_are_413(http):
    chunks = (bytes(1 << 20) for _ in range(40))  # it is not reset while it sends the rest
    assert http.post("/v1/digits", chunks).status == 413
    assert http.get("/v2/health/ready").status == 200


def test_decompression_bomb_is_413(http):
    bomb = encoded(Image.new("1", (20_000, 5_000)))  # a few kilobytes
    reply = http.post("/v1/digits", bomb)
    assert (reply.status, "pixels" in reply.json["detail"]) == (413, True)


def test_body_that_is_not_compressed_as_it_says_is_refused(http):
    reply = http.post("/v1/digits", b"x", Content_Encoding="gzip")
    assert (reply.status, "expected a request of gzip" in reply.json["detail"]) == (400, True)


def test_slow_head_ends_its_connection(models):
    with gated_server(models, handshake_s=0.2) as gated, connected(gated.peer.url) as caller:
        caller.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2")
        while caller.recv(1000):
            pass


def test_tokens_guard_all_but_health_and_the_page(classifier):
    security = SecurityConfig(tokens=TOKEN)
    with server_inside(classifier, http_port=0, security=security) as server:
        peer = HttpPeer(str(server.http_url))
        for path in ("/v2/models/digits/infer", "/v1/digits", "/v1/anything"):
            reply = peer.post(path, b"{}")
            assert (reply.status, reply.headers["www-authenticate"]) == (401, "Bearer")
        for path in ("/v2", "/v2/models/digits", "/v2/models/digits/config"):
            assert peer.get(path).status == 401
            assert peer.get(path, Authorization="Bearer wrong").status == 401
            assert peer.get(path, Authorization=f"Bearer {TOKEN}").status == 200
        for path in ("/v2/health/live", "/v2/health/ready", "/", "/openapi.json", "/draw.js"):
            assert peer.get(path).status == 200


def test_answers_carry_the_security_headers(http):
    for path in ("/", "/docs", "/v2", "/nothing"):
        policy = http.get(path).headers["content-security-policy"]
        assert policy.startswith("default-src 'self'")


def test_calls_are_counted(classifier):
    with server_inside(classifier, http_port=0) as server:
        peer = HttpPeer(str(server.http_url))
        peer.post("/v1/digits", body_of(1), **JSON)
        peer.post("/v1/digits", b"")
        counts = server.report().counts.requests
    assert (counts["HttpDigits", "OK"], counts["HttpDigits", "INVALID_ARGUMENT"]) == (1, 1)
