"""What systemd and signals mean to this process: notices out, sockets and signals in."""

import asyncio
import errno
import logging
import os
import queue
import signal
import socket
import threading
import time
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest

from serving.errors import ConfigurationError
from serving.system import libc, listening, shared_port, signals, systemd
from serving.system.batch_threads import Threads
from serving.system.cores import memory_limit
from serving.system.interrupts import ended_by_sigterm
from serving.system.listening import activated, address_of, bind, listen
from serving.system.shared_port import Share, reserved_port
from tests.support.fakes import TIMEOUT_S

# Out


@pytest.fixture
def manager(tmp_path, monkeypatch):
    """The socket on which systemd listens."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(str(tmp_path / "notify"))
        found.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", str(tmp_path / "notify"))
        yield found


def test_states_are_sent_as_they_are(manager, monkeypatch):
    monkeypatch.setattr(time, "clock_gettime_ns", lambda which: 1_234_567_890)
    for state in ("READY=1", "STOPPING=1", "WATCHDOG=1", "RELOADING=1"):
        systemd.notify(state)
    found = [manager.recv(1000).decode() for _ in range(4)]
    assert found == ["READY=1", "STOPPING=1", "WATCHDOG=1", "RELOADING=1\nMONOTONIC_USEC=1234567"]


def test_address_may_be_abstract(monkeypatch):
    name = f"digit-serving-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as found:
        found.bind(f"\0{name}")
        found.settimeout(20.0)
        monkeypatch.setenv("NOTIFY_SOCKET", f"@{name}")
        systemd.notify("READY=1")
        assert found.recv(100) == b"READY=1"


def test_nobody_has_to_listen(manager, monkeypatch):
    manager.close()
    systemd.notify("READY=1")
    monkeypatch.delenv("NOTIFY_SOCKET")
    systemd.notify("READY=1")


@pytest.mark.parametrize(
    ("pid", "usec", "pauses"),
    [(None, "3000000", [1.0] * 3), ("own", "30000", [0.01] * 3), (1, "3000000", []),
     (None, "0", []), (None, None, [])],
)  # fmt: skip
async def test_watchdog_is_fed_three_times_in_its_interval(pid, usec, pauses, monkeypatch):
    """By the process that is watched, where one is."""
    found = []

    class Over(Exception):
        pass

    async def sleep(seconds):
        found.append(seconds)
        if len(found) == 3:
            raise Over

    async def beat():
        pass

    pid = os.getpid() if pid == "own" else pid
    for name, value in (("WATCHDOG_PID", pid), ("WATCHDOG_USEC", usec)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, str(value))
    told: list[str] = []
    monkeypatch.setattr(systemd, "notify", told.append)
    monkeypatch.setattr(systemd, "asyncio", SimpleNamespace(sleep=sleep))
    if pauses:
        with pytest.raises(Over):
            await systemd.keep_watchdog_fed(beat)
    else:
        await systemd.keep_watchdog_fed(beat)
    assert found == pytest.approx(pauses)
    assert told == ["WATCHDOG=1"] * len(pauses)


# Sockets in


@pytest.fixture
def opened(monkeypatch):
    """Pass sockets on to this process; notes the descriptors that are taken."""
    found = []

    def passed_on(number, names=None, pid=None):
        monkeypatch.setenv("LISTEN_PID", str(pid or os.getpid()))
        monkeypatch.setenv("LISTEN_FDS", str(number))
        if names is None:
            monkeypatch.delenv("LISTEN_FDNAMES", raising=False)
        else:
            monkeypatch.setenv("LISTEN_FDNAMES", names)

    def taken(*, fileno):
        found.append(fileno)
        return fileno

    monkeypatch.setattr(socket, "socket", taken)
    return passed_on


@pytest.mark.parametrize(
    ("number", "names", "grpc", "http"),
    [
        (1, None, 3, None), (1, "grpc", 3, None), (1, "http", None, 3), (2, "http:grpc", 4, 3),
        (2, "own.socket:http", 3, 4), (1, "grpc:http", 3, None), (0, None, None, None),
    ],
)  # fmt: skip
def test_socket_of_systemd_has_its_protocol(number, names, grpc, http, opened):
    opened(number, names)
    assert (activated("grpc"), activated("http")) == (grpc, http)


def test_socket_of_systemd_is_for_its_process_alone(opened):
    opened(1, pid=1)
    assert (activated("grpc"), listening.is_activated()) == (None, False)


def test_port_is_listened_on_and_does_not_block():
    with closing(listen("127.0.0.1", 0)) as listener:
        assert not listener.getblocking()
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 1
        assert listener.getsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR) == 1
        port = listener.getsockname()[1]
        assert address_of(listener, "localhost") == f"localhost:{port}"


def test_bound_socket_listens_only_where_it_is_to():
    """Two may be bound to a port, and only one of them can listen."""
    for backlog in (0, 5):
        with closing(bind("127.0.0.1", 0, backlog=backlog)) as bound:
            assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == bool(backlog)


def test_socket_of_a_dead_server_is_replaced_and_no_other(tmp_path):
    path = tmp_path / "it"
    first = listen(f"unix:{path}", 0)
    assert address_of(first, "unused") == f"unix:{path}"
    with pytest.raises(ConfigurationError, match=f"^can't listen on unix:{path}: Address already"):
        listen(f"unix:{path}", 0)
    first.close()  # as if it was killed: the path stays
    with closing(listen(f"unix:{path}", 0)) as second, socket.socket(socket.AF_UNIX) as caller:
        caller.connect(str(path))
        assert second.accept()
    path.unlink()
    path.write_text("a file of somebody's")
    with pytest.raises(ConfigurationError, match=f"^can't listen on unix:{path}: Address already"):
        listen(f"unix:{path}", 0)
    assert path.read_text() == "a file of somebody's"


@pytest.mark.parametrize(
    ("numbers", "is_small"),
    [([0, 0], True), ([1, 0], False), ([8, 8], True), ([9, 8], True), ([10, 8], False),
     ([16, 15], True), ([17, 15], False), ([18, 16], True), ([19, 16], False), ([5, 1 << 62], True),
     ([1 << 62, 0], False)],
)  # fmt: skip
def test_worker_takes_connections_while_no_other_has_clearly_fewer(numbers, is_small):
    share = Share(None, memoryview(bytearray(16)).cast("q"), 0)
    for place, number in enumerate(numbers):
        share._numbers[place] = number
    assert share.is_small is is_small


def test_worker_that_takes_none_is_never_the_one_with_the_fewest():
    numbers = memoryview(bytearray(16)).cast("q")
    first, second = (Share(None, numbers, place) for place in (0, 1))
    first.note(3)
    second.note()
    assert numbers.tolist() == [3, 1 << 62]
    assert (first.is_small, second.is_small) == (True, False)


def test_reserved_port_has_no_worker_at_first():
    with reserved_port("127.0.0.1", 0, 2) as shared:
        assert not any(shared.share(place).is_small and shared.share(place)._numbers[place] == 0
                       for place in (0, 1))  # fmt: skip
        assert shared.share(0)._numbers.tolist() == [1 << 62] * 2
        for option in (socket.SO_REUSEPORT, socket.SO_REUSEADDR):
            assert shared.socket.getsockopt(socket.SOL_SOCKET, option) == 1
        assert shared.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0
        file = shared.file
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(file)


def test_taken_port_is_waited_for_a_second(monkeypatch):
    """Workers of a killed supervisor are about to end."""
    now, tries = SimpleNamespace(s=0.0), []

    def sleep(seconds):
        tries.append(seconds)
        now.s += seconds

    clock = SimpleNamespace(monotonic=lambda: now.s, sleep=sleep)
    monkeypatch.setattr(shared_port, "time", clock)
    with closing(bind("127.0.0.1", 0, backlog=1)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigurationError, match=r"the port is taken$"), \
                reserved_port("127.0.0.1", port):  # fmt: skip
            pass
    assert 1.0 <= sum(tries) < 1.2
    assert 5 <= len(tries) <= 50
    tries.clear()
    with reserved_port("127.0.0.1", port):
        assert tries == []


def test_port_that_cannot_be_bound_is_not_waited_for(monkeypatch):
    def fail(*_):
        raise OSError(errno.EADDRNOTAVAIL, "no")

    monkeypatch.setattr(shared_port, "_wait_until_free", fail)
    with pytest.raises(ConfigurationError, match=r"this machine has no such address$"), \
            reserved_port("127.0.0.1", 0):  # fmt: skip
        pass


# Signals in


@pytest.fixture
def callbacks(monkeypatch):
    """What signals call, as at the start of a process."""
    early: list[int] = []
    found = {signal.SIGTERM: signals._leave, signal.SIGINT: signals._leave,
             signal.SIGHUP: early.append}  # fmt: skip

    def end(code):
        pytest.fail("the process would have ended")

    monkeypatch.setattr(os, "_exit", end)
    monkeypatch.setattr(logging, "shutdown", lambda: None)
    monkeypatch.setattr(signals, "_early", early)
    monkeypatch.setattr(signals, "_callbacks", found)
    return found


async def test_hang_up_before_there_is_something_to_reload_is_kept(callbacks):
    calls = []
    for _ in range(2):
        signals._handle(signal.SIGHUP, None)
    signals.on_hang_up(lambda: calls.append("first"))
    assert calls == ["first"], "once for both"
    signals.on_hang_up(lambda: calls.append("second"))
    assert calls == ["first"], "it is not kept for ever"
    signals._handle(signal.SIGHUP, None)
    assert calls == ["first"]
    await asyncio.sleep(0)
    assert calls == ["first", "second"]


async def test_stops_are_queued_in_their_order(callbacks, monkeypatch):
    reader, writer = os.pipe()
    monkeypatch.setattr(signals, "_woken_by_signals", lambda: reader)
    stops = signals.queue_stops()
    for number in (signal.SIGINT, signal.SIGTERM):
        signals._handle(number, None)
    assert [await stops.get() for _ in range(2)] == [signal.SIGINT, signal.SIGTERM]
    asyncio.get_running_loop().remove_reader(reader)
    for each in reader, writer:
        os.close(each)


def test_signal_before_the_server_is_ready_ends_it_well(callbacks, monkeypatch):
    done = []
    monkeypatch.setattr(logging, "shutdown", lambda: done.append("logs"))
    monkeypatch.setattr(os, "_exit", done.append)
    for number in (signal.SIGTERM, signal.SIGINT):
        signals._handle(number, None)
    assert done == ["logs", 0] * 2, "what was logged is written first"


def test_handled_signals_are_three():
    assert {*signals.HANDLED} == {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


# Memory


def test_free_memory_has_these_limits(monkeypatch):
    """M_TRIM_THRESHOLD is -1 and M_MMAP_THRESHOLD -3 in malloc.h."""
    found = []
    library = SimpleNamespace(
        mallopt=lambda *option: found.append(option), malloc_trim=lambda pad: found.append(pad)
    )
    monkeypatch.setattr(libc, "_libc", lambda: library)
    libc.limit_free_memory()
    libc.trim_memory()
    assert found == [(-1, 16 << 20), (-3, 4 << 20), 0]


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8 << 30), ({"memory.max": "max\n"}, 8 << 30), ({"memory.max": "1024\n"}, 1024),
        ({"memory/memory.limit_in_bytes": "2048\n"}, 2048),
        ({"memory.max": f"{9 << 30}\n"}, 8 << 30),
    ],
)  # fmt: skip
def test_memory_is_the_machines_or_the_containers(files, expected, tmp_path, monkeypatch):
    pages = {"SC_PAGE_SIZE": 4096, "SC_PHYS_PAGES": 2 << 20}
    monkeypatch.setattr(os, "sysconf", pages.__getitem__)
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert memory_limit(tmp_path) == expected


def test_signal_is_left_to_the_program_off_its_main_thread():
    before, found = signal.getsignal(signal.SIGTERM), []

    def work():
        with ended_by_sigterm():
            found.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join(20.0)
    assert found == [before]


def test_without_a_number_of_sockets_none_is_taken(opened, monkeypatch):
    opened(1)
    monkeypatch.delenv("LISTEN_FDS")
    assert (activated("grpc"), activated("http")) == (None, None)


def test_socket_that_is_bound_does_not_listen_by_itself():
    with closing(bind("127.0.0.1", 0)) as bound:
        assert bound.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN) == 0


def test_port_is_reserved_for_one_process_by_default():
    with reserved_port("127.0.0.1", 0) as shared:
        assert shared.share(0)._numbers.tolist() == [1 << 62]


# Threads that run batches


class Runners:
    """Threads that are noted; the test does their work."""

    def __init__(self, monkeypatch, *, most=9):
        self.made, self.most = [], most
        runners = self

        class Thread(threading.Thread):
            def start(self):
                if len(runners.made) == runners.most:
                    raise RuntimeError("can't start new thread")
                runners.made.append(self)

        monkeypatch.setattr(threading, "Thread", Thread)
        monkeypatch.setattr(os, "setpriority", lambda *_: None)  # this thread's is not theirs


def test_runners_are_started_as_they_are_needed_and_again_once_they_have_ended(monkeypatch):
    runners, taken = Runners(monkeypatch), []
    threads = Threads(2)
    for number in range(3):
        threads.put(partial(partial, taken.append, number), lambda task: task())
        assert len(runners.made) == min(2, number + 1), "no more than are needed, or allowed"
    assert {(each.name, each.daemon) for each in runners.made} == {("runner", True)}
    threads.close()
    runners.made[0].run()
    assert taken == [0, 1, 2], "what was begun is done before the end"
    runners.made[1].run()
    threads.close()
    threads.put(lambda: lambda: taken.append(3), lambda task: task())
    assert len(runners.made) == 3
    threads.close()
    runners.made[2].run()
    assert taken == [0, 1, 2, 3]


def test_runner_that_is_free_takes_the_next_batch(monkeypatch):
    """Each thread more is a stack, and one more to wake."""
    started, posted = [], queue.SimpleQueue()

    class Thread(threading.Thread):
        def start(self):
            started.append(self)
            super().start()

    monkeypatch.setattr(threading, "Thread", Thread)
    threads = Threads(9)
    for _ in range(3):
        threads.put(lambda: lambda: None, posted.put)
        posted.get(timeout=TIMEOUT_S)()
    threads.close()
    assert len(started) == 1


@pytest.mark.parametrize("most", [0, 1])
def test_fewer_runners_will_do_but_one_is_needed(most, monkeypatch):
    runners, threads = Runners(monkeypatch, most=most), Threads(2)

    def put():
        threads.put(lambda: lambda: None, lambda task: task())

    if not most:
        with pytest.raises(RuntimeError, match="can't start new thread"):
            put()
        return
    put()
    put()
    assert len(runners.made) == 1


@pytest.mark.parametrize("before", [-1, 7])
def test_signals_write_to_a_pipe_unless_another_loop_has_one(before, monkeypatch):
    """A pipe that is full is no reason for a warning on stderr."""
    given = []

    def set_wakeup_fd(number, **options):
        given.append((number, options))
        return before

    monkeypatch.setattr(signal, "set_wakeup_fd", set_wakeup_fd)
    reader = signals._woken_by_signals.__wrapped__()
    (writer, options), *rest = given
    assert options == {"warn_on_full_buffer": False}
    assert rest == ([] if before == -1 else [(7, options)])
    os.write(writer, b"x")
    assert os.read(reader, 9) == b"x"
    for each in reader, writer:
        os.close(each)


@pytest.mark.parametrize("way", ["bind", "reserve"])
def test_name_is_looked_up_for_a_port_that_listens(way, monkeypatch):
    """An empty one is all addresses of the machine."""
    asked = []

    def getaddrinfo(host, port, **options):
        asked.append((host, port, options))
        raise OSError(errno.EADDRNOTAVAIL, "no")

    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)
    open_port = partial(bind, "", 7) if way == "bind" else reserved_port("", 7).__enter__
    with pytest.raises(ConfigurationError):
        open_port()
    options = {"type": socket.SOCK_STREAM, "flags": socket.AI_PASSIVE}
    assert asked == [("", 7, options)]
