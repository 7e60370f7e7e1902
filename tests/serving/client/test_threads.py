"""A connection that threads share: its session is used by one of them at a time."""

import errno
import select
import socket
import struct
import threading
import time
from types import SimpleNamespace
from typing import Any

import pytest

from serving.client import transport
from serving.client.addresses import Address
from serving.client.credentials import Credentials
from serving.client.h2 import threads
from serving.client.h2.session import Session
from serving.client.h2.threads import Http2Connection, ThreadStream
from serving.http2 import frames
from serving.http2.frames import frame
from serving.protocols.status import Failure, StatusCode
from serving.security.tls import Plain
from tests.serving.client.test_session import HELLO, OK, data, headers, of_call
from tests.support.guards import OwnedLock, is_held

GONE = Failure(StatusCode.UNAVAILABLE, "gone")
USES = {"start", "cancel", "receive", "take_message", "is_alive", "fail_all", "data_to_send"}
"""What a session does; the rest are facts of it that may be old."""


class Watched:
    """A session that is used with the lock alone."""

    def __init__(self, lock):
        self._lock, self._session = lock, Session("x:1", "http")
        self.used = []

    def __getattr__(self, name):
        if name in USES:
            assert is_held(self._lock), f"{name} without the lock"
            self.used.append(name)
        return getattr(self._session, name)


@pytest.fixture
def lock():
    return OwnedLock(threading.Lock())


@pytest.fixture
def session(lock):
    return Watched(lock)


@pytest.fixture
def ends():
    """The other end, which the test writes."""
    ours, its = socket.socketpair()
    yield ours, its
    its.close()


