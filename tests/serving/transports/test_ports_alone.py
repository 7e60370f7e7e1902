"""A port's parts alone: who is accepted, swept, cut off and let in, at each of their bounds."""

import errno
import gzip
import math
import re
import socket
import threading
from concurrent.futures import Future
from selectors import EVENT_READ
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ServerConfig
from serving.errors import InvalidRequest, Overloaded, TooLarge, Unavailable
from serving.http2.events import MessagesReceived
from serving.http2.headers import HeaderReader
from serving.http2.hpack import encode_literally
from serving.http2.limits import Limits
from serving.http2.pieces import Pieces
from serving.processes.pool import JobLimits
from serving.protocols.framing import frame, frame_prefix
from serving.protocols.method import BatchedUnary, Unary
from serving.protocols.status import UNKNOWN_METHOD, Status
from serving.system import listening
from serving.transports import grpc_headers
from serving.transports.accepting import Acceptor
from serving.transports.calls import LoopCall, LoopCalls, paused
from serving.transports.draining import Drain
from serving.transports.grpc_call import GrpcCall, PendingResponse
from serving.transports.grpc_headers import (
    BAD_TIMEOUT,
    COUNTING,
    MALFORMED,
    NO_TRAILERS,
    NOT_GRPC,
    NOT_ONE_MESSAGE,
    NOT_POST,
    OTHER_ENCODING,
    TRUNCATED,
    UNAUTHENTICATED,
    HeaderParser,
    read_timeout_s,
    too_long,
    trailers_of,
)
from serving.transports.grpc_port import H2Port
from serving.transports.h2_server import H2Server
from serving.transports.http_port import HttpEngine
from serving.transports.peer import State, host_of, peer_of, public_headers
from serving.transports.pools import OneThread, decoders
from serving.transports.port import Port
from serving.transports.port_limits import PortLimits, max_message_bytes
from serving.transports.sweeping import sweep
from tests.support.fakes import TIMEOUT_S
from tests.support.pages import cells

# New connections


class Listener:
    """A socket from which connections are accepted, or errors; of none it would block."""

    def __init__(self, *found):
        self.found, self.is_closed = [*found], False

    def accept(self):
        if not self.found:
            raise BlockingIOError
        one = self.found.pop(0)
        if isinstance(one, OSError):
            raise one
        return one, "address"

    def close(self):
        self.is_closed = True


class Selector:
    def __init__(self):
        self.done = []

    def register(self, *args):
        self.done.append(("register", *args))

    def unregister(self, *args):
        self.done.append(("unregister", *args))


class Share:
    """This worker's share of a port."""

    def __init__(self, listener):
        self.socket, self.is_small = listener, True
        self.noted, self.num_listened = [], 0

    def note(self, number):
        self.noted.append(number)

    def listen(self):
        self.num_listened += 1


@pytest.fixture
def accepting(monkeypatch):
    def make(*found, is_shared=False):
        listener, selector, hurried = Listener(*found), Selector(), []
        share = Share(listener) if is_shared else None
        monkeypatch.setattr(listening, "shares", {})
        monkeypatch.setattr("serving.transports.accepting.shares", {("h", 1): share} if share
                            else {})  # fmt: skip
        acceptor = Acceptor(listener, "port", selector, hurried.append)
        return SimpleNamespace(
            it=acceptor, listener=listener, selector=selector, share=share, hurried=hurried
        )

    return make


def test_socket_is_watched_from_when_it_listens_until_it_pauses(accepting):
    one = accepting(is_shared=True)
    for _ in range(2):
        one.it.listen(3)
    for _ in range(2):
        one.it.pause()
    watched, left = ("register", one.listener, 1, "port"), ("unregister", one.listener)
    assert one.selector.done == [watched, left]
    assert one.share.noted == [3], "others know how many there are"
    one.it.listen(4)
    one.it.close()
    one.it.listen(5)
    assert one.selector.done == [watched, left] * 2
    assert (one.share.noted, one.listener.is_closed, one.it.is_closed) == ([3, 4], True, True)


@pytest.mark.parametrize(
    ("is_shared", "room", "expected"), [(False, 100, 64), (False, 5, 5), (True, 100, 1)]
)
def test_round_accepts_64_connections_and_of_a_shared_port_one(
    is_shared, room, expected, accepting
):
    one = accepting(*range(70), is_shared=is_shared)
    assert [*one.it.accept(room, 0.0)] == [*range(expected)]


STARVED = [errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM]


@pytest.mark.parametrize("number", STARVED)
def test_port_without_descriptors_pauses_and_says_so_once_a_minute(number, accepting, caplog):
    one = accepting("first", *[OSError(number, "no more")] * 4)
    one.it.listen(0)
    assert [*one.it.accept(9, 0.0)] == ["first"]
    assert one.selector.done[-1] == ("unregister", one.listener)
    for now_s in (59.9, 60.0, 119.9):
        one.it.listen(0)
        assert [*one.it.accept(9, now_s)] == []
        assert one.selector.done[-1] == ("unregister", one.listener)
    assert caplog.messages == ["new connections wait: no more"] * 2


@pytest.mark.parametrize(
    ("number", "is_shared", "num_listened"),
    [(errno.EINVAL, True, 1), (errno.EINVAL, False, 0), (errno.ECONNABORTED, True, 0)],
)
def test_connection_that_is_gone_ends_the_round_alone(
    number, is_shared, num_listened, accepting, caplog
):
    """A shared port may listen no more, since no worker was ready."""
    one = accepting(OSError(number, "no"), "next", is_shared=is_shared)
    one.it.listen(0)
    assert [*one.it.accept(9, 0.0)] == []
    assert [*one.it.accept(9, 0.0)] == ["next"]
    assert (one.share.num_listened if one.share else 0) == num_listened
    assert (len(one.selector.done), caplog.messages) == (1, [])


def test_connection_is_left_to_a_worker_with_fewer_for_a_millisecond(accepting):
    one = accepting(is_shared=True)
    assert not one.it.leaves_to_others(1.0)
    one.share.is_small = False
    assert one.it.leaves_to_others(1.0)
    assert one.hurried == [1e-3]
    assert not one.it.is_left_too_long(1.0009)
    assert one.it.leaves_to_others(1.0009)
    assert one.it.is_left_too_long(1.0011)
    assert not one.it.leaves_to_others(1.0011), "the other one was busy"
    assert one.hurried == [1e-3]
    assert one.it.leaves_to_others(2.0)
    one.it.take_back()
    assert not one.it.is_left_too_long(3.0)
    assert one.it.leaves_to_others(3.0)
    one.share.is_small = True
    assert not one.it.leaves_to_others(3.0)
    assert not one.it.is_left_too_long(9.0)


def test_port_of_one_process_leaves_nothing(accepting):
    one = accepting()
    assert not one.it.leaves_to_others(1.0)
    assert not one.it.is_left_too_long(9.0)


# Connections that are idle, stuck or old


class Engine:
    is_established = True

    def __init__(self):
        self.done = []

    def announce_end(self):
        self.done.append("announce")


class PeerStub:
    """A connection as a sweep sees it."""

    def __init__(self, **facts):
        self.state, self.is_busy, self.output, self.jitter = State.OPEN, False, b"", 1.0
        self.active_s = self.opened_s = self.swept_s = 0.0
        self.engine = Engine()
        for name, value in facts.items():
            setattr(self, name, value)

    def retire(self):
        self.state = State.RETIRED


