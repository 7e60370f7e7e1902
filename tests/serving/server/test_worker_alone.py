"""A worker as its supervisor sees it, without a process: what it gets, says, and ends with."""

import asyncio
import os
import signal
import socket
import threading
from multiprocessing.connection import Connection
from types import SimpleNamespace
from typing import Any, ClassVar

import pytest

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import CorruptModel
from serving.processes.end import End
from serving.server import worker as module
from serving.server.worker import Orders, Worker
from serving.system import listening, shared_port
from serving.system.usage import Usage
from serving.telemetry.metrics import Counts, Report

CONFIGS = ModelConfig(), BatchingConfig(), ServerConfig()
PORTS: Any = {("h", 1): SimpleNamespace(socket=SimpleNamespace(fileno=lambda: 77), file=78)}
ORDERS = Orders({5: 2.0}, frozenset({6}))
REPORT = Report(
    (), BatchingConfig(), {}, 3, True, Usage(), Counts(), handlers={}, waiting={}, missing={}
)


def blocked():
    """The signals that this thread does not get."""
    return signal.pthread_sigmask(signal.SIG_BLOCK, ())


class Started:
    """A worker whose process is the test's."""

    def __init__(self, monkeypatch):
        self.given: list[Any] = []
        self.num_ready, self.signals = 0, []
        ours, its = socket.socketpair()
        self.its = Connection(its.detach())
        self.code = 3
        self.child = SimpleNamespace(
            channel=ours, pid=os.getpid(), wait=lambda: End(self.code), signal=self.signals.append
        )
        monkeypatch.setattr(module, "Child", self._start)
        self.worker = Worker(PORTS, 2, CONFIGS, self._ready, ORDERS)

    def _start(self, command, words, *, files):
        assert signal.SIGHUP in blocked(), "it would end the child before it has a handler"
        self.given.append((command.module, words, files))
        return self.child

    def _ready(self):
        self.num_ready += 1

    def end(self):
        self.its.close()
        self.worker._receive()


@pytest.fixture
def start(monkeypatch):
    made = []

    def one():
        made.append(Started(monkeypatch))
        return made[-1]

    yield one
    for each in made:
        each.its.close()


async def test_worker_gets_its_settings_and_its_files(start):
    one = start()
    assert signal.SIGHUP not in blocked()
    record = one.worker._crash_record.file
    words = {("h", 1): (77, 78)}, record, 2, CONFIGS, ORDERS
    assert one.given == [("serving.server.worker", words, [record, 77, 78])]
    assert (one.worker.report, one.worker.error, one.worker.lived_s) == (None, None, 0.0)
    assert not one.worker.is_serving
    loop, descriptor = asyncio.get_running_loop(), one.worker._connection.fileno()
    one.end()
    assert one.worker.ended.result() == End(3)
    assert one.worker._connection.closed
    assert not loop.remove_reader(descriptor), "it would be ready for ever"


async def test_signals_are_as_they_were_where_no_process_can_be_started(monkeypatch):
    def fail(*_, **__):
        raise BlockingIOError

    monkeypatch.setattr(module, "Child", fail)
    with pytest.raises(BlockingIOError):
        Worker(PORTS, 2, CONFIGS, print, ORDERS)
    assert signal.SIGHUP not in blocked()


async def test_first_report_says_that_it_is_ready(start, monkeypatch):
    now = SimpleNamespace(s=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(monotonic=lambda: now.s))
    one = start()
    worker = one.worker
    for number in (1, 2):
        one.its.send(REPORT._replace(num_calls=number))
        worker._receive()
        assert (worker.report.num_calls, one.num_ready) == (number, 1)
        now.s += 2.0
    assert worker.lived_s == 4.0
    assert worker.is_serving
    now.s += 1.0
    assert worker.is_serving, "three looks are not over"
    now.s += 0.1
    assert not worker.is_serving
    one.its.send(REPORT._replace(is_serving=False))
    worker._receive()
    assert not worker.is_serving
    one.end()


async def test_message_that_has_come_is_read_before_it_is_found_frozen(start, monkeypatch):
    """The supervisor may have been slow, too."""
    one = start()
    asked: list[Any] = []

    def is_frozen(*facts):
        asked.append(facts)
        return True

    monkeypatch.setattr(one.worker._heartbeat, "is_frozen", is_frozen)
    assert not one.worker.is_frozen()
    assert asked == [], "it is not ready yet"
    one.its.send(REPORT)
    assert one.worker.is_frozen()
    assert [reported_s for reported_s, _ in asked] == [one.worker._reported_s]
    one.its.close()
    assert not one.worker.is_frozen(), "it has ended"
    assert one.worker.ended.result() == End(3)
    one.worker.signal(signal.SIGKILL)
    one.worker.order(ORDERS)
    assert one.signals == []


async def test_reason_why_it_cannot_start_is_kept(start):
    one = start()
    one.its.send(CorruptModel("it is broken"))
    one.worker._receive()
    assert str(one.worker.error) == "it is broken"
    assert (one.worker.report, one.num_ready) == (None, 0)
    one.worker.signal(signal.SIGTERM)
    one.worker.order(ORDERS)
    assert one.signals == [signal.SIGTERM]
    assert one.its.recv() == ORDERS
    one.end()


@pytest.mark.parametrize(("code", "culprits"), [(-11, {7}), (-8, {7}), (-9, set()), (1, set())])
async def test_models_are_at_fault_for_ends_by_their_own_instructions(code, culprits, start):
    one = start()
    one.code = code
    record = one.worker._crash_record
    record._slots[0], record._slots[1] = 1, 7
    one.end()
    assert one.worker.culprits == culprits


