"""Both channels over HTTP/2, for threads and for event loops, beside a scripted server."""

import asyncio
import socket
import threading
import time

import pytest
import trustme
import uvloop

from serving.client import transport
from serving.client.addresses import Address
from serving.client.credentials import Credentials
from serving.client.h2 import event_loop, session, threads
from serving.client.h2.event_loop import ReconnectingLoopChannel
from serving.client.h2.threads import Http2Connection, ReconnectingChannel
from serving.http2 import frames
from serving.http2.frames import frame, word
from serving.protocols.status import Failure, StatusCode
from serving.security.tls import Plain
from tests.support.fakes import TIMEOUT_S
from tests.support.wire import OK, peers

BRIEF_S = 0.05
"""A time that is over soon; no outcome here depends on what fits into it."""
HOUR_S = 3600.0


class Clock:
    """The channels' time: the real one, and the hours that a test has jumped."""

    def __init__(self):
        self.jumped_s = 0.0
        self.loops: list[asyncio.AbstractEventLoop] = []

    def monotonic(self):
        return time.monotonic() + self.jumped_s

    def jump(self, seconds):
        self.jumped_s += seconds
        for loop in self.loops:
            loop.call_soon_threadsafe(lambda: None)  # it looks at its timers

    def new_loop(self):
        loop = asyncio.new_event_loop()
        loop.time = self.monotonic
        self.loops.append(loop)
        return loop

    def run(self, main):
        with asyncio.Runner(loop_factory=self.new_loop) as runner:
            return runner.run(main)


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    for module in (threads, session):
        monkeypatch.setattr(module, "time", clock)
    return clock


def of_threads(*arguments):
    return ReconnectingChannel(*arguments)


async def of_a_loop(*arguments):
    return ReconnectingLoopChannel(*arguments)


