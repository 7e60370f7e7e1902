"""A port's parts alone: who is accepted, swept, cut off and let in, at each of their bounds."""

import errno
import math
import socket
from types import SimpleNamespace
from typing import Any

import pytest

from serving.config import ServerConfig
from serving.errors import Unavailable
from serving.http2.headers import HeaderReader
from serving.http2.hpack import encode_literally
from serving.http2.limits import Limits
from serving.processes.pool import JobLimits
from serving.protocols.method import BatchedUnary, Unary
from serving.protocols.status import UNKNOWN_METHOD
from serving.system import listening
from serving.transports import grpc_headers
from serving.transports.accepting import Acceptor
from serving.transports.calls import LoopCalls
from serving.transports.draining import Drain
from serving.transports.grpc_headers import (
    BAD_TIMEOUT,
    COUNTING,
    NO_TRAILERS,
    NOT_GRPC,
    NOT_POST,
    UNAUTHENTICATED,
    HeaderParser,
    read_timeout_s,
)
from serving.transports.h2_server import H2Server
from serving.transports.peer import State, host_of, peer_of, public_headers
from serving.transports.pools import decoders
from serving.transports.port_limits import PortLimits
from serving.transports.sweeping import sweep

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