class PortStub:
    """A port that notes what is done with its connections."""

    def __init__(self, *peers, num_connections=0, can_ping=True, **limits):
        self.peers, self.num_connections, self.can_ping = peers, num_connections, can_ping
        facts = {"max_connections": 100, "handshake_s": 10.0, "message_s": 60.0, "idle_s": 600.0}
        self.limits = PortLimits(max_message_bytes=1, **(facts | limits))
        self.done: list[Any] = []
        self.unsent: dict[Any, int] = {}
        self.accepted: set[Any] = set()

    def __iter__(self):
        return iter(self.peers)

    def listen(self):
        self.done.append("listen")

    def ping(self, peer):
        self.done.append("ping")
        return self.can_ping

    def has_accepted(self, peer):
        return peer in self.accepted

    def num_unsent(self, peer):
        return self.unsent.get(peer, 0)

    def drain(self, refusal):
        self.done.append(refusal)

    def __getattr__(self, name):
        return lambda peer: self.done.append(name)


BUSY = {"is_busy": True}


@pytest.mark.parametrize(
    ("peer", "port", "now_s", "done"),
    [
        ({}, {}, 600.0, []), ({}, {}, 600.1, ["leave"]),
        ({"jitter": 1.1}, {}, 660.0, []), ({"jitter": 1.1}, {}, 660.1, ["leave"]),
        ({"active_s": 100.0}, {}, 700.0, []),
        ({}, {"num_connections": 74}, 600.0, []),
        ({}, {"num_connections": 75}, 150.1, ["leave"]), ({}, {"num_connections": 75}, 149.9, []),
        ({}, {"num_connections": 90}, 60.1, ["leave"]), ({}, {"num_connections": 90}, 59.9, []),
        ({}, {"num_connections": 100}, 6.1, ["leave"]), ({}, {"num_connections": 100}, 5.9, []),
        ({"state": State.RETIRED}, {}, 1.0, ["leave"]),
        ({"state": State.LEAVING}, {}, 1.0, []),
        ({"state": State.SHUT}, {}, 10.0, []), ({"state": State.SHUT}, {}, 10.1, ["end"]),
        ({"state": State.SHUT, **BUSY}, {}, 10.1, ["end"]),
        ({}, {"age_s": 50.0}, 50.0, []),
        ({**BUSY}, {"age_s": 50.0}, 50.1, ["schedule_flush"]),
        ({}, {"age_s": 50.0}, 50.1, ["schedule_flush", "leave"]),
        ({"state": State.LEAVING}, {"age_s": 50.0}, 50.1, []),
        (BUSY, {}, 60.0, []), (BUSY, {}, 60.1, ["sweep_calls"]),
        ({**BUSY, "output": b"x"}, {}, 60.0, []),
        ({**BUSY, "output": b"x"}, {}, 60.1, ["sweep_calls", "end"]),
        ({**BUSY, "swept_s": 600.0}, {}, 600.0, []),
        ({**BUSY, "swept_s": 600.0}, {}, 600.1, ["ping", "schedule_flush"]),
        ({**BUSY, "swept_s": 650.0}, {}, 660.0, ["ping", "schedule_flush"]),
        ({**BUSY, "swept_s": 650.0}, {}, 660.1, ["ping", "schedule_flush", "end"]),
        ({**BUSY, "swept_s": 650.0}, {"can_ping": False}, 660.1, ["ping"]),
    ],
)  # fmt: skip
def test_connection_is_swept(peer, port, now_s, done):
    one = PortStub(PeerStub(**peer), **port)
    sweep(one, now_s)
    assert one.done == ["listen", *done]


def test_connection_that_never_began_has_the_time_of_a_handshake():
    for now_s, done in ((10.0, []), (10.1, ["end"])):
        peer = PeerStub(is_busy=True)
        peer.engine.is_established = False
        one = PortStub(peer)
        sweep(one, now_s)
        assert one.done == ["listen", *done]


def test_calls_are_swept_once_a_minute():
    peer = PeerStub(is_busy=True, active_s=1e9)
    one = PortStub(peer)
    for now_s in (60.1, 100.0, 120.0, 120.2, 180.1):
        sweep(one, now_s)
    assert one.done.count("sweep_calls") == 2
    assert peer.swept_s == 120.2


# A drain


def test_drain_refuses_new_calls_and_tells_every_peer():
    refusal = Unavailable("it drains")
    peers = PeerStub(is_busy=True, active_s=1.0), PeerStub(active_s=1.0)
    one = PortStub(*peers)
    drain = Drain(refusal, 50.0)
    drain.begin(one)
    assert one.done == ["schedule_flush", "schedule_flush", refusal]
    assert [each.active_s for each in peers] == [50.0, 1.0]
    assert [each.engine.done for each in peers] == [["announce"]] * 2
    assert (drain.refusal, drain.begun_s) == (refusal, 50.0)


def test_drain_cuts_off_who_takes_nothing_for_two_seconds():
    peer = PeerStub()
    one, drain = PortStub(peer), Drain(Unavailable("it drains"), 0.0)

    def looked(now_s, num_bytes, *, has_accepted=False):
        one.done.clear()
        one.unsent[peer] = num_bytes
        one.accepted = {peer} if has_accepted else set()
        drain.cut_off_who_takes_nothing([one], now_s)  # type: ignore[list-item]
        return one.done == ["abort"]

    assert not looked(10.0, 100)
    assert not looked(11.9, 100)
    assert not looked(12.0, 90), "some have left"
    assert not looked(13.9, 90)
    assert looked(14.0, 90)
    assert not looked(20.0, 0)
    assert not looked(21.0, 90), "the time begins again"
    assert not looked(22.0, 90, has_accepted=True)
    assert not looked(23.5, 90)
    assert looked(25.5, 90)


# Headers of calls


@pytest.mark.parametrize(
    ("value", "expected_s"),
    [
        (b"1H", 3600.0), (b"1M", 60.0), (b"1S", 1.0), (b"1m", 1e-3), (b"1u", 1e-6), (b"1n", 1e-9),
        (b"0m", 0.0), (b"99999999H", 99_999_999 * 3600.0), (b"100000000H", -1.0), (b"1h", -1.0),
        (b"1", -1.0), (b"", -1.0), (b"m", -1.0), (b"-1m", -1.0), (b"1.5S", -1.0),
    ],
)  # fmt: skip
def test_timeout_has_its_unit(value, expected_s):
    assert read_timeout_s(value) == pytest.approx(expected_s)


READ: Any = bytes
ROWS = BatchedUnary(path="/a.B/Rows", name="Rows", read=READ)
PLAIN = Unary(path="/a.B/Plain", name="Plain", answer=bytes)
OPEN = Unary(path="/a.B/Open", name="Open", answer=bytes, is_open=True)
METHODS = {each.path.encode(): each for each in (ROWS, PLAIN, OPEN)}
TOKENS: Any = SimpleNamespace(accepts=lambda values: values == [b"Bearer good"])


def meaning(path="/a.B/Rows", tokens=None, **changed):
    fields = {
        ":method": "POST", ":scheme": "http", ":path": path, "te": "trailers",
        "content-type": "application/grpc", **changed,
    }  # fmt: skip
    block = HeaderReader(Limits(), of_requests=True, counting=COUNTING).read(
        encode_literally(
            [(name.encode(), value.encode()) for name, value in fields.items() if value]
        )
    )
    return HeaderParser(METHODS, tokens).get(block)


