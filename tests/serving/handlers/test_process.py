"""The server's end of a handler's process, with a process and a socket that the test plays."""

import io
import logging
import selectors
import socket
import threading
from collections import deque
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.errors import ConfigurationError, Unavailable
from serving.handlers import frames, process
from serving.handlers.loading import HandlerSource
from serving.handlers.process import HandlerProcess, Program, _log_lines, _Running, start
from serving.handlers.signature import HandlerSignature
from serving.processes.end import End
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import wait_until

READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
SIGNATURE = HandlerSignature(name="H", inputs=None, outputs=None, methods=("postprocess",))


def encoded(**fields):
    return b"".join(map(bytes, frames.encode(fields)))


class Socket:
    """A socket whose room, and whose data, the test has."""

    def __init__(self):
        self.sent: list[bytes] = []
        self.room: float = float("inf")
        """Bytes that `send` takes before it would block; below 0 the other side is gone."""
        self.comes: deque[bytes] = deque()
        """What `recv_into` gets, b"" for the end."""
        self.done: list[object] = []

    def setblocking(self, is_blocking):
        self.done.append(("blocking", is_blocking))

    def send(self, data):
        if self.room < 0:
            raise BrokenPipeError
        taken = bytes(data[: int(min(self.room, len(data)))])
        if not taken:
            raise BlockingIOError
        self.room -= len(taken)
        self.sent.append(taken)
        return len(taken)

    def recv_into(self, buffer, number=0, flags=0):
        if not self.comes:
            raise BlockingIOError
        data = self.comes.popleft()
        buffer[: len(data)] = data
        return len(data)

    def shutdown(self, how):
        self.done.append(("shutdown", how))

    def close(self):
        self.done.append("closed")


class Played:
    """A process, and all that happens around it."""

    def __init__(self):
        self.socket, self.events = Socket(), []
        self.end_waits: list[float] = []
        self.ended = threading.Event()
        child = SimpleNamespace(channel=self.socket, pid=7, end=self._end, kill=self._kill)
        self.notify: Any = None
        running: Any = SimpleNamespace(child=child, memory_bytes=99, notify=self._notify)
        files = [Path("words.py")]
        self.process = HandlerProcess(running, SIGNATURE, files, 0.5)
        self.watched: list[int] = []
        self.posted: list[Any] = []
        owner: Any = SimpleNamespace(watch=self._watch, post=self.posted.append)
        self.process.attach(owner, self.take, lambda how: self.events.append(("ended", how)))

    def _notify(self, function):
        self.notify = function

    def _kill(self):
        assert "closed" not in self.socket.done, "it would end by itself, and say so"
        self.events.append("killed")

    def _end(self, timeout_s):
        self.end_waits.append(timeout_s)
        self.ended.set()
        return End(3)

    def _watch(self, sock, mask, watcher):
        assert (sock, watcher) == (self.socket, self.process)
        self.watched.append(mask)

    def take(self, frame):
        self.events.append(frame.fields["kind"])

    def accept(self, *comes):
        self.socket.comes.extend(comes)
        self.process.accept(0.0, 0.0)

    def reaped(self):
        """Wait for its end, and do what was posted then."""
        assert self.ended.wait(TIMEOUT_S)
        wait_until(lambda: not any(each.name == "handler-end" for each in threading.enumerate()))
        for task in self.posted:
            task()
        self.posted.clear()


@pytest.fixture
def played():
    return Played()


def test_process_is_what_its_start_found(played):
    own = played.process
    assert (own.signature, own.files, own.start_s) == (SIGNATURE, [Path("words.py")], 0.5)
    assert (own.pid, own.memory_bytes) == (7, 99)
    assert played.socket.done == [("blocking", False)]
    assert played.watched == [READ]


def test_short_frame_is_one_piece_and_a_long_one_is_not_copied(played):
    played.process.send({"kind": "job"}, [np.zeros(100, np.uint8)])
    assert len(played.socket.sent) == 1
    most = np.zeros(frames.FEW_BYTES, np.uint8)
    played.process.send({"kind": "job"}, [most])
    assert [len(each) for each in played.socket.sent[2:]] == [frames.FEW_BYTES]
    assert frames.FEW_BYTES == 65_536
    assert played.watched == [READ]


def test_frames_that_find_no_room_are_sent_once_there_is_some_and_in_their_order(played):
    first, second, third = (encoded(kind="job", job=number) for number in (1, 2, 3))
    played.socket.room = 3
    played.process.send({"kind": "job", "job": 1})
    assert played.watched == [READ, READ | WRITE]
    played.process.send({"kind": "job", "job": 2})
    assert b"".join(played.socket.sent) == first[:3], "it waits behind the first"
    played.socket.room = len(first)
    played.accept()
    assert played.watched == [READ, READ | WRITE], "as much is left as there was room for"
    played.socket.room = float("inf")
    played.accept()
    assert b"".join(played.socket.sent) == first + second
    assert played.watched == [READ, READ | WRITE, READ]
    played.process.send({"kind": "job", "job": 3})
    assert b"".join(played.socket.sent) == first + second + third