@pytest.fixture
def connection(lock, session, ends, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(threads, "allocate_lock", lambda: lock)
        return Http2Connection(ends[0], session, Plain())


def started(connection, timeout_s=20.0, **kind):
    return connection.start("/a.B/C", b"hi", (), time.monotonic() + timeout_s, **kind)


def test_calls_that_are_answered(connection, session, ends):
    call, other = started(connection), started(connection)
    ends[1].sendall(HELLO + of_call(call, headers(), data(b"\0\0\0\0\2hi"), OK))
    assert connection.wait(call) == b"hi"
    other.cancel()
    assert {*session.used} == {"start", "data_to_send", "receive", "cancel"}
    assert connection.is_usable()


def test_server_that_pings_has_its_answer_with_the_bytes_that_it_came_in(connection, ends):
    ping = frame(frames.PING, 0, bytes(4), b"12345678")
    call = started(connection)
    ends[1].sendall(HELLO + ping + of_call(call, headers(), data(b"\0\0\0\0\2hi"), OK))
    assert connection.wait(call) == b"hi"
    ends[1].setblocking(False)
    assert frame(frames.PING, frames.ACK, bytes(4), b"12345678") in ends[1].recv(65_536)


def test_thread_sleeps_a_second_at_most_and_sets_that_once(connection, ends):
    """Each time would be a system call more, as would be more than one a second."""
    limits: list[Any] = []

    class Silent:
        """A socket on which nothing comes."""

        def setsockopt(self, level, option, timeval):
            assert (level, option) == (socket.SOL_SOCKET, socket.SO_RCVTIMEO)
            seconds, microseconds = struct.unpack("ll", timeval)
            limits.append(seconds + microseconds / 1e6)

        def recv(self, size, flags):
            raise BlockingIOError

        def close(self):
            """Called once nobody has the connection."""

    connection._socket = Silent()
    for timeout_s in (20.0, 5.0, 1.0, 0.25, 0.25, 20.0):
        connection._read(timeout_s)
    assert limits == [1.0, 0.25, 1.0]
    ends[0].close()


def test_streams_go_on_message_by_message(connection, session, ends):
    stream = started(connection, kind=ThreadStream)
    parts = [data(b"\0\0\0\0\1" + text) for text in (b"a", b"b")]
    ends[1].sendall(HELLO + of_call(stream, headers(), *parts, OK))
    found = []
    for _ in range(2):
        found.append(connection.wait(stream))
        connection.advance(stream)
    assert found == [b"a", b"b"]
    assert isinstance(connection.wait(stream), Failure)
    assert "take_message" in session.used


def test_message_of_a_stream_wakes_its_thread_though_no_end_has_come(connection, ends):
    call, stream = started(connection), started(connection, kind=ThreadStream)
    with connection._lock:
        connection._waiting[call] = connection._waiting[stream] = None
    ends[1].sendall(HELLO + of_call(stream, headers(), data(b"\0\0\0\0\1a")))
    connection._read(1.0)
    assert stream.outcome == b"a"
    assert stream.woken.acquire(blocking=False)
    ends[1].sendall(of_call(call, headers(), data(b"\0\0\0\0\2hi"), OK))
    connection._read(1.0)
    assert call.outcome == b"hi"
    assert call.woken.acquire(blocking=False)


def test_stream_that_is_cancelled_is_reset(connection, session, ends):
    stream = started(connection, kind=ThreadStream)
    ends[1].recv(65_536)
    stream.cancel()
    assert ends[1].recv(65_536)[3:9] == bytes((frames.RST_STREAM, 0)) + stream.stream
    assert not session.calls


def test_connection_that_ends_wakes_the_threads_that_sleep(connection):
    call = started(connection)
    with connection._lock:
        connection._waiting[call] = None
    connection.close(GONE)
    assert call.woken.acquire(blocking=False)
    assert call.outcome == GONE


def test_call_that_a_lost_connection_does_not_know_has_its_reason(connection):
    connection.close(GONE)
    call = threads.ThreadCall(time.monotonic() + 20.0, connection)
    assert connection.wait(call) == GONE


def test_bytes_of_a_thread_are_sent_by_the_one_that_sends_already(connection, ends):
    """Two at once would mix their frames."""
    ends[1].setblocking(False)
    ends[1].recv(65_536)
    with connection._lock:
        connection._writer = -1
    call = started(connection)
    with pytest.raises(BlockingIOError):
        ends[1].recv(65_536)
    with connection._lock:
        connection._writer = None
    call.cancel()
    sent = ends[1].recv(65_536)
    assert sent.index(b"\0\0\0\0\2hi") < sent.index(bytes((frames.RST_STREAM, 0)) + call.stream)


def test_late_call_is_forgotten(connection, session):
    call = started(connection, timeout_s=0.0)
    assert connection.wait(call) is transport.LATE
    assert "cancel" in session.used


@pytest.mark.parametrize("end", ["closed here", "closed there", "broken"])
def test_connection_that_ends_ends_its_calls(end, connection, session, ends):
    calls = [started(connection), started(connection)]
    if end == "closed here":
        connection.close(GONE)
    elif end == "closed there":
        ends[1].shutdown(socket.SHUT_WR)
    else:
        ends[1].sendall(frame(frames.PING, 0, b"12345"))
    failures = [connection.wait(call) for call in calls]
    assert failures[0] == failures[1]
    assert failures[0].code is StatusCode.UNAVAILABLE
    assert not connection.is_usable()
    assert connection.wait(started(connection)).code is StatusCode.UNAVAILABLE
    assert session.used.count("fail_all") == 1


def test_silent_server_is_asked_and_given_up(connection, session, monkeypatch):
    call = started(connection)
    monkeypatch.setattr(Session, "is_alive", lambda self: False)
    monkeypatch.setattr(session._session.keepalive, "due_s", lambda: 0.0)
    assert connection.wait(call) == Failure(StatusCode.UNAVAILABLE, "the server is silent")
    assert "is_alive" in session.used


def test_idle_connection_is_read_before_it_is_used(connection, ends, monkeypatch):
    monkeypatch.setattr(threads, "_IDLE_S", 0.0)
    assert connection.is_usable()
    ends[1].shutdown(socket.SHUT_WR)
    assert not connection.is_usable()


def test_many_threads_are_answered_by_one_reader(connection, session, ends):
    """Each by its own answer, in any order, and the session never by two at once."""
    outcomes = {}

    def call(number):
        one = started(connection)
        calls.append((number, one))
        ready.wait()
        outcomes[number] = connection.wait(one)

    calls, ready = [], threading.Barrier(9, timeout=20.0)
    workers = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for worker in workers:
        worker.start()
    ready.wait()
    ends[1].sendall(HELLO)
    for number, one in reversed(calls):
        message = data(b"\0\0\0\0\1" + b"%d" % number)
        ends[1].sendall(of_call(one, headers(), message, OK))
    for worker in workers:
        worker.join(20.0)
    assert outcomes == {number: b"%d" % number for number in range(8)}
    assert not session.calls


@pytest.mark.parametrize("reads", ["a call", "an idle connection"])
def test_reader_that_is_interrupted_leaves_reading_free(reads, connection, monkeypatch):
    """Else no thread would read the answers of the others."""

    def interrupt(self, timeout_s):
        raise KeyboardInterrupt

    call, other = started(connection), started(connection)
    monkeypatch.setattr(Http2Connection, "_read", interrupt)
    if reads == "a call":
        with connection._lock:
            connection._reader = call
        with pytest.raises(KeyboardInterrupt):
            connection._read_until(call)
    else:
        call.cancel()
        other.cancel()
        monkeypatch.setattr(threads, "_IDLE_S", -1.0)
        with pytest.raises(KeyboardInterrupt):
            connection.is_usable()
    assert connection._reader is None


def test_thread_that_is_interrupted_wakes_the_next_whose_call_has_ended(connection, monkeypatch):
    """Each that wakes up wakes the next: a chain that ends would leave the others asleep."""
    call, other = started(connection), started(connection)
    with connection._lock:
        connection._waiting[other] = None
        other.outcome = b"hi"
        connection.wake(other)

    def interrupt(self, call):
        raise KeyboardInterrupt

    monkeypatch.setattr(Http2Connection, "_read_until", interrupt)
    with pytest.raises(KeyboardInterrupt):
        connection.wait(call)
    assert other.woken.acquire(blocking=False)


def test_attempt_to_connect_has_seconds_and_never_more_than_the_call(monkeypatch):
    """Not minutes: another server may answer; nor milliseconds: some are far away."""
    given = []

    def connect(address, timeout_s):
        given.append(timeout_s)
        raise ConnectionRefusedError

    monkeypatch.setattr(socket, "create_connection", connect)
    for left_s in (3600.0, 0.5):
        with pytest.raises(ConnectionRefusedError):
            threads.connect(
                Address("a", 1, "a:1"),
                Credentials(None, None, None, None),
                time.monotonic() + left_s,
            )
    assert 2 <= given[0] <= 20
    assert 0 < given[1] <= 0.5


def test_alarm_while_bytes_are_read_ends_all_calls(connection, session, ends, monkeypatch):
    """The bytes may be lost: no call may wait for them."""

    def ring(self, data):
        raise TimeoutError("the program's own")

    call, other = started(connection), started(connection)
    monkeypatch.setattr(Session, "receive", ring)
    ends[1].sendall(HELLO)
    with pytest.raises(TimeoutError, match=r"^the program's own$"):
        connection.wait(call)
    assert other.outcome == Failure(
        StatusCode.UNAVAILABLE, "the connection broke: the program's own"
    )
    assert not connection.is_usable()


class Alarmed:
    """A socket whose calls a signal's handler ends by an error."""

    def __init__(self, error):
        self.error, self.is_shut = error, False

    def recv(self, *_):
        raise self.error

    send = recv

    def setsockopt(self, *_):
        """Change nothing."""

    def shutdown(self, how):
        self.is_shut = True

    def close(self):
        """Called once nobody has the connection."""


ALARMS = [TimeoutError("the program's own"), KeyboardInterrupt("Ctrl-C")]
BROKEN = ConnectionResetError(104, "reset")


@pytest.mark.parametrize("error", [*ALARMS, BROKEN], ids=lambda each: type(each).__name__)
@pytest.mark.parametrize("step", ["reads", "writes"])
def test_error_in_the_middle_of_bytes_ends_all_calls(step, error, connection, session, ends):
    """And it goes on to who has made it, unless it is the connection's own."""
    other = started(connection)
    connection._socket = sock = Alarmed(error)

    def work():
        if step == "reads":
            connection._read(1.0)
        else:
            started(connection)

    if error is BROKEN:
        work()
    else:
        with pytest.raises(type(error)):
            work()
    text = {"reads": str(error), "writes": f"can't send: {error}"}[step]
    if step == "reads" and isinstance(error, KeyboardInterrupt):
        text = threads._INTERRUPTED
    assert other.outcome == Failure(StatusCode.UNAVAILABLE, text)
    assert (sock.is_shut, connection._writer, connection._is_lost) == (True, None, True)
    assert session.used.count("fail_all") == 1
    ends[0].close()


@pytest.mark.parametrize(
    ("left_s", "error", "number"),
    [(-1.0, TimeoutError(), errno.ETIMEDOUT), (60.0, TimeoutError(), None),
     (-1.0, ConnectionResetError(), None), (-1.0, KeyboardInterrupt(), None)],
)  # fmt: skip
def test_socket_is_closed_where_the_handshake_fails(left_s, error, number, monkeypatch):
    done = []

    def shake_hands(sock, context, host, until_s):
        raise error

    sock = SimpleNamespace(setsockopt=lambda *args: done.append(args),
                           close=lambda: done.append("closed"))  # fmt: skip
    monkeypatch.setattr(socket, "create_connection", lambda *_: sock)
    monkeypatch.setattr(threads, "_shake_hands", shake_hands)
    credentials: Any = SimpleNamespace(tls_context=lambda: "context")
    with pytest.raises(type(error)) as caught:
        threads.connect(Address("a", 1, "a:1"), credentials, time.monotonic() + left_s)
    assert done == [(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1), "closed"]
    assert getattr(caught.value, "errno", None) == number
    assert (caught.value is error) == (number is None)


def channel_of():
    """A channel whose attempts to connect are the test's."""
    return threads.ReconnectingChannel(Address("a", 1, "a:1"), Credentials(None, None, None, None))


def test_thread_that_connects_lets_others_try_though_it_is_interrupted(monkeypatch):
    def connect(*_):
        raise errors.pop(0)

    monkeypatch.setattr(threads, "connect", connect)
    channel = channel_of()
    errors: list[BaseException] = [KeyboardInterrupt(), TimeoutError("own"), OSError(5, "x")]
    for error in errors[:2]:
        with pytest.raises(type(error)):
            channel._connect(time.monotonic() + 20.0)
    assert channel._connect(time.monotonic() + 20.0) == Failure(
        StatusCode.UNAVAILABLE, "can't connect: Input/output error"
    )
    assert not channel._connecting.locked()


def test_thread_that_waited_takes_the_connection_though_an_attempt_failed_before_it(monkeypatch):
    channel = channel_of()
    connected: Any = SimpleNamespace(is_usable=lambda: True)

    class Lock:
        """While it is waited for, an attempt of one thread fails, and the next one's does not."""

        def acquire(self, timeout):
            channel._num_failed += 1
            channel._connection = connected
            return True

        def release(self):
            """Nobody else waits."""

    monkeypatch.setattr(channel, "_connecting", Lock())
    assert channel._connect(time.monotonic() + 20.0) is connected


def test_threads_share_one_attempt_and_its_failure(monkeypatch):
    """Those that have waited for it: each by itself would wait for seconds once more."""
    attempts = []

    def connect(*_):
        attempts.append(1)
        raise OSError(5, "x")

    monkeypatch.setattr(threads, "connect", connect)
    channel = channel_of()
    before: list[Any] = []

    class Lock:
        """While the first thread waits for it, a second one makes an attempt."""

        def acquire(self, timeout):
            if not before:
                before.append("waits")
                before.append(channel._connect(time.monotonic() + 20.0))
            return True

        def release(self):
            """Nobody else waits."""

    monkeypatch.setattr(channel, "_connecting", Lock())
    found = channel._connect(time.monotonic() + 20.0)
    assert found == Failure(StatusCode.UNAVAILABLE, "can't connect: Input/output error")
    assert (before[1:], len(attempts)) == ([found], 1)
    channel._connect(time.monotonic() + 20.0)
    assert len(attempts) == 2, "who comes later tries again"


def test_socket_is_closed_once_nobody_has_the_connection():
    ours, its = socket.socketpair()
    connection = Http2Connection(ours, Session("x:1", "http"), Plain())
    assert ours.fileno() >= 0
    del connection
    with its:
        assert ours.fileno() == -1


def test_server_has_seconds_to_read_a_request_and_never_more_than_the_call(
    connection, ends, monkeypatch
):
    polls = []

    class Poll:
        def register(self, sock, kinds):
            assert kinds == select.POLLOUT

        def poll(self, timeout_ms):
            polls.append(timeout_ms)
            return []

    class Full:
        def send(self, data, flags):
            raise BlockingIOError

        def close(self):
            """Called once nobody has the connection."""

    connection._socket = Full()
    monkeypatch.setattr(select, "poll", Poll)
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: 100.0))
    for until_s in (3700.0, 100.5, 100.0):
        with pytest.raises(BrokenPipeError, match=r"^the server does not read$"):
            connection._send_part(b"x", until_s)
    assert polls == [2751.0, 501.0], "as long as a silent one is waited for"
    ends[0].close()