@pytest.mark.parametrize(
    ("changed", "refusal", "name"),
    [
        ({}, None, "Rows"), ({"content-type": "application/grpc+proto"}, None, "Rows"),
        ({"content-type": "Application/gRPC; charset=x"}, None, "Rows"),
        ({"content-type": "application/grpc+json"}, NOT_GRPC, "Rows"),
        ({"content-type": ""}, NOT_GRPC, "Rows"), ({":method": "GET"}, NOT_POST, "Rows"),
        ({"te": ""}, NO_TRAILERS, "Rows"), ({"path": "/a.B/None"}, UNKNOWN_METHOD, "other"),
        ({"tokens": TOKENS}, UNAUTHENTICATED, "unauthenticated"),
        ({"tokens": TOKENS, "path": "/a.B/None"}, UNAUTHENTICATED, "unauthenticated"),
        ({"tokens": TOKENS, "path": "/a.B/Open"}, None, "Open"),
        ({"tokens": TOKENS, "authorization": "Bearer bad"}, UNAUTHENTICATED, "unauthenticated"),
        ({"tokens": TOKENS, "authorization": "Bearer good"}, None, "Rows"),
        ({"grpc-timeout": "1x"}, BAD_TIMEOUT, "Rows"),
        ({"grpc-timeout": "1x", "te": ""}, NO_TRAILERS, "Rows"),
    ],
)  # fmt: skip
def test_call_is_taken_or_refused_by_its_headers(changed, refusal, name):
    found = meaning(**changed)
    assert (found.refusal, found.name) == (refusal, name)
    assert found.is_plain is (refusal is None and name == "Rows")
    assert found.trusted is (changed.get("authorization") == "Bearer good")
    assert found.encoding == b""
    assert found.known is (grpc_headers._NONE_KNOWN if name in ("other", "Open")
                           or "None" in changed.get("path", "") else ROWS.known)  # fmt: skip


@pytest.mark.parametrize(
    ("timeout", "expected_s"), [("", math.inf), ("250m", 0.25), ("2S", 2.0), ("1x", 0.0)]
)
def test_timeout_of_a_call_changes_nothing_else(timeout, expected_s):
    changed = {"grpc-timeout": timeout, "grpc-encoding": "gzip"}
    found, plain = meaning(**changed), meaning(**{"grpc-encoding": "gzip"})
    assert found.timeout_s == expected_s
    kept = ("method", "name", "known", "trusted", "encoding")
    assert [getattr(found, each) for each in kept] == [getattr(plain, each) for each in kept]
    assert found.encoding == b"gzip"
    assert (found.refusal, found.is_plain) == ((BAD_TIMEOUT, False) if timeout == "1x"
                                               else (None, True))  # fmt: skip


def test_handlers_see_no_secrets_and_nothing_of_the_transport():
    headers = {
        "authorization": "x", "proxy-authorization": "x", "cookie": "x", ":path": "/", "te":
        "trailers", "grpc-timeout": "1m", "x-tenant": "a", "user-agent": "b", "tenant": "c",
    }  # fmt: skip
    assert public_headers(headers.items()) == {"x-tenant": "a", "user-agent": "b", "tenant": "c"}


@pytest.mark.parametrize(
    ("family", "name", "host", "peer"),
    [
        (socket.AF_INET, ("10.0.0.1", 5), "10.0.0.1", "ipv4:10.0.0.1:5"),
        (socket.AF_INET6, ("::1", 5, 0, 0), "::1", "ipv6:%5B::1%5D:5"),
        (socket.AF_INET6, ("::ffff:10.0.0.1", 5, 0, 0), "10.0.0.1", "ipv4:10.0.0.1:5"),
        (socket.AF_UNIX, "", "", "unix:"),
    ],
)
def test_peer_has_the_address_that_grpc_writes(family, name, host, peer):
    sock: Any = SimpleNamespace(family=family, getpeername=lambda: name)
    assert (host_of(sock), peer_of(sock)) == (host, peer)


# What the calls of a loop share


class CallStub:
    """A call with a deadline, or one that waits for room."""

    def __init__(self, deadline_s=math.inf, name="", noted=None, spends=None):
        self.deadline_s, self.name, self.is_over = deadline_s, name, False
        self._noted, self._spends = noted, spends

    def expire(self):
        self.is_over = True
        self._noted.append(self.name)

    def resume(self):
        self._noted.append(self.name)
        if self._spends:
            self._spends()


def calls_of(clock=lambda: 0.0):
    hurried = []
    return LoopCalls(clock, lambda: hurried.append(None)), hurried


def test_calls_end_at_their_deadlines_in_their_order():
    calls, hurried = calls_of()
    noted: list[str] = []
    late, soon, over = (CallStub(*each, noted) for each in ((5.0, "late"), (2.0, "soon"),
                                                            (1.0, "over")))  # fmt: skip
    for each in (late, soon, over, CallStub(noted=noted)):
        calls.end_at_deadline(each)
    assert len(hurried) == 3, "one without a deadline needs no look"
    over.is_over = True
    assert (calls.is_due(0.9), calls.is_due(1.0)) == (False, True)
    calls.tick(1.9)
    assert noted == []
    assert (calls.is_due(1.9), calls.is_due(2.0)) == (False, True)
    calls.tick(2.0)
    assert noted == ["soon"]
    calls.tick(5.0)
    assert (noted, calls.is_due(1e9)) == (["soon", "late"], False)


def test_deadlines_of_calls_that_are_over_take_no_memory():
    calls, _ = calls_of()
    for number in range(1000):
        call = CallStub(100.0 + number)
        calls.end_at_deadline(call)
        call.is_over = number % 10 > 0
    assert len(calls._deadlines) == 1000
    calls.end_at_deadline(CallStub(1.0))
    assert len(calls._deadlines) == 101
    assert calls._deadlines[0][0] == 1.0
    assert calls._max_deadlines == 1000 + 2 * 101


def test_first_deadline_is_found_though_earlier_calls_are_over():
    calls, _ = calls_of()
    noted: list[str] = []
    over, late, soon = (
        CallStub(deadline_s, name, noted)
        for deadline_s, name in ((0.0, "over"), (50.0, "late"), (10.0, "soon"))
    )
    for each in (over, late, soon):
        calls.end_at_deadline(each)
    over.is_over = True
    for number in range(1000):
        calls.end_at_deadline(CallStub(100.0 + number, noted=noted))
    assert len(calls._deadlines) == 1002
    calls.tick(10.0)
    assert noted == ["soon"]
    calls.tick(50.0)
    assert noted == ["soon", "late"]


def test_call_that_is_late_anyway_makes_room_before_one_is_refused():
    now = SimpleNamespace(s=0.0)
    calls, _ = calls_of(lambda: now.s)
    calls.budget.max_bytes, calls.budget.free_bytes = 100, 5
    noted: list[str] = []

    def begun(name, deadline_s):
        call: Any = CallStub(deadline_s, name)
        call.peer, call.is_running = SimpleNamespace(address=name), False
        call.refuse_bytes = lambda: noted.append(f"{name} is refused")
        call.resume_reading = lambda: noted.append(f"{name} may go on")

        def expire():
            noted.append(f"{name} is late")
            call.is_over = True
            calls.budget.hold(call, 0)

        call.expire = expire
        calls.budget.admit(call, 70)
        calls.budget.hold(call, 1)
        calls.end_at_deadline(call)

    begun("slow", 6.0)
    begun("next", 60.0)
    now.s = 6.0
    calls.tick(6.0)
    assert noted == ["slow is late", "next may go on"]


def test_calls_that_wait_for_room_are_resumed_for_two_milliseconds():
    now = SimpleNamespace(s=0.0)
    calls, hurried = calls_of(lambda: now.s)
    noted: list[str] = []

    def spend():
        now.s += 0.0011

    for name in "abcd":
        calls.stall(CallStub(name=name, noted=noted, spends=spend))
    assert len(hurried) == 4
    assert calls.is_due(0.0)
    calls.tick(0.0)
    assert noted == ["a", "b"], "others have their turn"
    calls.tick(0.0)
    assert noted == ["a", "b", "c", "d"]
    assert not calls.is_due(0.0)


def test_call_that_waits_again_is_not_resumed_twice_in_a_tick():
    calls, _ = calls_of()
    noted: list[str] = []
    call = CallStub(name="a", noted=noted)
    call._spends = lambda: calls.stall(call)
    calls.stall(call)
    calls.tick(0.0)
    assert noted == ["a"]
    assert calls.is_due(0.0)


