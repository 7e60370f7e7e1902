"""Requests that are recognised are answered as if they were read, even after changes."""

import json
import shutil
import signal
import time
from contextlib import closing

import numpy as np
import pytest

from digit_classifier import PRETRAINED
from tests.serving.http.test_statuses import gated_server
from tests.serving.http.test_wire import LIVE, Wire, binary
from tests.support import published
from tests.support.fakes import images_of
from tests.support.servers import running_server, wait_until


@pytest.fixture(scope="module")
def server():
    options = ("--http-port", "0", "--allow-repository-control")
    with running_server(PRETRAINED, *options) as server:
        yield server


def warm(server, request):
    """Connect, and ask until requests like this one are recognised."""
    wire = Wire(server.facts["http"])
    for _ in range(2):
        assert wire.ask(request)[0] == 200
    return wire


def outcome(wire, request):
    """Return the status and the answer; None if there is none, for the request goes on."""
    wire.socket.settimeout(0.1)
    try:
        status, _, body = wire.ask(request)
        return status, body
    except TimeoutError:
        return None


def rows(answer):
    status, headers, body = answer
    assert status == 200, body
    return np.frombuffer(body[int(headers["inference-header-content-length"]) :], "<f4")


def test_requests_that_differ_in_a_byte(server, images):
    """In any byte of the head and the JSON: the answers are those of a new connection."""
    request = binary(images[:1])
    rng = np.random.default_rng(0)
    for at in range(len(request) - images[0].nbytes):
        other = bytearray(request)
        other[at] ^= 1 << int(rng.integers(8))
        with closing(warm(server, request)) as known, closing(Wire(server.facts["http"])) as new:
            assert outcome(known, bytes(other)) == outcome(new, bytes(other)), bytes(
                other[: at + 9]
            )


def test_requests_of_other_shapes(server, images):
    request = binary(images[:1])
    head, _, body = request.partition(b"\r\n\r\n")
    flat = json.dumps({"inputs": [{"name": "images", "datatype": "UINT8", "shape": [1, 784],
                                   "data": images[0].tolist()}]}).encode()  # fmt: skip
    others = [
        binary(images[:2]), binary(images[:1], id="a"), binary(images[:1].reshape(1, 28, 28)),
        request[:-1], request + b"x", request + LIVE, request * 3, request[:-784] + bytes(784),
        head.replace(b"Content-Length: ", b"Content-Length: 0") + b"\r\n\r\n" + body,
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: a.localhost\r\n\r\n",
        b"POST /v2/models/digits/infer HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"
        % len(flat) + flat,
    ]  # fmt: skip
    for other in others:
        with closing(warm(server, request)) as known, closing(Wire(server.facts["http"])) as new:
            assert outcome(known, other) == outcome(new, other), other[:200]


def test_model_that_is_unloaded_and_loaded(server, images):
    request = binary(images[:1])
    head = b"POST /v2/repository/models/digits/%s HTTP/1.1\r\nHost: localhost\r\n\r\n"
    with closing(warm(server, request)) as wire, closing(Wire(server.facts["http"])) as other:
        for _ in range(2):
            before = rows(wire.ask(request))
            assert other.ask(head % b"unload")[0] == 200
            refused = wire.ask(request)
            assert refused[0] == Wire(server.facts["http"]).ask(request)[0] != 200
            assert other.ask(head % b"load")[0] == 200
            wait_until(lambda: wire.ask(request)[0] == 200)
            np.testing.assert_array_equal(rows(wire.ask(request)), before)


def test_version_that_takes_over(tmp_path, images):
    shutil.copytree(PRETRAINED, tmp_path, dirs_exist_ok=True)
    request = binary(images[:1])
    with (
        running_server(tmp_path, "--http-port", "0") as server,
        closing(warm(server, request)) as wire,
    ):
        assert b'"1"' in wire.ask(request)[2]
        published.good(tmp_path / "digits", "2")
        server.process.send_signal(signal.SIGHUP)
        wait_until(lambda: b'"2"' in wire.ask(request)[2])


def test_token_that_is_withdrawn(tmp_path, images):
    tokens = tmp_path / "tokens"
    tokens.write_text("first-token-0123456789")
    bearer = b"\r\nAuthorization: Bearer first-token-0123456789\r\n\r\n"
    request = binary(images[:1]).replace(b"\r\n\r\n", bearer, 1)
    options = ("--http-port", "0", "--token-file", str(tokens))
    with running_server(PRETRAINED, *options) as server, closing(warm(server, request)) as wire:
        tokens.write_text("other-token-0123456789")
        deadline_s = time.monotonic() + 10
        while wire.ask(request)[0] == 200:
            assert time.monotonic() < deadline_s


def test_answers_keep_their_order(monkeypatch):
    """A recognised request that comes in a read of its own waits for the one before it."""
    monkeypatch.setattr("serving.router.usable_cores", lambda: 8)
    with gated_server(PRETRAINED) as gated, closing(Wire(gated.peer.url)) as wire:
        gated.engine.open(3)
        for value in (3, 4, 5):
            assert rows(wire.ask(binary(images_of(value)))).argmax() == value
        for value in (6, 7):
            wire.socket.sendall(binary(images_of(value)))
            gated.engine.wait_until_running()
            time.sleep(0.05)  # the server reads it alone
        wire.socket.sendall(LIVE)
        gated.engine.open(1000)
        assert [rows(wire.answer()).argmax() for _ in range(2)] == [6, 7]
        assert wire.answer()[2] == b'{"live":true}'
