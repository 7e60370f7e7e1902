"""HTTP/1.1 as bytes: the order of answers, refusals, and recognised requests."""

import json
import logging
import time
from contextlib import closing
from email.utils import parsedate_to_datetime

import numpy as np
import pytest

from tests.serving.http.peer import HttpPeer
from tests.support.h2_server import server_inside
from tests.support.servers import connected, on_both, wait_until

pytestmark = pytest.mark.process

LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v2/repository/index HTTP/1.1\r\nHost: localhost\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"
ALLOWED = "https://allowed.example"


class Wire:
    """A connection of bytes."""

    def __init__(self, url):
        self.socket = connected(url)
        self._data = b""

    def ask(self, data):
        self.socket.sendall(data)
        return self.answer()

    def answer(self):
        """Read an answer: its status, headers and body."""
        while b"\r\n\r\n" not in self._data:
            self._read()
        head, _, self._data = self._data.partition(b"\r\n\r\n")
        first, *lines = head.decode().split("\r\n")
        headers = dict(line.lower().split(": ", 1) for line in lines)
        size = int(headers.get("content-length", 0))
        while len(self._data) < size:
            self._read()
        body, self._data = self._data[:size], self._data[size:]
        return int(first.split()[1]), headers, body

    def _read(self):
        data = self.socket.recv(1 << 16)
        assert data, "the server closed the connection"
        self._data += data

    def is_closed(self):
        try:
            return not self._data and self.socket.recv(1) == b""
        except ConnectionResetError:
            return True

    def close(self):
        self.socket.close()


@pytest.fixture
def wire(http):
    with closing(Wire(http.url)) as wire:
        yield wire


def test_head_is_answered_without_a_body(wire):
    wire.socket.sendall(LIVE.replace(b"GET", b"HEAD"))
    assert wire.socket.recv(1 << 16).endswith(b"\r\n\r\n")
    assert wire.ask(LIVE)[0] == 200


def test_continue_is_said_before_the_body(wire):
    """Once, and not to those that do not know it."""
    for head in (POST + b"Content-Length: 2\r\n", CHUNKED[:-2]):
        wire.socket.sendall(head + b"Expect: 100-continue\r\n\r\n")
        assert wire.answer()[0] == 100
        body = b"{}" if b"Length" in head else b"2\r\n{}\r\n0\r\n\r\n"
        for at in range(len(body)):
            wire.socket.sendall(body[at : at + 1])
        assert wire.answer()[0] == 200
    old = POST.replace(b"1.1", b"1.0") + b"Content-Length: 2\r\nExpect: 100-continue\r\n\r\n"
    wire.socket.sendall(old)
    assert wire.ask(b"{}")[0] == 200


@pytest.fixture(scope="module")
def named(classifier):
    names = ("digits.example", "other")
    with server_inside(
        classifier, http_port=0, http_host_names=names, http_allow_origins=(ALLOWED,)
    ) as server:
        yield HttpPeer(str(server.http_url))


def test_names_of_the_server_are_answered(named):
    for host, status in (("digits.example", 200), ("other:80", 200), ("more.example", 421)):
        assert named.get("/v2", Host=host).status == status


def test_pages_of_other_sites_are_refused_unless_allowed(named):
    own = named.url.removeprefix("http://")
    for origin, status in (("https://evil.example", 403), ("null", 403), (f"http://{own}", 200)):
        assert named.post("/v2/repository/index", Origin=origin).status == status
    reply = named.post("/v2/repository/index", Origin=ALLOWED)
    assert (reply.status, reply.headers["access-control-allow-origin"]) == (200, ALLOWED)
    asked = named.ask("OPTIONS", "/v1/digits", Origin=ALLOWED)
    assert (asked.status, asked.headers["access-control-allow-methods"]) == (200, "GET, POST, PUT")
    assert named.ask("OPTIONS", "/v1/digits", Origin="https://evil.example").status == 403
    assert named.ask("OPTIONS", "/v1/digits").status == 405


def binary(images, model="digits", name="images", output="probabilities", **more):
    """A request with bytes for bytes."""
    datatype = {"uint8": "UINT8", "float32": "FP32"}[images.dtype.name]
    tensor = {"name": name, "datatype": datatype, "shape": list(images.shape)}
    outputs = [{"name": output, "parameters": {"binary_data": True}}]
    inputs = [tensor | {"parameters": {"binary_data_size": images.nbytes}}]
    head = json.dumps({"inputs": inputs, "outputs": outputs, **more}).encode()
    size, body = len(head), head + images.tobytes()
    lines = (
        f"POST /v2/models/{model}/infer HTTP/1.1", "Host: localhost",
        f"Inference-Header-Content-Length: {size}", f"Content-Length: {len(body)}", "", "",
    )  # fmt: skip
    return "\r\n".join(lines).encode() + body


@on_both
def test_repeated_requests_are_answered_as_the_first(transport, images, classifier):
    """Whole, in pieces, and among others that differ in a little."""
    expected = classifier.classify(images[:20]).probabilities
    with (
        server_inside(classifier, http_port=0, transport=transport) as server,
        closing(Wire(str(server.http_url))) as wire,
    ):
        for at in range(20):
            request = binary(images[at : at + 1])
            if at % 3 == 1:
                request += binary(images[at : at + 2], id="x")
            middle = len(request) if at % 2 else 500
            wire.socket.sendall(request[:middle])
            wire.socket.sendall(request[middle:])
            status, headers, body = wire.answer()
            assert (status, headers["x-content-type-options"]) == (200, "nosniff")
            assert time.time() - parsedate_to_datetime(headers["date"]).timestamp() < 20
            rows = np.frombuffer(body[int(headers["inference-header-content-length"]) :], "<f4")
            np.testing.assert_allclose(rows, expected[at], atol=1e-5)
            if at % 3 == 1:
                assert b'"id":"x"' in wire.answer()[2]
        peer = HttpPeer(str(server.http_url))

        def count():
            stats = peer.get("/v2/models/digits/stats").json
            return int(stats["model_stats"][0]["inference_stats"]["success"]["count"])

        wait_until(lambda: count() == 27)  # a call is counted once its answer is sent
        assert server.report().counts.requests["HttpInfer", "OK"] == 27


@pytest.mark.parametrize(
    ("value", "words"), [(0.5, "floats"), ("1", "texts"), (True, "booleans"), (256, "0 to 255")]
)
def test_what_is_no_pixel_is_refused_with_what_would_be(value, words, http):
    body = json.dumps({"images": [[0] * 783 + [value]]})
    reply = http.post("/v1/digits", body, Content_Type="application/json")
    assert reply.status == 400
    assert "integers from 0 to 255" in reply.json["detail"]
    assert words in reply.json["detail"]


def test_bad_requests_are_one_line(classifier, caplog):
    with caplog.at_level(logging.INFO), server_inside(classifier, http_port=0) as server:
        for _ in range(20):
            with closing(Wire(str(server.http_url))) as wire:
                wire.ask(b"hello\r\n\r\n")
    (line,) = [record.message for record in caplog.records]
    assert line.startswith("bad HTTP requests: 1, the last from 127.0.0.1: malformed HTTP")