# Where work is done


def test_strangers_bytes_have_192_mib_and_ten_seconds():
    router: Any = SimpleNamespace(bounded_pool=lambda *args: args)
    found: Any = decoders(router, ("a", "b"))
    assert found == (("a", "b"), JobLimits(201_326_592, 10.0))


async def test_port_of_grpc_has_the_limits_of_its_configuration(monkeypatch):
    monkeypatch.setattr("serving.transports.h2_server.max_message_bytes", lambda *_: 11)
    monkeypatch.setattr("serving.transports.h2_server.max_buffered_bytes", lambda *_: 22)
    router: Any = SimpleNamespace()
    server = H2Server(router, [PLAIN], ServerConfig(max_connection_age_s=33.0))
    assert server._limits == PortLimits(max_message_bytes=11, max_buffered_bytes=22, age_s=33.0)
    assert server.num_calls == 0
    assert [*server._header_parser.methods] == [b"/a.B/Plain"]
    await server.stop(0.0)


class Jobs:
    """A pool that notes what it is asked for; the test ends it."""

    def __init__(self):
        self.asked: list[Any] = []
        self.futures: list[Future[Any]] = []

    def submit(self, owner, function, *args):
        self.asked.append((owner, function, args))
        self.futures.append(Future())
        return self.futures[-1]


class OwnPort:
    """The port of a call, whose threads and clock are the test's."""

    def __init__(self):
        self.now_s = 10.0
        self.pool, self.log = Jobs(), None
        self.deferred: list[Any] = []
        self.runners: list[int] = []
        self.host: Any = SimpleNamespace(runners=self._runners)
        self.calls = LoopCalls(lambda: self.now_s, lambda: None)
        self.limits = PortLimits(max_message_bytes=1 << 20)
        self.counted: list[Any] = []
        self.metrics = SimpleNamespace(count=lambda *args, **named: self.counted.append(
            (*args, named)))  # fmt: skip
        self.clock = lambda: self.now_s
        self.defer = self.deferred.append

    def _runners(self, number):
        def put(work, post):
            self.runners.append(number)
            post(work())

        return SimpleNamespace(put=put)

    def post(self, task):
        task()

    def schedule_flush(self, peer):
        self.flushed = peer


class Own(LoopCall):
    """A call that notes how it ends."""

    outcome: Any = None

    def __init__(self, port, address=""):
        peer: Any = SimpleNamespace(address=address)
        super().__init__(port, peer, 1, math.inf)

    def _returned(self, outcome):
        self.outcome = outcome

    def _raised(self, error):
        self.outcome = error


def encoder_of(target=None, **facts) -> Any:
    given = {"num_rows": 1, "timeout_s": None, "in_parts": False, **facts}
    return SimpleNamespace(target=target, **given)


def begun(step, address=""):
    """A call, and the port, of a coroutine that is given the call."""
    port = OwnPort()
    call = Own(port, address)
    call.start(step(call))
    return call, port


@pytest.mark.parametrize(
    ("size", "options", "is_here"),
    [
        (4096, {}, True), (4097, {}, False), (None, {}, False), (0, {}, True),
        (100, {"few_bytes": 100}, True), (101, {"few_bytes": 100}, False),
    ],
)  # fmt: skip
@pytest.mark.parametrize("address", ["10.0.0.1", ""])
def test_work_of_few_bytes_is_done_here_and_other_work_in_the_ports_pool(
    size, options, is_here, address
):
    call, port = begun(lambda call: call.work(sum, [1, 2], size=size, **options), address)
    if is_here:
        assert (call.outcome, port.pool.asked, call.is_running) == (3, [], False)
        return
    assert port.pool.asked == [(address or "unix", sum, ([1, 2],))]
    assert (call.outcome, call.is_running) == (None, True)
    port.pool.futures[0].set_result(3)
    assert (call.outcome, call.is_running, call._steps) == (3, False, None)


def test_work_has_a_pool_of_its_own_where_it_says_so():
    own = Jobs()
    call, port = begun(lambda call: call.work(sum, [1], size=5000, pool=own))
    assert (len(own.asked), port.pool.asked) == (1, [])
    own.futures[0].set_result(1)
    assert call.outcome == 1


@pytest.mark.parametrize("was_running", [True, False])
def test_error_of_work_is_the_calls_and_keeps_no_frame(was_running):
    """Its traceback has the frames of the call, which have the request."""
    seen: list[bool] = []

    async def step(call):
        call.is_running = was_running
        try:
            await call.work(sum, [1])
        finally:
            seen.append(call.is_running)

    call, port = begun(step)
    assert call.is_running
    error = InvalidRequest("it is bad")
    port.pool.futures[0].set_exception(error)
    assert call.outcome is error
    assert (error.__traceback__, call._steps, seen) == (None, None, [was_running])


def test_call_whose_work_can_not_begin_has_ended_before_its_error_is_answered():
    seen: list[Any] = []

    class Full:
        def submit(self, *args):
            raise Overloaded("no process is free")

    class Noting(Own):
        def _raised(self, error):
            seen.append((type(error), self.is_running))

    async def step(call):
        try:
            await call.work(sum, [1], pool=Full())
        finally:
            seen.append("left")

    call = Noting(OwnPort())
    call.start(step(call))
    assert seen == ["left", (Overloaded, False)]


def test_call_that_is_closed_is_over_and_gives_all_up():
    ended: list[str] = []

    async def step(call):
        try:
            await call.work(sum, [1])
        finally:
            ended.append("closed")

    call, port = begun(step)
    call.keep(50)
    call.wait_for_room()
    assert (port.calls.budget._num_held, [*port.calls.stalled]) == (50, [call])
    call._resume = lambda: ended.append("the next part is not waited for")
    call.close()
    assert ended == ["closed", "the next part is not waited for"]
    assert (call.is_over, call._steps, call._work, call._resume) == (True, None, None, None)
    assert (port.calls.budget._num_held, port.calls.stalled) == (0, {})
    assert port.pool.futures[0].cancelled()
    assert call.outcome is None
    call.close()
    call.answer(
        SimpleNamespace(encoder=encoder_of()),
        [b"late"],
        (0.0, 0.0, "", "", 0),
    )
    assert call.outcome is None


def test_others_have_their_turn_between_two_steps_of_a_call():
    seen: list[int] = []

    async def step(call):
        for number in range(3):
            seen.append(number)
            await call.others()
        return "done"

    call, port = begun(step)
    for number in range(3):
        assert (seen, call.outcome) == ([*range(number + 1)], None)
        port.deferred.pop()()
    assert call.outcome == "done"
    gone, port = begun(step)
    gone.close()
    port.deferred.pop()()
    assert gone.outcome is None


@pytest.mark.parametrize(
    ("own_s", "asked_s", "encoder_s", "expected_s"),
    [(60.0, 50.0, None, 50.0), (60.0, math.inf, 2.5, 12.5), (11.0, 50.0, 2.5, 11.0),
     (math.inf, math.inf, None, math.inf)],
)  # fmt: skip
def test_run_has_the_earliest_of_its_deadlines(own_s, asked_s, encoder_s, expected_s):
    groups: list[Any] = []

    def submit(group):
        groups.append(group)
        return 1

    target = SimpleNamespace(label=("m", "3"), submit=submit)
    encoder = encoder_of(target, timeout_s=encoder_s)
    port = OwnPort()
    call = Own(port)
    call.deadline_s = own_s
    call.start(call.run(b"rows", encoder, asked_s))
    (group,) = groups
    assert (group.deadline_s, group.arrived_s, group.messages) == (expected_s, 10.0, [b"rows"])
    assert (call.is_running, call.model) == (True, ("m", "3"))
    call.answer(group, [b"answer"], (1.0, 2.0, "m", "4", 1))
    assert (call.outcome, call.model) == (b"answer", ("m", "4"))


