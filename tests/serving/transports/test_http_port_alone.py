"""An HTTP port without a loop: what its connections have sent, wait for, and are sent."""

import math
import socket
from types import SimpleNamespace
from typing import Any

import h11
import pytest

from serving.errors import Unavailable
from serving.http1.requests import Request
from serving.http2 import Pieces
from serving.protocols.known import KnownRequest, ValuesPlace
from serving.telemetry.metrics import NO_MODEL
from serving.transports.calls import LoopCalls
from serving.transports.http_port import ConnectionPhase, HttpPort
from serving.transports.http_routing import EVENTS, Answer, App, Endpoint, RoutedRequest
from serving.transports.peer import Peer, State
from serving.transports.port_limits import PortLimits

KIB = 1 << 10


class Web:
    """A port, whose clock and peers are the test's."""

    def __init__(self):
        self.now_s = 1000.0
        self.calls: list[Any] = []
        self.deferred: list[Any] = []
        self.counted: list[Any] = []
        self.flushed: list[Any] = []
        self.sockets: list[Any] = []
        self.gate: list[Any] = []
        loop: Any = SimpleNamespace(
            clock=lambda: self.now_s, post=lambda task: task(), defer=self.deferred.append,
            calls=LoopCalls(lambda: self.now_s, lambda: None),
        )  # fmt: skip
        metrics = SimpleNamespace(
            count=lambda *args, model=NO_MODEL: self.counted.append((*args, model))
        )
        router: Any = SimpleNamespace(metrics=metrics, routes={}, served=())
        routes = [
            Endpoint("POST", "/echo", self._echo, 100_000, is_work=True, name="Echo"),
            Endpoint("GET", "/parts", self._parts), Endpoint("GET", "/many", self._many),
            Endpoint("GET", "/hang", self._hang),
        ]  # fmt: skip
        app, limits, pool = App(routes, None, [], []), PortLimits(max_message_bytes=1), None
        self.port = HttpPort(app, router, loop, limits, pool, None)
        self.port.schedule_flush = self.flushed.append

    async def _echo(self, call):
        self.calls.append(call)
        return Answer(call.body, "text/plain")

    async def _parts(self, call):
        self.calls.append(call)
        await call.send(b"one", EVENTS)
        await call.send(b"two", EVENTS)
        return Answer(b"three", EVENTS)

    async def _many(self, call):
        self.calls.append(call)
        for number in range(3):
            await call.send(bytes((65 + number,)) * 70_000, EVENTS)
        return Answer(b"", EVENTS)

    async def _hang(self, call):
        self.calls.append(call)
        await call.work(len, b"x", pool=SimpleNamespace(submit=self._submit))

    def _submit(self, owner, function, *args):
        self.gate.append(SimpleNamespace(add_done_callback=lambda done: None, cancel=lambda: True))
        return self.gate[-1]

    def peer(self) -> Any:
        ours, its = socket.socketpair()
        self.sockets += (ours, its)
        peer = Peer(ours, self.port.new_engine(ours), None, self.port)
        self.port._peers[peer] = None
        return peer

    def send(self, peer, *data):
        """Let bytes come; return what is to be sent."""
        for each in data:
            self.port.receive(peer, each, self.now_s)
        return bytes(peer.engine.data_to_send())

    def close(self):
        for each in self.sockets:
            each.close()


@pytest.fixture
def web():
    made = Web()
    yield made
    made.close()


def get(path):
    return f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode()


def post(body, size=None):
    size = len(body) if size is None else size
    head = f"POST /echo HTTP/1.1\r\nHost: localhost\r\nContent-Length: {size}\r\n\r\n"
    return head.encode() + body


def test_request_is_answered_and_nothing_of_it_is_kept(web):
    peer = web.peer()
    sent = web.send(peer, post(b"abc"))
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert sent.endswith(b"content-length: 3\r\n\r\nabc")
    (call,) = web.calls
    assert (call.is_over, call.body, call._steps) == (True, b"", None)
    engine = peer.engine
    assert (engine.call, engine.streams, engine.phase) == (None, set(), ConnectionPhase.IDLE)
    assert (engine.num_unsent, engine.stream) == (0, 1)
    assert web.counted == [("Echo", "OK", NO_MODEL)]
    assert web.port.calls.budget._num_held == 0
    assert peer.active_s == 1000.0


def test_answer_in_parts_has_one_head_and_ends_with_the_last_chunk(web):
    peer = web.peer()
    head, _, rest = web.send(peer, get("/parts")).partition(b"\r\n\r\n")
    assert rest == b"3\r\none\r\n3\r\ntwo\r\n5\r\nthree\r\n0\r\n\r\n"
    assert b"transfer-encoding: chunked" in head
    assert peer.engine.phase == ConnectionPhase.IDLE
    assert web.counted == [("other", "OK", NO_MODEL)]
    assert web.calls[0].has_begun