def test_process_that_is_gone_is_asked_for_no_room_and_its_end_is_reported(played):
    """Else the loop would find its socket ready to be written to, round after round."""
    played.socket.room = -1
    played.process.send({"kind": "job"})
    assert played.watched == [READ]
    played.socket.room = float("inf")
    played.accept(encoded(kind="done"), b"")
    assert played.socket.sent == [], "nobody reads the rest"
    played.process.accept(0.0, 0.0)
    played.reaped()
    assert played.events == ["done", ("ended", "exit code 3")]
    assert played.end_waits == [2.0]
    assert played.watched == [READ, 0]
    assert played.socket.done[-1] == "closed"
    played.process.send({"kind": "job"})
    played.accept(encoded(kind="done"))
    played.process.close()
    assert (played.socket.sent, len(played.events), played.end_waits) == ([], 2, [2.0])


@pytest.mark.parametrize("how", ["nonsense", "a bug"])
def test_process_that_says_nonsense_is_killed_and_so_is_one_whose_frame_we_can_not_take(
    how, played, caplog
):
    def fail(frame):
        raise RuntimeError("ours")

    if how == "a bug":
        played.process.attach(played.process._owner, fail, played.process._on_end)
    played.accept(b"\xff" * 64 if how == "nonsense" else encoded(kind="done"))
    played.reaped()
    assert played.events == ["killed", ("ended", "exit code 3")]
    (line,) = caplog.messages
    assert line.startswith("a handler's process is ended")
    assert ("a frame is too long" in line) == (how == "nonsense")


def test_frames_behind_the_one_that_ended_it_are_not_taken(played):
    def take(frame):
        played.take(frame)
        played.process.kill()

    played.process.attach(played.process._owner, take, played.process._on_end)
    played.accept(encoded(kind="one") + encoded(kind="two"))
    assert played.events == ["one", "killed"]
    played.reaped()
    assert played.events == ["one", "killed"], "who has ended it needs no report"


def test_nothing_is_read_of_a_process_behind_the_frame_that_ended_it(played, caplog):
    """Of nonsense there, the log would say that the process is ended because of it."""

    def take(frame):
        played.take(frame)
        played.process.close()

    played.process.attach(played.process._owner, take, played.process._on_end)
    played.accept(encoded(kind="one") + b"\xff" * 64)
    played.reaped()
    assert (played.events, caplog.messages) == (["one"], [])


@pytest.mark.parametrize("how", ["close", "kill"])
def test_process_that_is_not_needed_ends_without_a_report(how, played):
    played.socket.room = 1
    played.process.send({"kind": "job"})
    getattr(played.process, how)()
    played.reaped()
    assert played.events == ["killed"] * (how == "kill")
    assert (played.watched[-1], played.socket.done[-1]) == (0, "closed")
    assert played.end_waits == [2.0], "it would stay a zombie"
    assert not played.process._unsent


def test_end_of_the_process_shuts_its_socket_though_a_child_of_it_has_that_too(played):
    played.notify()
    assert played.socket.done[1:] == [], "it is the owner's"
    (shut,) = played.posted
    shut()
    assert played.socket.done[1:] == [("shutdown", socket.SHUT_RDWR)]
    played.process.close()
    number = len(played.socket.done)
    shut()
    assert len(played.socket.done) == number


class Child:
    """A child that ends when the test says so."""

    def __init__(self):
        self.channel, self.over, self.looks = Socket(), threading.Event(), []
        self.waits: list[float] = []
        self.looked = threading.Event()

    def wait(self, timeout_s):
        self.waits.append(timeout_s)
        if self.looks and self.over.wait(TIMEOUT_S):
            return End(0)
        return None

    def memory_bytes(self):
        self.looks.append(len(self.looks))
        self.looked.set()
        return 1000


def test_memory_is_looked_at_each_second_until_the_end_which_is_told_once():
    child, told = Child(), []
    running = _Running(child)
    assert child.looked.wait(TIMEOUT_S)
    wait_until(lambda: running.memory_bytes == 1000)
    assert child.waits[0] == 1.0
    running.notify(lambda: told.append("first"))
    child.over.set()
    wait_until(lambda: told)
    assert (told, running.memory_bytes, child.channel.done) == (["first"], 0, [])
    running.notify(lambda: told.append("late"))
    assert told == ["first", "late"]


def test_socket_of_a_process_that_ends_before_anybody_asks_is_shut():
    child = Child()
    _Running(child)
    child.over.set()
    wait_until(lambda: child.channel.done)
    assert child.channel.done == [("shutdown", socket.SHUT_RDWR)]