def test_rows_without_room_are_refused():
    target = SimpleNamespace(label=("m", "3"), submit=lambda group: 0)
    encoder = encoder_of(target)
    call, _ = begun(lambda call: call.run(b"rows", encoder))
    assert isinstance(call.outcome, Overloaded)


def test_parts_of_an_answer_come_one_by_one_until_its_end():
    made: list[int] = []
    target = SimpleNamespace(label=("m", "3"), submit=lambda group: 1)
    encoder = encoder_of(target, in_parts=True)

    async def step(call):
        return [part async for part in call.run_in_parts(b"rows", encoder)]

    call, _ = begun(step)
    group: Any = SimpleNamespace(encoder=encoder)
    for number in range(3):
        call.take_part(group, number, lambda: made.append(len(made)))
        assert (call.outcome, len(made)) == (None, number + 1)
    call.answer(group, [None], (1.0, 2.0, "m", "3", 1))
    assert (call.outcome, made) == ([0, 1, 2], [0, 1, 2])
    whole = encoder_of(target)

    async def only(call):
        return [part async for part in call.run_in_parts(b"rows", whole)]

    call, _ = begun(only)
    call.answer(SimpleNamespace(encoder=whole), [b"all"], (1.0, 2.0, "m", "3", 1))
    assert call.outcome == [b"all"], "of a model that answers at once"


@pytest.mark.parametrize(("size", "is_here"), [(32_768, True), (32_769, False)])
@pytest.mark.parametrize("was_running", [True, False])
def test_request_of_32_kib_is_unpacked_here_and_a_longer_one_on_a_thread(
    size, is_here, was_running
):
    packed, seen = gzip.compress(bytes(size)), []

    async def step(call):
        call.is_running = was_running
        found = await call.unpacked(packed, 1 << 20)
        seen.append((call.is_running, call.port.calls.budget._held[call]))
        return found

    call, port = begun(step)
    assert call.outcome == bytes(size)
    assert port.pool.asked == []
    assert port.runners == ([] if is_here else [1])
    assert seen == [(was_running, size)]
    with pytest.raises(TooLarge):
        raise begun(lambda call: call.unpacked(packed, size - 1))[0].outcome
    assert begun(lambda call: call.unpacked(packed, size))[0].outcome == bytes(size)


def test_request_is_not_unpacked_before_there_is_room():
    packed = gzip.compress(bytes(600))
    call = Own(OwnPort())
    port = call.port
    port.calls.budget.max_bytes = 1000
    other = Own(port)
    other.keep(500)
    call.start(call.unpacked(packed, 1 << 20))
    assert (call.outcome, [*port.calls.stalled]) == (None, [call])
    assert port.calls.budget._held[call] == len(packed)
    call.close()
    assert port.calls.stalled == {}


def test_unpacked_bytes_that_are_no_gzip_end_the_call_as_it_was():
    packed = bytearray(gzip.compress(bytes(100)))
    packed[-8] ^= 1  # the checksum
    seen: list[bool] = []

    async def step(call):
        call.is_running = True
        try:
            await call.unpacked(bytes(packed), 1 << 20)
        finally:
            seen.append(call.is_running)

    call, _ = begun(step)
    assert isinstance(call.outcome, InvalidRequest)
    assert seen == [True]


# A call over gRPC alone


class GrpcEngine:
    """An engine that notes what leaves."""

    def __init__(self):
        self.done: list[Any] = []

    def num_unsent(self, stream):
        return 0

    def acknowledge(self, stream, number):
        self.done.append(("acknowledge", number))

    def __getattr__(self, name):
        return lambda *args: self.done.append((name, *args))


def grpc_call(path="/a.B/Rows", **changed):
    port = OwnPort()
    peer: Any = SimpleNamespace(engine=GrpcEngine(), unread={}, address="")
    return GrpcCall(port, peer, b"\0\0\0\1", meaning(path=path, **changed), port.now_s), port, peer


def pending_of(call):
    found = PendingResponse(5, lambda error: None)
    call.pending.append(found)
    return found


def test_request_of_a_stream_that_was_not_compressed_takes_no_other_bytes():
    found = PendingResponse(5, lambda error: None)
    assert (found.num_bytes, found.num_unpacked, found.response) == (5, 0, None)


def test_compressed_message_without_rows_has_64_kib():
    for path, most in (("/a.B/Plain", 65_536), ("/a.B/Rows", 1 << 20)):
        assert grpc_call(path)[0]._max_unpacked == most


@pytest.mark.parametrize("how", ["cancel", "end", "expire", "refuse_bytes"])
def test_call_that_ends_is_counted_once_for_its_model_and_keeps_nothing(how):
    call, port, peer = grpc_call(**{"grpc-timeout": "2S"})
    assert call.deadline_s == 12.0
    call.model = ("m", "3")
    call.data += b"abc"
    call.keep(70)
    pending_of(call)
    call.parts.append(pending_of(call))
    resumed: list[int] = []
    call._paused.append(lambda: resumed.append(1))
    call._response, call._owed, call._unconsumed = b"kept", 3, 4
    code = {"cancel": "CANCELLED", "end": "UNAVAILABLE", "expire": "DEADLINE_EXCEEDED",
            "refuse_bytes": "RESOURCE_EXHAUSTED"}[how]  # fmt: skip
    getattr(call, how)(*[Status.of(Unavailable("it drains"))] * (how == "end"))
    assert port.counted == [("Rows", code, {"model": ("m", "3")})]
    assert (call.is_over, call.data, call.pending, call.parts) == (True, b"", [], [])
    assert (call._response, call._owed, call._unconsumed, call._paused) == (None, 0, 0, [])
    assert (resumed, port.calls.budget._num_held) == ([1], 0)
    sent = [name for name, *_ in peer.engine.done]
    assert sent == ([] if how == "cancel" else ["refuse"])


def test_call_that_has_begun_its_answer_ends_behind_it():
    call, port, peer = grpc_call()
    call._send(b"one")
    call._send(b"two")
    call.end(None)
    assert [name for name, *_ in peer.engine.done] == ["respond", "send", "send", "end"]
    assert peer.engine.done[-1] == ("end", call.stream, ())
    assert port.counted == [], "its run counts it"
    plain, port, _ = grpc_call("/a.B/Plain")
    plain.end(None)
    assert port.counted == [("Plain", "OK", {"model": ("", "")})]


def test_answers_of_a_stream_leave_in_order_and_together():
    call, _, peer = grpc_call()
    first, second, third = (pending_of(call) for _ in range(3))
    second.response = b"two"
    call._send_answers()
    assert peer.engine.done == []
    first.response = b"one"
    call._send_answers()
    assert peer.engine.done == [
        ("respond", call.stream), ("send", call.stream, b"onetwo"), ("acknowledge", 10),
    ]  # fmt: skip
    assert (call.pending, call._owed) == ([third], 0)


def test_long_answers_leave_as_they_are_between_short_ones():
    call, _, peer = grpc_call()
    long = Pieces([b"long"])
    for response in (b"a", b"b", long, b"c"):
        pending_of(call).response = response
    call._send_answers()
    assert [args for name, *args in peer.engine.done if name == "send"] == [
        [call.stream, b"ab"], [call.stream, long], [call.stream, b"c"]]  # fmt: skip