def test_parts_wait_for_a_reader_who_has_64_kib_to_read(web):
    peer = web.peer()
    web.port.receive(peer, get("/many"), web.now_s)
    (call,) = web.calls
    for number in range(3):
        assert (peer.unread, call._waits_for_reader) == ({peer.engine: None}, True)
        peer.unread.clear()
        sent = peer.engine.data_to_send()
        assert sent.count(bytes((65 + number,))) >= 70_000
        web.port.resume(peer, [peer.engine])
        assert call._waits_for_reader == (number < 2)
        web.port.resume(peer, [peer.engine])  # nothing waits twice for what was read once
    assert call.is_over
    assert peer.engine.data_to_send().endswith(b"0\r\n\r\n")


@pytest.mark.parametrize(("num_bytes", "is_queued"), [(64 * KIB, False), (64 * KIB + 1, True)])
def test_next_request_waits_until_64_kib_were_read(num_bytes, is_queued, web):
    peer = web.peer()
    peer.engine.write(bytes(num_bytes))
    web.port.receive(peer, post(b"abc"), web.now_s)
    assert (len(web.calls), peer.engine.phase == ConnectionPhase.QUEUED) == (
        not is_queued, is_queued)  # fmt: skip
    assert peer.unread == ({peer.engine: None} if is_queued else {})
    assert web.port.is_unread(peer) is (is_queued or peer.engine.num_unsent > 64 * KIB)
    peer.engine.data_to_send()
    web.port.resume(peer, [peer.engine])
    while web.deferred:
        web.deferred.pop()()
    assert len(web.calls) == 1
    assert peer.engine.phase == ConnectionPhase.IDLE


@pytest.mark.parametrize(("num_bytes", "is_paused"), [(64 * KIB, False), (64 * KIB + 1, True)])
def test_peer_may_send_64_kib_ahead_of_an_answer(num_bytes, is_paused, web):
    peer = web.peer()
    web.port.receive(peer, get("/hang"), web.now_s)
    web.port.receive(peer, bytes(num_bytes), web.now_s)
    assert peer.engine.phase == ConnectionPhase.RUNNING
    assert (peer.is_paused, web.flushed == [peer]) == (is_paused, is_paused)
    web.port.fail_request(web.calls[0], Unavailable("it ends"))
    assert peer.engine.phase == ConnectionPhase.QUEUED
    assert peer.is_paused is is_paused, "its bytes have not been read yet"


@pytest.mark.parametrize(("seconds", "is_pending"), [(0.99, True), (1.0, False)])
def test_drain_waits_a_second_for_what_may_be_on_its_way(seconds, is_pending, web):
    peer = web.peer()
    web.send(peer, post(b"abc"))
    web.port.drain(Unavailable("it drains"))
    assert (peer.engine.has_grace, peer.engine.recent) == (True, None)
    web.now_s += seconds
    assert web.port.is_pending(peer) is is_pending
    sent = web.send(peer, post(b"def"))
    assert sent.startswith(b"HTTP/1.1 200 OK\r\n")
    assert b"connection: close\r\n" in sent
    assert peer.state == State.LAST
    late = web.peer()
    assert web.send(late, post(b"abc")).startswith(b"HTTP/1.1 503 "), "it came too late"


def test_malformed_requests_are_told_once_a_minute(web, caplog):
    for seconds, lines in ((0.0, 1), (59.9, 1), (0.1, 2), (1.0, 2)):
        web.now_s += seconds
        peer = web.peer()
        assert web.send(peer, b"\x16\x03\x01").startswith(b"HTTP/1.1 400 ")
        assert (peer.state, len(caplog.messages)) == (State.LAST, lines)
    text = "the last from unix:: malformed HTTP: expected a request"
    assert caplog.messages == [f"bad HTTP requests: {number}, {text}" for number in (1, 2)]
    assert web.counted == [("other", "INVALID_ARGUMENT", NO_MODEL)] * 4


def test_body_has_a_minute_to_come_once_it_was_let_in(web):
    web.port.calls.budget.free_bytes = 5
    peer = web.peer()
    web.send(peer, post(b"a", 10))
    call = peer.engine.call
    assert (peer.engine.phase, web.port.calls.budget._held) == (ConnectionPhase.BODY, {call: 1})
    web.now_s += 60.0
    web.port.sweep_calls(peer)
    assert not call.is_over
    web.now_s += 0.1
    web.port.sweep_calls(peer)
    assert call.is_over
    assert peer.engine.data_to_send().startswith(b"HTTP/1.1 400 ")
    assert web.counted == [("Echo", "INVALID_ARGUMENT", NO_MODEL)]


@pytest.mark.parametrize("size", [10, 20])
def test_body_without_room_is_refused_and_its_method_does_not_begin(size, web):
    web.port.calls.budget.max_bytes = 5
    peer = web.peer()
    head = post(b"", size).removesuffix(b"\r\n")
    answer = web.send(peer, head + b"Expect: 100-continue\r\n\r\n" + bytes(10))
    assert web.calls == []
    assert answer.startswith(b"HTTP/1.1 429 ")
    assert answer.count(b"HTTP/1.1 ") == 1, "and no more of it is asked for"
    assert (peer.state, peer.engine.phase) == (State.LAST, ConnectionPhase.IDLE)
    assert web.port.calls.budget._num_held == 0
    assert web.counted == [("Echo", "RESOURCE_EXHAUSTED", NO_MODEL)]