class Handshake:
    """A side of TLS that needs two flights of the server's."""

    def __init__(self, context, host):
        self.given, self.received = (context, host), []
        self.flights = [b"hello", b"certificate"]

    def shake_hands(self, received):
        self.received.append(received)
        return not self.flights

    def encrypt(self, data):
        assert data == b""
        return self.flights.pop(0)


@pytest.mark.parametrize(("left_s", "timeout_s"), [(3.0, 3.0), (-1.0, 0.001)])
def test_hands_are_shaken_within_the_time_of_the_attempt(left_s, timeout_s, monkeypatch):
    done, answers = [], [b"their hello", b"their end"]

    def note(name, found=None):
        def call(*args):
            done.append((name, *args))
            return answers.pop(0) if found else None

        return call

    sock: Any = SimpleNamespace(
        sendall=note("send"), settimeout=note("timeout"), recv=note("receive", found=True)
    )
    monkeypatch.setattr(threads, "Tls", Handshake)
    monkeypatch.setattr(threads, "time", SimpleNamespace(monotonic=lambda: 100.0))
    context: Any = "context"
    tls: Any = threads._shake_hands(sock, context, "a.example", 100.0 + left_s)
    assert tls.given == ("context", "a.example")
    assert tls.received == [b"", b"their hello", b"their end"]
    waits = [("timeout", timeout_s), ("receive", 65_536)]
    assert done == [("send", b"hello"), *waits, ("send", b"certificate"), *waits]


def test_bytes_that_find_no_room_are_sent_once_there_is_some(connection, ends):
    tries, sent = [], []

    class Full:
        """A socket whose buffer is full at first."""

        def fileno(self):
            return ends[0].fileno()

        def send(self, data, flags):
            tries.append(flags)
            if len(tries) == 1:
                raise BlockingIOError
            sent.append(bytes(data[:7]))
            return len(sent[-1])

        def close(self):
            """Called once nobody has the connection."""

    connection._socket = Full()
    call = started(connection)
    assert call.outcome is None
    assert {*tries} == {socket.MSG_DONTWAIT}
    assert b"\0\0\0\0\2hi" in b"".join(sent)
    ends[0].close()