def run_on_uvloop(main):
    """Run a coroutine on a loop whose clock nobody can jump."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


@pytest.fixture(params=["threads", "loop", "uvloop"])
def ask(request, clock):
    """Ask a server with one of the channels: a function of its address, a time and metadata."""

    async def exchange(make, address, timeout_s, metadata, credentials):
        host, _, port = address.rpartition(":")
        arguments = Address(host, int(port), address), credentials
        channel = make(*arguments)
        if asyncio.iscoroutine(channel):
            channel = await channel
        try:
            return await channel.exchange("/a.B/C", b"hi", timeout_s, metadata)
        finally:
            await channel.close()

    def once(address, timeout_s=TIMEOUT_S, metadata=(), credentials=NO_CREDENTIALS):
        if request.param == "loop":
            return clock.run(exchange(of_a_loop, address, timeout_s, metadata, credentials))
        if request.param == "uvloop":
            return run_on_uvloop(exchange(of_a_loop, address, timeout_s, metadata, credentials))
        try:
            exchange(of_threads, address, timeout_s, metadata, credentials).send(None)
        except StopIteration as end:
            return end.value
        raise AssertionError("it suspended")

    return once


NO_CREDENTIALS = Credentials(None, None, None, None)
PING = frame(frames.PING, 0, bytes(4), bytes(8))


def closing(peer):
    next(peer.calls())
    peer.socket.shutdown(socket.SHUT_WR)
    while peer.socket.recv(65_536):  # closed with bytes unread, it would be a reset
        pass


def going(peer):
    next(peer.calls())
    peer.socket.sendall(frame(frames.GOAWAY, 0, bytes(4), word(0) + word(0)))
    peer.socket.recv(1)


def babbling(peer):
    next(peer.calls())
    peer.socket.sendall(frame(frames.PING, 0, word(1), bytes(8)))
    peer.socket.recv(1)


def silent(peer):
    for _ in peer.calls():
        pass


@pytest.mark.parametrize(
    ("script", "text"),
    [
        (closing, "the server closed the connection"),
        (going, "the server takes no more calls on this connection"),
        (babbling, "the connection broke: PING on a wrong stream (PROTOCOL_ERROR)"),
    ],
)
def test_server_that_ends_a_connection_is_unavailable_for_its_reason(ask, script, text):
    with peers(script) as address:
        assert ask(address) == Failure(StatusCode.UNAVAILABLE, text)


def test_silent_server_is_given_up(ask, monkeypatch):
    monkeypatch.setattr(transport, "KEEPALIVE_TIME_S", BRIEF_S)
    monkeypatch.setattr(transport, "KEEPALIVE_TIMEOUT_S", BRIEF_S)

    def deaf(peer):
        next(peer.calls())
        over.wait(TIMEOUT_S)

    over = threading.Event()
    with peers(deaf) as address:
        try:
            assert ask(address) == Failure(StatusCode.UNAVAILABLE, "the server is silent")
        finally:
            over.set()


@pytest.mark.parametrize("ask", ["threads", "loop"], indirect=True)  # uvloop has its own clock
def test_server_that_answers_pings_alone_is_late(ask, clock, monkeypatch):
    monkeypatch.setattr(transport, "KEEPALIVE_TIME_S", BRIEF_S)
    monkeypatch.setattr(transport, "KEEPALIVE_TIMEOUT_S", HOUR_S / 2)

    def answer_pings(peer):
        """From the first one on, the call is late."""
        next(peer.calls())
        while data := peer.socket.recv(65_536):
            peer.http2.receive_data(data)
            if PING in data:
                clock.jump(HOUR_S)
            peer.flush()

    with peers(answer_pings) as address:
        assert ask(address, HOUR_S) == transport.LATE
    assert clock.jumped_s


def test_port_that_nobody_listens_on_has_the_systems_reason(ask):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
    expected = Failure(StatusCode.UNAVAILABLE, "can't connect: Connection refused")
    assert ask(address) == expected


@pytest.mark.parametrize("more", [(), (("x-tenant", "first"), ("x-request-id", "second"))])
def test_metadata_are_the_credentials_and_then_the_calls(ask, more):
    seen = []

    def note(peer):
        data = b""
        while b"\2hi" not in data:
            data += peer.socket.recv(65_536)
        seen.append(data)

    with peers(note) as address:
        ask(address, metadata=more, credentials=Credentials("t", None, None, None))
    (data,) = seen
    values = [b"Bearer t", *(value.encode() for _, value in more)]
    places = [data.find(each) for each in values]
    assert -1 not in places
    assert places == sorted(places)


def test_late_connection_is_the_calls_deadline(ask, tmp_path, monkeypatch):
    """A server of TLS that never answers the handshake."""
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    credentials = Credentials(None, tmp_path / "ca.pem", None, None)
    with socket.create_server(("127.0.0.1", 0)) as listener:
        address = f"127.0.0.1:{listener.getsockname()[1]}"
        late = ask(address, 2 * BRIEF_S, credentials=credentials)
        for module in (threads, event_loop):
            monkeypatch.setattr(module, "CONNECT_S", BRIEF_S)
        failed = ask(address, credentials=credentials)
    no_answer = Failure(StatusCode.UNAVAILABLE, "no answer to the attempt to connect")
    assert late in (transport.LATE, no_answer)
    assert failed == no_answer


def test_closed_channel_has_no_calls(ask):
    async def after_close(channel):
        await channel.close()
        return await channel.exchange("/a.B/C", b"", 1.0)

    async def in_a_loop():
        return await after_close(ReconnectingLoopChannel(*arguments))

    arguments = Address("127.0.0.1", 1, "127.0.0.1:1"), NO_CREDENTIALS
    with pytest.raises(StopIteration) as end:
        after_close(ReconnectingChannel(*arguments)).send(None)
    assert end.value.value == transport.CUT_OFF
    assert asyncio.run(in_a_loop()) == transport.CUT_OFF


async def closed(channel):
    """Close a channel, and let the loop close its sockets."""
    await channel.close()
    await asyncio.sleep(0)


def test_calls_of_a_loop_end_at_their_own_deadlines(clock, monkeypatch):
    """The connection and its later calls go on."""
    monkeypatch.setattr(transport, "KEEPALIVE_TIME_S", 99 * HOUR_S)

    def answer_the_last(peer):
        calls = peer.calls()
        streams = [next(calls)[0] for _ in range(3)]
        clock.jump(HOUR_S)
        over.wait(TIMEOUT_S)
        peer.answer(streams[1], b"re")
        peer.socket.recv(65_536)

    over, ended = threading.Event(), []
    timeouts = {"late": 1.5 * HOUR_S, "answered": 9 * HOUR_S, "early": 0.5 * HOUR_S}

    async def exchange(channel, name):
        outcome = await channel.exchange("/a.B/C", b"hi", timeouts[name])
        ended.append(name)
        if name == "early":
            clock.jump(HOUR_S)
        elif name == "late":
            over.set()
        return outcome

    async def all_of_them(address):
        host, _, port = address.rpartition(":")
        channel = ReconnectingLoopChannel(Address(host, int(port), address), NO_CREDENTIALS)
        outcomes = await asyncio.gather(*(exchange(channel, name) for name in timeouts))
        await closed(channel)
        return outcomes

    with peers(answer_the_last) as address:
        outcomes = clock.run(all_of_them(address))
    assert outcomes == [transport.LATE, b"re", transport.LATE]
    assert ended == ["early", "late", "answered"]


async def test_loop_that_closes_its_channel_cuts_calls_off():
    with peers(silent) as address:
        host, _, port = address.rpartition(":")
        channel = ReconnectingLoopChannel(Address(host, int(port), address), NO_CREDENTIALS)
        call = await channel.send("/a.B/C", b"hi", TIMEOUT_S)
        await closed(channel)
        assert await call.result() == transport.CUT_OFF
        call.cancel()  # it has ended
        assert await call.result() == transport.CUT_OFF


async def test_task_that_is_cancelled_resets_its_call_alone():
    def answer_the_second(peer):
        calls = peer.calls()
        next(calls)
        has_come.set()
        peer.answer(next(calls)[0], b"re")
        peer.socket.recv(65_536)

    has_come = threading.Event()
    with peers(answer_the_second) as address:
        host, _, port = address.rpartition(":")
        channel = ReconnectingLoopChannel(Address(host, int(port), address), NO_CREDENTIALS)
        task = asyncio.create_task(channel.exchange("/a.B/C", b"hi", TIMEOUT_S))
        await asyncio.to_thread(has_come.wait, TIMEOUT_S)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert await channel.exchange("/a.B/C", b"hi", TIMEOUT_S) == b"re"
        await closed(channel)


def test_threads_share_an_attempt_to_connect_and_its_failure(monkeypatch):
    begun, goes_on, attempts = threading.Event(), threading.Event(), []

    def refused(*_):
        attempts.append(1)
        begun.set()
        goes_on.wait(TIMEOUT_S)
        raise ConnectionRefusedError(111, "refused")

    def exchange():
        try:
            channel.exchange("/a.B/C", b"", TIMEOUT_S).send(None)
        except StopIteration as end:
            outcomes.append(end.value)

    monkeypatch.setattr(threads, "connect", refused)
    channel = ReconnectingChannel(Address("127.0.0.1", 1, "127.0.0.1:1"), NO_CREDENTIALS)
    outcomes: list[object] = []
    asking = [threading.Thread(target=exchange) for _ in range(3)]
    asking[0].start()
    begun.wait(TIMEOUT_S)
    for each in asking[1:]:
        each.start()
    while sum(each.is_alive() for each in asking) < 3:
        pass
    late = ReconnectingChannel.exchange(channel, "/a.B/C", b"", 0.0)
    with pytest.raises(StopIteration) as end:
        late.send(None)
    assert end.value.value == transport.LATE
    goes_on.set()
    for each in asking:
        each.join(TIMEOUT_S)
    refusal = Failure(StatusCode.UNAVAILABLE, "can't connect: Connection refused")
    assert outcomes == [refusal] * 3
    assert 1 <= len(attempts) <= 3


def test_server_that_leaves_a_handshake_is_named(tmp_path):
    trustme.CA().cert_pem.write_to_path(tmp_path / "ca.pem")
    credentials = Credentials(None, tmp_path / "ca.pem", None, None)

    def leave(peer):
        peer.socket.recv(1)
        peer.socket.shutdown(socket.SHUT_WR)
        peer.socket.recv(65_536)

    with peers(leave, speaks_first=False) as address:
        host, _, port = address.rpartition(":")
        channel = ReconnectingChannel(Address(host, int(port), address), credentials)
        with pytest.raises(StopIteration) as end:
            channel.exchange("/a.B/C", b"", TIMEOUT_S).send(None)
    text = "can't connect: the server closed the connection during TLS's start"
    assert end.value.value == Failure(StatusCode.UNAVAILABLE, text)


# A connection of threads on a pair of sockets


@pytest.fixture
def pair():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        yield Http2Connection(ours, session.Session("x:1", "http"), Plain()), theirs


def test_idle_connection_that_the_server_closed_is_not_usable(pair, monkeypatch):
    connection, server = pair
    assert connection.is_usable()
    server.close()
    assert connection.is_usable()  # not idle for long enough to look
    monkeypatch.setattr(threads, "_IDLE_S", 0.0)
    assert not connection.is_usable()


def test_idle_connection_of_a_server_that_goes_is_not_usable(pair, monkeypatch):
    connection, server = pair
    monkeypatch.setattr(threads, "_IDLE_S", -1.0)
    assert connection.is_usable()
    server.sendall(frame(frames.SETTINGS, 0, bytes(4)))
    assert connection.is_usable()
    server.sendall(frame(frames.GOAWAY, 0, bytes(4), bytes(8)))
    assert not connection.is_usable()


@pytest.mark.parametrize("limit", ["deadline", "stalled"])
def test_server_that_does_not_read_ends_the_connection(pair, limit, monkeypatch):
    connection, server = pair
    window = frame(frames.WINDOW_UPDATE, 0, bytes(4), word(1 << 30))
    server.sendall(frame(frames.SETTINGS, 0, bytes(4), b"\0\4" + word(1 << 30)) + window)
    monkeypatch.setattr(threads, "_IDLE_S", -1.0)
    assert connection.is_usable()  # it has read the windows
    stalled_s, timeout_s = (TIMEOUT_S, BRIEF_S) if limit == "deadline" else (BRIEF_S, TIMEOUT_S)
    monkeypatch.setattr(threads, "_STALLED_S", stalled_s)
    call = connection.start("/a.B/C", bytes(8 << 20), (), time.monotonic() + timeout_s)
    assert call.outcome == Failure(StatusCode.UNAVAILABLE, "can't send: the server does not read")
    assert not connection.is_usable()


def test_closed_connection_ends_its_calls_and_later_ones(pair):
    connection, server = pair
    late_s = time.monotonic() + TIMEOUT_S
    call = connection.start("/a.B/C", b"hi", (), late_s)
    connection.close(transport.CUT_OFF)
    assert call.outcome == transport.CUT_OFF
    assert connection.start("/a.B/C", b"hi", (), late_s).outcome == transport.CUT_OFF
    while server.recv(65_536):  # the server sees the end
        pass


def test_call_that_has_ended_is_not_reset(pair):
    connection, server = pair
    call = connection.start("/a.B/C", b"hi", (), time.monotonic() + BRIEF_S)
    connection.wait(call)
    assert call.outcome == transport.LATE
    sent = server.recv(65_536)
    reset = frame(frames.RST_STREAM, 0, call.stream, word(8))
    assert sent.count(reset) == 1
    call.cancel()
    server.setblocking(False)
    with pytest.raises(BlockingIOError):
        server.recv(1)


@pytest.mark.parametrize(("left_s", "least", "most"), [(-5.0, 0, 0), (0.5, 0, 0.5), (60.0, 1, 1)])
def test_thread_beside_a_reader_sleeps_until_its_deadline(pair, left_s, least, most):
    """Or for a second, to look whether somebody still reads."""

    class Lock:
        def acquire(self, timeout):
            slept.append(timeout)
            call.outcome = call.outcome or transport.CUT_OFF

    connection, _ = pair
    slept: list[float] = []
    call = connection.start("/a.B/C", b"hi", (), time.monotonic() + left_s)
    with connection._lock:
        call.woken, connection._reader = Lock(), object()
    connection.wait(call)
    (found,) = slept
    assert least <= found <= most


def sleeping(connection, num_calls):
    """Begin calls whose threads sleep while somebody else reads; `woken` notes which wake."""
    woken: list[int] = []

    class Lock:
        def __init__(self, number):
            self.number = number

        def release(self):
            woken.append(self.number)

    late_s = time.monotonic() + TIMEOUT_S
    calls = [connection.start("/a.B/C", b"hi", (), late_s) for _ in range(num_calls)]
    for number, call in enumerate(calls):
        call.woken = Lock(number)
        with connection._lock:
            connection._waiting[call] = None
    return calls, woken


def test_reader_that_leaves_wakes_the_thread_that_has_slept_longest(pair):
    connection, _ = pair
    calls, woken = sleeping(connection, 2)
    with connection._lock:
        connection._reader = reader = object()
    connection._stop_reading(reader)
    assert connection._reader is None
    assert woken == [0]
    with connection._lock:
        assert list(connection._waiting) == calls[1:]


def test_thread_that_did_not_read_leaves_the_reader_and_the_sleepers(pair):
    """Such as one that gives its call up, or looks at an idle connection."""
    connection, _ = pair
    calls, woken = sleeping(connection, 2)
    with connection._lock:
        connection._reader = reader = object()
    connection._stop_reading(calls[0])
    assert connection._reader is reader
    assert woken == []
    with connection._lock:
        assert list(connection._waiting) == calls


def test_reader_that_leaves_where_nobody_sleeps_leaves_reading_free(pair):
    connection, server = pair
    with connection._lock:
        connection._reader = reader = object()
    connection._stop_reading(reader)
    assert connection._reader is None
    call = connection.start("/a.B/C", b"hi", (), time.monotonic() + TIMEOUT_S)
    server.shutdown(socket.SHUT_WR)
    assert connection.wait(call) == Failure(
        StatusCode.UNAVAILABLE, "the server closed the connection"
    )


def test_answer_of_one_thread_wakes_the_others(pair, monkeypatch):
    """The one that reads has its answer, then another one has to read."""
    connection, server = pair
    monkeypatch.setattr(threads, "_LOOK_S", 3600.0)
    late_s = time.monotonic() + 3600
    calls = [connection.start("/a.B/C", b"hi", (), late_s) for _ in range(3)]
    waiting = [
        threading.Thread(target=connection.wait, args=(call,), daemon=True) for call in calls
    ]
    for each in waiting:
        each.start()
    fields = b"".join(
        b"\0" + bytes((len(name),)) + name + bytes((len(value),)) + value for name, value in OK
    )
    server.sendall(frame(frames.SETTINGS, 0, bytes(4)))
    for call in calls:
        server.sendall(
            frame(frames.HEADERS, frames.END_HEADERS, call.stream, b"\x88")
            + frame(frames.DATA, 0, call.stream, b"\0\0\0\0\2ok")
            + frame(frames.HEADERS, frames.END_HEADERS | 1, call.stream, fields)
        )
        threading.Event().wait(0)
    for each in waiting:
        each.join(TIMEOUT_S)
    assert [call.outcome for call in calls] == [b"ok"] * 3