def test_error_of_a_stream_ends_it_behind_the_answers_before():
    call, port, peer = grpc_call()
    for response in (b"one", InvalidRequest("it is bad"), b"three"):
        pending_of(call).response = response
    call._go_on()
    assert [name for name, *_ in peer.engine.done] == ["respond", "send", "acknowledge", "end"]
    assert (call.is_over, call.pending) == (True, [])
    assert [code for _, code, _ in port.counted] == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize(
    ("data", "is_ended", "status"),
    [
        (b"", True, NOT_ONE_MESSAGE), (b"\2\0\0\0\0", False, MALFORMED),
        (b"\1\0\0\0\0", False, OTHER_ENCODING), (b"\0\0\0\0\1", True, TRUNCATED),
        (b"\0\0", True, TRUNCATED), (b"\0\0\0\0\0x", False, NOT_ONE_MESSAGE),
        (b"\1\0\x10\0\1", False, OTHER_ENCODING), (b"\2\0\x10\0\1", False, MALFORMED),
        (b"\0\0\x10\0\1", False, None),
    ],
)  # fmt: skip
def test_message_that_is_none_ends_its_call(data, is_ended, status):
    call, port, peer = grpc_call()
    call.receive(data, ended=is_ended)
    assert call.is_over
    ((name, streams, trailers),) = (each for each in peer.engine.done if each[0] == "refuse")
    expected = status or too_long(1_048_577, 1 << 20)
    assert (name, streams) == ("refuse", [call.stream])
    assert trailers == (*grpc_headers.RESPONSE, *trailers_of(expected))
    assert port.counted == [("Rows", expected.code.name, {"model": ("", "")})]


def acknowledged(peer):
    return [args for name, *args in peer.engine.done if name == "acknowledge"]


def test_large_message_has_room_before_more_of_it_may_come():
    for max_bytes, expected in ((10_000, [[10]]), (100, [])):
        call, port, peer = grpc_call()
        port.calls.budget.max_bytes, port.calls.budget.free_bytes = max_bytes, 50
        other = Own(port)
        port.calls.budget.admit(other, 60)
        call.receive(frame_prefix(900) + b"first", ended=False)
        assert acknowledged(peer) == expected
        assert port.calls.budget.is_waiting(call) is (expected == [])


def test_message_that_its_method_has_taken_is_not_held_any_more():
    call, port, _ = grpc_call()
    held: list[int] = []

    async def handle(call):
        await call.message()
        await paused(lambda: None)

    call.call_headers.method = SimpleNamespace(handle=handle, sends_one=True)
    call.receive(frame_prefix(6) + b"abc", ended=False)
    held.append(port.calls.budget._num_held)
    call.receive(b"def", ended=True)
    held.append(port.calls.budget._num_held)
    assert held == [8, 0]


def test_window_of_a_streams_message_is_given_back_once_it_is_answered_or_the_next_is_wanted():
    """And its end is no message."""
    call, _, peer = grpc_call()
    call.takes_one = False
    taken: list[Any] = []

    async def step():
        while (message := await call.message()) is not None:
            taken.append(bytes(message))
            await paused(call._wait_for_message)  # an answer is on its way
        taken.append(None)

    call.start(step())
    call.receive(frame(b"one"), ended=False)
    assert (taken, acknowledged(peer), call._taken) == ([b"one"], [], 8)
    call.resume()
    assert (acknowledged(peer), call._taken) == ([[8]], 0)
    call.receive(frame(b"three"), ended=False)
    assert (taken, call._taken) == ([b"one", b"three"], 10)
    call.receive(b"", ended=True)
    assert taken == [b"one", b"three", None]
    assert acknowledged(peer) == [[8], [10]]


def test_compressed_messages_of_a_stream_are_counted_until_they_are_answered():
    call, port, _ = grpc_call()
    for number, expected in ((30, 30), (100, 100)):
        call.keep(number)
        assert (call._unpacked, port.calls.budget._num_held) == (number, expected)
    call._unpacked = 0  # it is queued, and the next one is read
    call.keep(7)
    assert (call._unpacked, port.calls.budget._num_held) == (7, 107)


def test_long_answer_without_room_is_not_sent():
    call, port, peer = grpc_call()
    port.calls.budget.max_bytes = 100
    other = Pieces([bytes(60)])
    port.calls.budget.hold_answer(other)
    call.call_headers.method = SimpleNamespace(sends_one=False, is_counted_by_run=False)
    call.start(call.send_framed(Pieces([bytes(60)])))
    assert [name for name, *_ in peer.engine.done] == ["refuse"]
    assert [code for _, code, _ in port.counted] == ["RESOURCE_EXHAUSTED"]


@pytest.mark.parametrize("fails", [False, True])
def test_parts_of_a_methods_own_run_are_its_own(fails):
    groups: Any = []
    target = SimpleNamespace(label=("m", "3"), submit=lambda group: groups.append(group) or 1)
    call, _, _ = grpc_call("/a.B/Plain")
    seen: list[Any] = []

    async def step():
        try:
            seen.extend(
                [each async for each in call.run_in_parts(b"", encoder_of(target, in_parts=True))]
            )
        except InvalidRequest as err:
            seen.append(err)

    call.start(step())
    (group,) = groups
    assert group.slots is None
    error = InvalidRequest("it is bad")
    if fails:
        call.fail(group, error)
    else:
        call.answer(group, [b"the end"], (1.0, 2.0, "m", "3", 1))
    assert seen == ([error] if fails else [])
    assert call.is_over


@pytest.mark.parametrize("own", [None, b"refused"])
def test_request_that_fails_among_its_parts_ends_its_stream_or_is_answered_by_its_own(own):
    call, _, peer = grpc_call()
    pending = PendingResponse(5, lambda error: own)
    call.parts.append(pending)
    call.start(call.left())  # more may come
    group: Any = SimpleNamespace(slots=[pending], encoder=encoder_of(in_parts=True))
    call.fail(group, InvalidRequest("it is bad"))
    names = [name for name, *_ in peer.engine.done]
    assert names == (["acknowledge", "refuse"] if own is None else ["acknowledge", "respond",
                                                                    "send"])  # fmt: skip
    assert (call.is_over, call.parts) == (own is None, [])


def test_messages_of_a_stream_are_taken_as_they_come_and_given_back_once():
    call, port, peer = grpc_call()
    call.takes_one = False
    taken: list[Any] = []

    async def step():
        while (message := await call.message()) is not None:
            taken.append(len(message))

    call.start(step())
    for part in (frame(bytes(900))[:300], frame(bytes(900))[300:600], frame(bytes(900))[600:]):
        call.receive(part, ended=False)
    assert taken == [900]
    call.receive(frame(bytes(3)), ended=False)
    assert taken == [900, 3], "a shorter one need not wait for as many bytes"
    assert sum(number for (number,) in acknowledged(peer)) == 913
    assert port.calls.budget._num_held == 0


def test_stream_that_waits_for_other_things_than_messages_is_not_resumed_by_them():
    call, _, _ = grpc_call()
    call.takes_one = False
    taken: list[Any] = []

    async def step():
        taken.append(bytes(await call.message()))
        await call.left()
        taken.append("it went on")

    call.start(step())
    call.receive(frame(b"one"), ended=False)
    call.receive(frame(b"two"), ended=False)
    call.resume()
    assert taken == [b"one"]


@pytest.mark.parametrize("is_end", [False, True])
def test_stream_ends_behind_its_last_recognised_messages(is_end):
    call, _, _ = grpc_call()
    call.takes_one = False
    call.call_headers.method = SimpleNamespace(error_message=lambda message, error: None)
    taken: list[Any] = []

    async def step():
        taken.append(await call.message())

    call.start(step())
    target = stream_target(2)
    assert call.run_messages(encoder_of(target), [b"one", b"two"], 8, ended=is_end) == 2
    ((group,), places) = target.groups, call.pending
    assert (group.messages, group.slots) == ([b"one", b"two"], places)
    assert [each.num_bytes for each in places] == [8, 8]
    assert taken == ([None] if is_end else [])


