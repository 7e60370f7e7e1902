"""Requests that repeat an earlier one up to their rows need no handler, and end as others do."""

import gzip
import json
from contextlib import closing

import numpy as np
import pytest

from serving.errors import Unavailable
from serving.transports.calls import LoopCall
from tests.serving.http.test_statuses import gated_server
from tests.serving.http.test_wire import LIVE, Wire, binary
from tests.support.fakes import images_of
from tests.support.h2_server import server_inside
from tests.support.servers import wait_until

pytestmark = pytest.mark.process


@pytest.fixture
def gated(models, monkeypatch):
    """A server whose runs wait, on one runner: it reads on meanwhile."""
    monkeypatch.setattr("serving.router.usable_cores", lambda: 1)
    with gated_server(models) as gated:
        yield gated


@pytest.fixture
def handled(monkeypatch):
    """The requests that handlers have read."""
    begun: list[LoopCall] = []
    start = LoopCall.start

    def noted(call, steps):
        begun.append(call)
        start(call, steps)

    monkeypatch.setattr(LoopCall, "start", noted)
    return begun


def digit_of(answer):
    status, headers, body = answer
    assert status == 200, body
    return int(
        np.frombuffer(body[int(headers["inference-header-content-length"]) :], "<f4").argmax()
    )


def warm(gated):
    """Connect, and have the request known that all others repeat."""
    wire = Wire(gated.peer.url)
    gated.engine.open()
    assert digit_of(wire.ask(binary(images_of(1)))) == 1
    gated.engine.wait_until_running()
    return wire


def counts(gated):
    return gated.router.metrics.snapshot().requests


def test_repeated_requests_need_no_handler(gated, handled):
    gated.engine.open(1000)
    with closing(Wire(gated.peer.url)) as wire:
        for value in (1, 2, 3, 4):
            assert digit_of(wire.ask(binary(images_of(value)))) == value
        assert len(handled) == 1
        assert wire.ask(LIVE)[2] == b'{"live":true}'
        assert digit_of(wire.ask(binary(images_of(5)))) == 5
        assert len(handled) == 3
    wait_until(lambda: counts(gated)["HttpInfer", "OK"] == 5)


def as_it_is(head, body):
    return head + b"\r\nContent-Length: %d\r\n\r\n" % len(body) + body


def with_timeout(head, body):
    return as_it_is(head + b"\r\nRequest-Timeout: 60", body)


def in_chunks(head, body):
    chunks = b"%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
    return head + b"\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks


def compressed(head, body):
    return as_it_is(head + b"\r\nContent-Encoding: gzip", gzip.compress(body))


def with_a_longer_length(head, body):
    return as_it_is(head, body).replace(b"Content-Length: ", b"Content-Length: 0")


def test_requests_with_deadlines_or_rows_elsewhere_have_a_handler(gated, handled):
    gated.engine.open(1000)
    for written, number in (
        (as_it_is, 1),
        (with_a_longer_length, 1),
        (with_timeout, 3),
        (in_chunks, 3),
        (compressed, 3),
    ):
        handled.clear()
        with closing(Wire(gated.peer.url)) as wire:
            for value in (1, 2, 3):
                head, _, body = binary(images_of(value)).partition(b"\r\n\r\n")
                head = head.rpartition(b"\r\n")[0]  # without the length
                assert digit_of(wire.ask(written(head, body))) == value
        assert len(handled) == number, written


def test_answers_are_those_of_handlers(gated):
    """Line by line; the last of a connection, too."""
    gated.engine.open(1000)
    request = binary(images_of(3))
    last = request.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n", 1)
    with closing(Wire(gated.peer.url)) as wire:
        first, second, third = (wire.ask(each) for each in (request, request, last))
        assert wire.is_closed()
    assert third[1].pop("connection") == "close"
    for _, headers, _ in (first, second, third):
        del headers["date"]
    assert first == second == third