def test_long_answer_that_has_left_is_not_due_again(web):
    engine = web.peer().engine
    engine.write(Pieces([b"long"]))
    engine.write(b"short")
    assert [*map(len, engine.due)] == [4, 5]
    assert (engine.data_to_send(), engine.num_unsent) == (b"long", 5), "others have their turn"
    assert [*map(len, engine.due)] == [5]
    assert engine.data_to_send() == b"short"
    assert not engine.due


def test_long_answer_leaves_a_mebibyte_a_turn(web):
    engine = web.peer().engine
    engine.write(Pieces([bytes(5 << 19)]))
    sizes = []
    while engine.due:
        sizes.append(len(engine.data_to_send()))
    assert sizes == [1 << 20, 1 << 20, 1 << 19]


def test_who_has_just_connected_is_accepted_before_the_port_closes(web):
    """And told that the server ends, as all others are."""
    done: list[str] = []
    acceptor: Any = SimpleNamespace(is_closed=False)

    def close():
        acceptor.is_closed = True
        done.append("closed")

    acceptor.close = close
    web.port._acceptor = acceptor
    web.port.accept = lambda now_s, start_tag_s: done.append("accepted")
    web.port.close()
    web.port.close()
    assert done == ["accepted", "closed", "closed"]


@pytest.mark.parametrize("request_", [post(b"abc"), get("/parts")], ids=["whole", "in parts"])
def test_answer_has_the_id_of_its_log_line(request_, web):
    ended: list[Any] = []
    logged = SimpleNamespace(ids={"request_id": "r-1"}, route=None, run=None)
    web.port.log = SimpleNamespace(
        begin=lambda method, peer, headers: logged, end=lambda *args: ended.append(args)
    )
    head, _, _ = web.send(web.peer(), request_).partition(b"\r\n\r\n")
    assert head.split(b"\r\n").count(b"x-request-id: r-1") == 1
    assert ended == [(logged, "OK", 200)]


def test_connection_has_the_clock_of_its_loop(web):
    peer = web.peer()
    assert (peer.opened_s, peer.active_s, peer.swept_s) == (1000.0, 1000.0, 1000.0)


def test_request_of_a_caller_who_has_left_is_cancelled_and_counted_for_its_model(web):
    peer = web.peer()
    web.send(peer, get("/hang"))
    (call,) = web.calls
    assert (call.is_running, web.port.has_accepted(peer)) == (True, True)
    call.model = ("m", "3")
    web.now_s += 5.0
    web.port.forget(peer)
    assert web.counted == [("other", "CANCELLED", ("m", "3"))]
    assert (peer.gave_up_s, call.is_over, peer.engine.call) == (1005.0, True, None)
    web.port.forget(peer)
    assert len(web.counted) == 1
    peer.engine.write(b"unsent")
    web.port.drop(peer)
    assert web.port.num_unsent(peer) == 0


def test_repeated_request_is_an_object_once_somebody_asks_for_it(web):
    peer = web.peer()
    web.send(peer, post(b"abc"))
    plan = peer.engine.recent
    peer.engine.repeated, number = plan, peer.engine.begin()
    call = web.port._call_of(peer)
    assert (call.plan, call.stream, call.is_running, call.body) == (plan, number, True, b"")
    assert web.port._call_of(peer) is call
    assert dict(web.port.headers_of(peer, number)) == {"host": "localhost"}


@pytest.mark.parametrize(("more", "is_known"), [(0, True), (1, False)])
def test_requests_of_sixteen_kib_are_recognised_as_repeated(more, is_known, web):
    peer = web.peer()
    begin = b"POST /echo HTTP/1.1\r\nHost: localhost\r\nX-Pad: "
    end = b"\r\nContent-Length: 3\r\n\r\nabc"
    request = begin + b"x" * (16 * KIB + more - len(begin) - len(end)) + end
    place, encoder = ValuesPlace(b"a", b"", "", 2), SimpleNamespace(method=None)
    found: list[Any] = []

    async def learning(call):
        call.expect_repeats(place, encoder)
        found.append(call.plan.repeat)
        return Answer(b"")

    web.port._app._routes[0] = (web.port._app._routes[0][0], Endpoint("POST", "/echo", learning))
    web.send(peer, request)
    (repeat,) = found
    assert (repeat is not None) is is_known
    if is_known:
        assert isinstance(repeat, KnownRequest)
        assert repeat.place == ValuesPlace(request[:-3] + b"a", b"", "", 2)
        assert (repeat.encoder.method, encoder.method) == ("other", None)


def test_exchange_begins_with_nothing():
    plan = RoutedRequest(Request(h11.Request(method="GET", target="/", headers=[("Host", "a")])))
    assert (plan.known, plan.repeat, plan.timeout_s, plan.max_bytes) == (None, None, math.inf, 0)
    assert (plan.is_work, plan.is_trusted, plan.is_packed) == (False, False, False)
    assert (plan.params, plan.headers, plan.route) == ({}, [], "")