def test_stream_that_failed_reads_nothing_more_and_ends_behind_the_answers_before():
    call, port, _ = grpc_call()
    call.takes_one = False
    first, second = (PendingResponse(5, lambda error: None) for _ in range(2))
    call.parts += [first, second]

    async def step():
        await call.message()

    call.start(step())
    group: Any = SimpleNamespace(slots=[second], encoder=encoder_of(in_parts=True))
    call.fail(group, InvalidRequest("it is bad"))
    call.receive(frame(b"more"), ended=True)
    assert (call.is_over, call.parts) == (False, [first])
    group.slots = [first]
    call.answer(group, [b"the end"], (1.0, 2.0, "m", "3", 1))
    assert call.is_over
    assert [code for _, code, _ in port.counted] == ["INVALID_ARGUMENT"]


def test_stream_reads_no_further_once_a_request_has_failed_at_once():
    call, port, _ = grpc_call()
    went_on: list[bool] = []
    target: Any = SimpleNamespace(
        label=("m", "3"), room_for_stream=lambda rows: 1,
        add=lambda group: call.fail(group, InvalidRequest("it is bad")),
    )  # fmt: skip

    async def step():
        await call.answer_in_order((b"rows", encoder_of(target)), lambda error: None)
        went_on.append(True)

    call.start(step())
    assert (call.is_over, went_on) == (True, [])
    assert [code for _, code, _ in port.counted] == ["INVALID_ARGUMENT"]


@pytest.mark.parametrize("number", [0, 1, 3])
def test_recognised_messages_that_can_not_run_at_once_are_received_one_by_one(number):
    call, own, peer = grpc_call()
    ran: list[Any] = []

    class Some(GrpcCall):
        __slots__ = ()

        def run_messages(self, encoder, messages, num_bytes, *, ended):
            ran.append((encoder, messages, num_bytes, ended))
            return number

    some = Some(own, peer, call.stream, call.call_headers, 0.0)
    router: Any = SimpleNamespace(metrics=None)
    loop: Any = SimpleNamespace(clock=own.clock, post=own.post, calls=own.calls)
    parser, host = HeaderParser(METHODS, None), own.host
    port: Any = H2Port(router, parser, loop, own.limits, host, None)
    received: list[Any] = []
    port._receive_part = lambda peer, stream, data, now_s, ended: received.append((data, ended))
    messages = [b"one", b"two", b"six"]
    event = MessagesReceived(call.stream, (b"before-", 3), "encoder", messages, True)
    port._take_messages(peer, event, some, 0.0)
    assert ran == [("encoder", messages, 10, True)]
    left = [(b"before-one", False), (b"before-two", False), (b"before-six", True)]
    assert received == left[number:]


def stream_target(*rooms):
    """A model that has room for so many requests of a stream, look by look."""
    left, groups = [*rooms], []
    target: Any = SimpleNamespace(
        label=("m", "3"), room_for_stream=lambda rows: left.pop(0), add=groups.append, groups=groups
    )
    return target


def test_request_of_a_stream_waits_for_room_and_is_run_with_its_place():
    call, port, _ = grpc_call()
    target = stream_target(0, 0, 1)
    call._taken, call._unpacked = 5, 3
    rows: Any = b"rows", encoder_of(target)
    call.start(call.answer_in_order(rows, lambda error: None))
    assert (target.groups, [*port.calls.stalled]) == ([], [call])
    for number_of_groups in (0, 1):
        port.calls.tick(port.now_s)
        assert len(target.groups) == number_of_groups
    (group,) = target.groups
    (place,) = group.slots
    assert (place.num_bytes, place.num_unpacked, call.pending) == (5, 3, [place])
    assert (call._taken, call._unpacked, port.calls.stalled) == (0, 0, {})
    assert (group.streams, group.messages) == ([call.stream], [b"rows"])


def test_refused_request_of_a_stream_is_answered_and_takes_nothing_twice():
    call, _, peer = grpc_call()
    call._taken, call._unpacked = 5, 3
    call.start(call.answer_in_order(InvalidRequest("it is bad"), lambda error: b"refused"))
    assert [name for name, *_ in peer.engine.done][:3] == ["respond", "send", "acknowledge"]
    assert peer.engine.done[2] == ("acknowledge", 5)
    assert (call._taken, call._unpacked, call._owed, call.pending) == (0, 0, 0, [])


def test_refused_request_without_an_answer_of_its_own_ends_the_stream():
    call, port, peer = grpc_call()
    went_on: list[bool] = []

    async def step():
        await call.answer_in_order(InvalidRequest("it is bad"), lambda error: None)
        went_on.append(True)

    call.start(step())
    assert (call.is_over, went_on) == (True, []), "no further message is read"
    assert [name for name, *_ in peer.engine.done] == ["refuse"]
    assert port.counted == [("Rows", "INVALID_ARGUMENT", {"model": ("", "")})]


# What leaves with a call's status


def test_headers_of_answers_are_these():
    assert grpc_headers.RESPONSE == ((b":status", b"200"), (b"content-type", b"application/grpc"))
    assert grpc_headers.OK == ((b"grpc-status", b"0"),)
    text = (b"content-type", b"text/plain")
    for changed, status, said in (
        ({":method": "GET"}, b"405", b"gRPC calls are POST requests\n"),
        ({"content-type": "text/html"}, b"415", b"expected content-type application/grpc\n"),
    ):
        assert meaning(**changed).refusal == (((b":status", status), text), said)
    assert {b"content-type", b"authorization", b"grpc-encoding"} == COUNTING


def test_trailers_are_written_as_grpc_has_them():
    found = dict(trailers_of(Status.of(Overloaded(" 50 % é\n", retry_after_s=2.5))))
    assert found.pop(b"grpc-status-details-bin")
    assert found == {
        b"grpc-status": b"8", b"grpc-message": b"50 %25 %C3%A9",
        b"grpc-retry-pushback-ms": b"2500",
    }  # fmt: skip
    assert dict(trailers_of(OTHER_ENCODING))[b"grpc-accept-encoding"] == b"identity,gzip"
    assert OTHER_ENCODING.code.name == "UNIMPLEMENTED"


def test_timeouts_alone_may_differ_in_calls_that_are_recognised():
    ((name, patterns),) = grpc_headers.VARYING.patterns.items()
    assert (name, {*patterns}) == (b"grpc-timeout", {*range(2, 10)})
    for value in (b"1H", b"12m", b"99999999n", b"1234567u"):
        assert re.fullmatch(patterns[len(value)], value)
        assert not re.fullmatch(patterns[len(value)], value[:-1] + b"x")
        assert not re.fullmatch(patterns[len(value)], b"x" + value[1:])


# Threads


def test_thread_for_trusted_work_is_left_with_what_it_does():
    """The end of a server does not wait for a model that is loaded, and loads no further one."""
    pool, inside, go_on = OneThread("own"), threading.Event(), threading.Event()

    def load():
        inside.set()
        assert go_on.wait(TIMEOUT_S)
        return threading.current_thread().name

    first, second = pool.submit("", load), pool.submit("", load)
    assert inside.wait(TIMEOUT_S)
    pool.close()
    assert second.cancelled()
    go_on.set()
    assert first.result(TIMEOUT_S).startswith("own")


# A port's connections


class Connected(PeerStub):
    """An open connection of an address."""

    def __init__(self, address="", **facts):
        own = {"trusted": False, "tls": None, "mask": EVENT_READ, **facts}
        super().__init__(address=address, **own)
        self.socket: Any = SimpleNamespace(family=socket.AF_UNIX)
        self.closed: list[str] = []

    def flush(self):
        self.closed.append("flush")

    def close(self):
        self.closed.append("close")
        self.state = State.CLOSED