def test_requests_in_parts_and_ahead_are_answered_in_order(gated):
    gated.engine.open(1000)
    first, second, third = (binary(images_of(value)) for value in (1, 2, 3))
    with closing(Wire(gated.peer.url)) as wire, closing(Wire(gated.peer.url)) as other:
        assert digit_of(wire.ask(first)) == 1
        for data in (first + second + third, second + third[:-1], third[-1:] + first):
            wire.socket.sendall(data)
        answers = [digit_of(wire.answer()) for _ in range(6)]
        assert answers == [1, 2, 3, 2, 3, 1]
        for at in range(1, len(first), 97):
            wire.socket.sendall(second[:at])
            assert other.ask(LIVE)[0] == 200  # so the server has read the part
            wire.socket.sendall(second[at:])
            assert digit_of(wire.answer()) == 2


def test_request_that_comes_during_a_run_waits_for_it(gated, handled):
    with closing(warm(gated)) as wire:
        wire.socket.sendall(binary(images_of(2)))
        gated.engine.wait_until_running()
        wire.socket.sendall(binary(images_of(3)) + LIVE)
        gated.engine.open(2)
        assert [digit_of(wire.answer()) for _ in range(2)] == [2, 3]
        assert wire.answer()[2] == b'{"live":true}'
    assert len(handled) == 3


def test_poison_is_500_and_the_connection_goes_on(gated, handled):
    with closing(warm(gated)) as wire:
        gated.engine.open(1000)
        status, headers, body = wire.ask(binary(images_of(13)))
        assert (status, headers["content-type"]) == (500, "application/problem+json")
        assert json.loads(body)["status"] == 500
        assert digit_of(wire.ask(binary(images_of(2)))) == 2
    assert len(handled) == 1
    wait_until(lambda: counts(gated)["HttpInfer", "OK"] == 2)
    assert counts(gated)["HttpInfer", "INTERNAL"] == 1


def test_full_queue_is_429_and_the_connection_goes_on(gated, handled):
    with closing(warm(gated)) as wire:
        gated.send("first", 1)
        gated.engine.wait_until_running()
        for number in (1, 2):
            gated.send(f"waits {number}", *range(8))
            wait_until(lambda number=number: gated.router.num_waiting == 8 * number)
        begun = len(handled)
        status, headers, _ = wire.ask(binary(images_of(2)))
        assert (status, headers["retry-after"]) == (429, "1")
        gated.finish()
        assert digit_of(wire.ask(binary(images_of(2)))) == 2
        assert len(handled) == begun
    assert counts(gated)["HttpInfer", "RESOURCE_EXHAUSTED"] == 1


def test_caller_that_leaves_is_cancelled_and_never_run(gated):
    wire = warm(gated)
    gated.send("first", 4)
    gated.engine.wait_until_running()
    wire.socket.sendall(binary(images_of(42)))
    wait_until(lambda: gated.router.num_waiting == 1)
    wire.close()
    wait_until(lambda: gated.router.num_waiting == 0)
    gated.finish()
    assert gated.engine.ran == [[1], [4]]
    assert counts(gated)["HttpInfer", "CANCELLED"] == 1


def test_caller_that_leaves_during_its_run_is_counted_once(gated):
    wire = warm(gated)
    wire.socket.sendall(binary(images_of(2)))
    gated.engine.wait_until_running()
    wire.close()
    wait_until(lambda: counts(gated)["HttpInfer", "CANCELLED"] == 1)
    gated.engine.open()
    wait_until(lambda: not gated.router.is_busy)
    assert counts(gated)["HttpInfer", "OK"] == 1


def test_drain_answers_the_run_in_progress_and_refuses_the_next(gated):
    with closing(warm(gated)) as wire, closing(warm(gated)) as other:
        assert other.socket is not None
        wire.socket.sendall(binary(images_of(2)))
        gated.engine.wait_until_running()
        gated.loop.drain(Unavailable("the server is shutting down"))
        wait_until(lambda: gated.loop.phase)
        gated.engine.open(1000)
        answer = wire.answer()
        assert (digit_of(answer), answer[1]["connection"]) == (2, "close")
        assert wire.is_closed()
        answer = other.ask(binary(images_of(3)))  # it may have been on its way
        assert (digit_of(answer), answer[1]["connection"]) == (3, "close")


def test_lines_of_the_access_log_have_each_request(classifier, images):
    with (
        server_inside(classifier, http_port=0, access_log=1.0) as server,
        closing(Wire(str(server.http_url))) as wire,
    ):
        identifiers = {wire.ask(binary(images[:1]))[1]["x-request-id"] for _ in range(3)}
    assert len(identifiers) == 3