class Started:
    """The child of `start`, whose frames the test sends."""

    def __init__(self, error=None):
        self.error, self.words = error, None
        self.channel, self.its = socket.socketpair()
        self.output = io.BytesIO()
        self.ended: list[object] = []
        self.over = threading.Event()

    def __call__(self, command, words):
        self.words = words
        if self.error is not None:
            raise self.error
        return self

    def wait(self, timeout_s):
        return End(4) if self.over.wait(min(timeout_s, 0.01)) else None

    def end(self, timeout_s=0.0):
        assert self.channel.fileno() >= 0, "it would end by itself"
        self.ended.append(timeout_s)
        self.over.set()

    def memory_bytes(self):
        return 5000


PROGRAM = Program("m", HandlerSource(Path("/h/around.py"), "Around"), Path("/h/1"), None, 30.0)


@pytest.fixture
def child(monkeypatch):
    child = Started()
    monkeypatch.setattr(process, "Child", child)
    with child.its:
        yield child
    child.over.set()
    child.channel.close()


def test_process_is_ready_with_what_it_says(child):
    child.its.sendall(
        encoded(kind="ready", signature=SIGNATURE.document(), files=["/h/a.py", "/h/b.py"])
    )
    found = start(PROGRAM)
    assert child.words == {
        "file": "/h/around.py", "name": "Around", "folder": "/h/1", "network": None,
        "log_level": logging.getLogger().getEffectiveLevel(),
    }  # fmt: skip
    assert (found.signature, found.files) == (SIGNATURE, [Path("/h/a.py"), Path("/h/b.py")])
    assert found.memory_bytes == 5000, "it is known before the first look"
    assert 0 <= found.start_s < 30.0
    for option in (socket.SO_SNDBUF, socket.SO_RCVBUF):
        assert child.channel.getsockopt(socket.SOL_SOCKET, option) > 212_992
    assert child.ended == []


@pytest.mark.parametrize(
    ("says", "program", "kind", "text"),
    [
        (encoded(kind="failed", text="around.py:3: no store"), PROGRAM, ConfigurationError,
         "around.py:3: no store"),
        (b"\xff" * 64, PROGRAM, Unavailable,
         "around.py:1: its process ended while it started: "),
        (None, PROGRAM, Unavailable,
         "around.py:1: its process ended while it started: exit code 4"),
        (b"", PROGRAM._replace(max_setup_s=0.05), Unavailable,
         "around.py:1: imports and setup take more than 0.05 s (--max-handler-setup)"),
        (encoded(kind="ready")[:9], PROGRAM._replace(max_setup_s=0.05), Unavailable,
         "around.py:1: imports and setup take more than 0.05 s (--max-handler-setup)"),
    ],
    ids=["failed", "nonsense", "ended", "late", "late in a frame"],
)  # fmt: skip
def test_start_that_fails_ends_the_process_and_says_why(says, program, kind, text, child):
    if says is None:
        child.its.close()
        child.over.set()
    else:
        child.its.sendall(says)
    with pytest.raises(kind) as caught:
        start(program)
    assert str(caught.value).startswith(text)
    assert child.ended == [0.0]
    assert child.channel.fileno() == -1


def test_process_that_can_not_be_started_is_unavailable(child):
    child.error = OSError(11, "Resource temporarily unavailable")
    with pytest.raises(Unavailable, match=r"^a handler's process .*Resource temporarily unavail"):
        start(PROGRAM)


def test_lines_that_a_process_prints_are_log_lines(caplog):
    caplog.set_level(1, "serving.handlers.process")
    lines = [
        b"plain", b"<30>a warning", b"<10>a detail", b"", b"<5>low", b"<300>text", b"\xff<40>x",
        b"x" * 2500,
    ]  # fmt: skip
    output = io.BytesIO(b"\n".join(lines))
    _log_lines(output, "m")
    found = [(each.levelno, each.getMessage()) for each in caplog.records]
    assert found == [
        (20, "m: plain"), (30, "m: a warning"), (10, "m: a detail"), (5, "m: low"),
        (20, "m: <300>text"), (20, "m: \ufffd<40>x"), (20, f"m: {'x' * 2000}"),
        (20, f"m: {'x' * 500}"),
    ]  # fmt: skip
    assert output.closed


def test_threads_beside_a_process_do_not_keep_the_server_alive(played, child, monkeypatch):
    daemons: dict[str, bool] = {}

    def note():
        thread = threading.current_thread()
        daemons[thread.name] = thread.daemon

    def end(timeout_s=0.0):
        note()
        return End(0)

    logged = threading.Event()

    def log_lines(output, model):
        note()
        assert (output, model) == (child.output, "m")
        logged.set()

    played.process._running.child.end = end
    played.process.close()
    wait_until(lambda: "handler-end" in daemons)
    monkeypatch.setattr(process, "_log_lines", log_lines)
    monkeypatch.setattr(child, "memory_bytes", lambda: note() or 5000, raising=False)
    child.its.sendall(encoded(kind="ready", signature=SIGNATURE.document(), files=[]))
    start(PROGRAM)
    assert logged.wait(TIMEOUT_S)
    wait_until(lambda: "handler-watch" in daemons)
    del daemons[threading.current_thread().name]  # it looks at the memory once itself
    assert daemons == {"handler-end": True, "handler-log": True, "handler-watch": True}