class FullPort(Port):
    """A port that has connections, and ends them as the test sees it."""

    def __init__(self, *peers, tokens=None, fails=False):
        limits = PortLimits(max_message_bytes=1, max_connections=len(peers))
        super().__init__(SimpleNamespace(clock=lambda: 0.0), limits, tokens)
        self._peers = dict.fromkeys(peers)
        self._acceptor: Any = SimpleNamespace(
            note=self._noted, accept=lambda room, now_s: iter(()), is_closed=False,
            leaves_to_others=lambda now_s: False, listen=lambda number: None, pause=lambda: None,
        )  # fmt: skip
        self._selector: Any = Selector()
        self.noted: list[int] = []
        self.dropped: list[Any] = []
        self.fails = fails
        for each in peers:
            each.engine.go_away = lambda: None

    def _noted(self, number):
        self.noted.append(number)

    def forget(self, peer):
        if self.fails:
            raise RuntimeError("a bug")

    def drop(self, peer):
        self.dropped.append(peer)


def replaced(*peers, **options):
    """Which connection a new one takes the place of."""
    port = FullPort(*peers, **options)
    port.accept(0.0, 0.0)
    gone = [at for at, peer in enumerate(peers) if peer not in {*port}]
    assert len(gone) <= 1
    return gone[0] if gone else None


NEEDED: Any = SimpleNamespace(digests=lambda: None)


@pytest.mark.parametrize(
    ("peers", "options", "expected"),
    [
        ([Connected(active_s=2.0), Connected(active_s=1.0)], {}, 1),
        ([Connected(active_s=1.0), Connected(active_s=2.0)], {}, 0),
        ([Connected(active_s=1.0, is_busy=True), Connected(active_s=2.0)], {}, 1),
        ([Connected(is_busy=True), Connected(is_busy=True)], {}, None),
        ([Connected(active_s=1.0), Connected(active_s=2.0, state=State.SHUT)], {}, 1),
        ([Connected("a", active_s=1.0), Connected("b", active_s=3.0), Connected("b", active_s=2.0)],
         {}, 2),
        ([Connected(is_busy=True), Connected(is_busy=True, active_s=-1.0)], {"tokens": NEEDED}, 1),
        ([Connected(is_busy=True), Connected(active_s=9.0)], {"tokens": NEEDED}, 1),
    ],
)  # fmt: skip
def test_new_connection_takes_the_place_of_the_longest_idle_one_of_who_has_most(
    peers, options, expected
):
    assert replaced(*peers, **options) == expected


def test_port_has_as_many_connections_as_its_page_says():
    """One more takes the place of the longest idle one."""
    router: Any = SimpleNamespace(routes={})
    limits = PortLimits(max_message_bytes=max_message_bytes(router))
    promised = int(cells("limits.md", "connections", "Limits of the ports")[1].split(";")[0]
                   .replace(",", ""))  # fmt: skip
    for number, is_closed in ((promised - 1, False), (promised, True)):
        peers = [Connected(active_s=float(number - at)) for at in range(number)]
        port = FullPort(*peers)
        port.limits = limits
        port.accept(0.0, 0.0)
        assert (peers[-1].state == State.CLOSED) is is_closed
        assert (peers[0].state == State.CLOSED) is False


@pytest.mark.parametrize("is_full", [False, True])
def test_connection_that_others_have_left_too_long_is_accepted_here(is_full):
    """It is not left to them again; a port that is full pauses until a connection ends."""
    port, done = FullPort(Connected(is_busy=True)), []
    port.limits = PortLimits(max_message_bytes=1, max_connections=2 - is_full)

    def noted(name, found=None):
        def note(*args):
            done.append(name)
            return found

        return note

    port._acceptor = SimpleNamespace(
        is_left_too_long=lambda now_s: True, listen=noted("listen"), pause=noted("pause"),
        leaves_to_others=noted("leave?", False), accept=noted("accept", ()),
        take_back=noted("take back"),
    )  # fmt: skip
    port.tick(0.0)
    assert done == ["listen", *(["pause"] if is_full else ["leave?", "accept"]), "take back"]


def test_connection_with_a_token_keeps_its_place():
    first, second = Connected(active_s=1.0, trusted=True), Connected(active_s=2.0)
    assert replaced(first, second, tokens=NEEDED) == 1


def test_connection_is_closed_though_its_calls_can_not_be_forgotten():
    """Its socket would be ready for ever."""
    peer = Connected()
    port = FullPort(peer, fails=True)
    with pytest.raises(RuntimeError, match="a bug"):
        port.abort(peer)
    assert (peer.closed, [*port]) == (["close"], [])
    assert port.noted == [0], "and others know that it is gone"
    assert port._selector.done == [("unregister", peer.socket)]
    port.abort(peer)
    assert peer.closed == ["close"], "once"
    other = Connected(mask=0)
    port = FullPort(other)
    port.abort(other)
    assert (port._selector.done, port.noted, port.dropped) == ([], [0], [other])


def test_connection_ends_in_this_order():
    """Its peer is told, its calls are forgotten, and then another one may have its place."""
    done: list[str] = []

    def noted(name):
        return lambda *args: done.append(name)

    peer: Any = Connected(flush=noted("flush"), close=noted("close"))
    port: Any = FullPort(peer)
    peer.engine.go_away = noted("say so")
    port.forget, port.drop = noted("forget"), noted("drop")
    port._selector.unregister = noted("watch no more")
    port._acceptor.note, port._acceptor.listen = noted("note"), noted("listen")
    port.end(peer)
    assert done == ["say so", "flush", "note", "forget", "drop", "watch no more", "close", "listen"]


def test_port_that_closes_takes_nobody_before_its_connections_leave():
    done: list[str] = []
    peers = Connected(), Connected(state=State.LAST)
    port: Any = FullPort(*peers)
    port._acceptor.close = lambda: done.append("closed")
    port.dismiss = lambda peer: done.append("leaves" if peer is peers[0] else "has left")
    port.close()
    assert done == ["closed", "leaves"]


def test_peer_is_told_that_its_connection_is_over_though_its_calls_can_not_be_forgotten():
    peer: Any = Connected(end_reading=lambda: None)
    peer.engine.done = told = []
    port: Any = FullPort(peer, fails=True)
    peer.engine.go_away = lambda: told.append("gone")
    port.schedule_flush = lambda peer: told.append("to be flushed")
    with pytest.raises(RuntimeError, match="a bug"):
        port.leave(peer)
    assert told == ["to be flushed", "gone"]


# HTTP's connections


def test_connection_over_http_goes_from_request_to_request():
    engine: Any = HttpEngine()
    assert (engine.phase, engine.is_established, engine.has_grace) == (0, False, False)
    assert (engine.begin(), engine.begin()) == (1, 2)
    assert engine.streams == {1, 2}
    engine.call, engine.repeated, engine.recent = "call", "plan", "plan"
    engine.end()
    assert (engine.call, engine.repeated, engine.streams) == (None, None, set())
    assert engine.phase == 1
    engine.reader.receive(b"GET")
    engine.end()
    assert engine.phase == 4, "more was sent ahead"
    assert engine.recent == "plan"
    engine.forget()
    assert engine.recent is None


def test_answers_that_have_left_count_no_more():
    engine: Any = HttpEngine()
    engine.write(b"one")
    assert (engine.num_unsent, engine.data_to_send(), engine.num_unsent) == (3, b"one", 0)
    assert engine.data_to_send() == b""
    engine.write(b"two")
    engine.write(b"three")
    assert (engine.num_unsent, engine.data_to_send(), engine.num_unsent) == (8, b"twothree", 0)
    engine.write(b"four")
    engine.drop_unsent()
    assert (engine.num_unsent, [*engine.due], engine.data_to_send()) == (0, [], b"")