# In the worker's own process


class Ended(Exception):
    """The process has ended, by an exit code."""


class Own:
    """What a worker's process does, noted."""

    def __init__(self, monkeypatch, outcome):
        self.done: list[Any] = []
        self.sent: list[Any] = []
        self.served: list[Any] = []
        note, own = self.done.append, self

        def end(code):
            raise Ended(code)

        def run_loop(serving, transport):
            note(("run", serving, transport))
            if isinstance(outcome, Exception):
                raise outcome
            return outcome

        def serve(*args):
            own.served.append(args)
            return "serving"

        class Record:
            def __init__(self, file):
                note(("record", file))
                self.guarded = "its guard"

            def trace_crashes(self):
                note("traced")

        monkeypatch.setattr(module, "signals", SimpleNamespace(
            install=lambda: note("signals"), end_process=end))  # fmt: skip
        monkeypatch.setattr(signal, "pthread_sigmask", lambda *args: note(args))
        monkeypatch.setattr(module, "Connection", lambda number: SimpleNamespace(
            number=number, send=own.sent.append))  # fmt: skip
        monkeypatch.setattr(module, "CrashRecord", Record)
        monkeypatch.setattr(module, "logs", SimpleNamespace(
            setup=lambda *args, **more: note(("logs", args, more))))  # fmt: skip
        monkeypatch.setattr(module, "serve", serve)
        monkeypatch.setattr(module, "run_loop", run_loop)

    def main(self, files=()):
        channel: Any = SimpleNamespace(detach=lambda: 5)
        config = ServerConfig(log_format="json", log_level="error", transport="h2")
        self.configs = ModelConfig(), BatchingConfig(), config
        with pytest.raises(Ended) as ended:
            module.main(channel, (dict(files), 9, 2, self.configs, ORDERS))
        (code,) = ended.value.args
        return code


BROKEN = CorruptModel("it is broken")


@pytest.mark.parametrize(
    ("outcome", "code", "sent"), [(True, 0, []), (False, 1, []), (BROKEN, 1, [BROKEN])]
)
def test_worker_serves_as_it_is_told(outcome, code, sent, monkeypatch):
    own = Own(monkeypatch, outcome)
    assert own.main() == code
    assert own.sent == sent
    assert own.done == [
        "signals", (signal.SIG_UNBLOCK, {signal.SIGHUP}),  # it has a handler now
        ("record", 9), "traced", ("logs", ("json", "error"), {"worker": 2}),
        ("run", "serving", "h2"),
    ]  # fmt: skip
    ((*configs, _, host, blocked, alone),) = own.served
    assert (tuple(configs), host.guard) == (own.configs, "its guard")
    assert (blocked, alone) == (ORDERS.blocked, ORDERS.alone)


def test_worker_has_its_share_of_each_port(monkeypatch):
    own, taken = Own(monkeypatch, True), []

    class Port:
        def __init__(self, sock, file):
            self.facts = sock.fileno(), file
            taken.append(sock)

        def share(self, place):
            return (*self.facts, place)

    monkeypatch.setattr(shared_port, "SharedPort", Port)
    shares: dict[Any, Any] = {}
    monkeypatch.setattr(listening, "shares", shares)
    numbers = [socket.socket().detach() for _ in range(2)]
    own.main([(("h", 1), (numbers[0], 77)), (("h", 2), (numbers[1], 78))])
    assert shares == {("h", 1): (numbers[0], 77, 2), ("h", 2): (numbers[1], 78, 2)}
    for each in taken:
        each.close()


async def test_reports_come_from_a_thread_of_their_own(monkeypatch):
    own, made = Own(monkeypatch, True), []
    own.main()
    ((_, _, _, start_reporting, *_),) = own.served
    monkeypatch.setattr(module, "_keep_reporting", lambda *args: made.append(args))

    class Thread(threading.Thread):
        def start(self):
            made.append(self.daemon)
            self.run()

    monkeypatch.setattr(threading, "Thread", Thread)
    start_reporting("server")
    is_daemon, (supervisor, *rest) = made
    assert (is_daemon, supervisor.number) == (True, 5)
    assert rest == ["server", asyncio.get_running_loop()]


@pytest.mark.parametrize("end", [EOFError(), BrokenPipeError(), RuntimeError("the loop has ended")])
async def test_report_says_that_the_loop_has_its_turns(end, monkeypatch):
    """Orders are taken between two; without a supervisor the worker drains."""
    done: list[Any] = []

    class Server:
        async def beat(self):
            done.append("beat")

        def report(self):
            return "report"

        def block(self, blocked):
            done.append(("block", blocked))

        def stop_batching(self, alone):
            done.append(("alone", alone))

    class Supervisor:
        polls: ClassVar[list[Any]] = [False, True, end]

        def send(self, report):
            done.append(report)

        def poll(self, timeout_s):
            assert timeout_s == 1.0
            found = self.polls.pop(0)
            if isinstance(found, Exception):
                raise found
            return found

        def recv(self):
            return ORDERS

    monkeypatch.setattr(Supervisor, "polls", [False, True, end])
    monkeypatch.setattr(os, "kill", lambda *args: done.append(args))
    supervisor: Any = Supervisor()
    server: Any = Server()
    loop = asyncio.get_running_loop()
    await asyncio.to_thread(module._keep_reporting, supervisor, server, loop)
    turn = ["beat", "report"]
    orders = [("block", ORDERS.blocked), ("alone", ORDERS.alone)]
    is_alone = not isinstance(end, RuntimeError)
    assert done == [*turn, *turn, *orders, *turn, *[(os.getpid(), signal.SIGTERM)] * is_alone]
