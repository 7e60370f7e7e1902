"""One of several server processes on one port: the program, and its supervisor's view of it."""

import asyncio
import concurrent.futures
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ServingError
from serving.processes.child import Child, ChildCommand, Streams
from serving.processes.end import End
from serving.server.lifetime import run_loop, serve
from serving.server.server import Server
from serving.system import listening, shared_port, signals
from serving.system.crash_record import CRASHES, CrashRecord
from serving.system.host import Host
from serving.system.usage import Activity
from serving.telemetry import logs
from serving.telemetry.metrics import Report

LOOK_S = 1.0
"""How often a worker reports, and is looked at; a crash loses the counts since its last report."""
_MAX_MISSED = 4
"""Looks without a report: one that is well can be between two reports at two of them."""
_BUSY_S = 0.5
"""Processor time between two looks, without a report, that shows a loop without end."""

_COMMAND = ChildCommand(__name__, Streams(None, None, None))
Configs = tuple[ModelConfig, BatchingConfig, ServerConfig]


class Heartbeat:
    """Judges whether a worker is frozen: it reports no more, and nothing keeps it from its core.

    A worker that is only slow, on a busy machine, has a thread that waits for a core or for a disk.
    """

    def __init__(self) -> None:
        self._num_missed = 0
        self._reported_s = self._cpu_s = 0.0

    def is_frozen(self, reported_s: float, activity: Activity) -> bool:
        """Take a look; return whether too many reports are missing.

        Args:
            reported_s: when the worker last reported.
            activity: its activity.
        """
        computed_s, self._cpu_s = activity.cpu_s - self._cpu_s, activity.cpu_s
        if reported_s != self._reported_s:
            self._reported_s, self._num_missed = reported_s, 0
        elif not activity.is_waiting_for_machine or computed_s >= _BUSY_S:
            self._num_missed += 1
        return self._num_missed >= _MAX_MISSED


class Orders(NamedTuple):
    """What workers do otherwise with some versions, by their numbers; see `number_of`."""

    blocked: Mapping[int, float] = {}
    """Versions whose calls are refused, and until when; see `Router.block`."""
    alone: frozenset[int] = frozenset()
    """Versions of which each call runs alone; see `Router.stop_batching`."""


class Worker:
    """A worker process, from the supervisor's event loop."""

    def __init__(
        self,
        ports: Mapping[tuple[str, int], shared_port.SharedPort],
        place: int,
        configs: Configs,
        on_ready: Callable[[], None],
        orders: Orders,
    ) -> None:
        """Start the process.

        Args:
            ports: those that it serves.
            place: its place among those that serve them.
            configs: its settings.
            on_ready: called once, when it answers calls.
            orders: what it does otherwise, from its start on.
        """
        self.report: Report | None = None
        """Its last report; there is one as soon as it answers calls."""
        self.error: ServingError | None = None
        """Why it couldn't start, if it reported that."""
        self.ended: asyncio.Future[End] = asyncio.get_running_loop().create_future()
        """How it has ended."""
        self.culprits: frozenset[int] = frozenset()
        """Once it has ended: the numbers of the models whose run ended it; none if none did."""
        self._on_ready = on_ready
        self._ready_s = self._reported_s = 0.0
        self._heartbeat = Heartbeat()
        self._crash_record = CrashRecord()
        files = {name: (each.socket.fileno(), each.file) for name, each in ports.items()}
        words = files, self._crash_record.file, place, configs, orders
        given = [self._crash_record.file, *(file for pair in files.values() for file in pair)]
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})  # until it has a handler
        try:
            self._child = Child(_COMMAND, words, files=given)
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        self._connection = Connection(self._child.channel.detach())
        asyncio.get_running_loop().add_reader(self._connection.fileno(), self._receive)

    @property
    def is_serving(self) -> bool:
        """Whether it has said that its health is SERVING, and does not hang."""
        is_stale = time.monotonic() - self._reported_s > 3 * LOOK_S
        return self.report is not None and self.report.is_serving and not is_stale

    @property
    def lived_s(self) -> float:
        """Seconds since it was ready; 0 if it never was."""
        return time.monotonic() - self._ready_s if self.report else 0.0

    def order(self, orders: Orders) -> None:
        """Have it refuse the calls of some versions, or run them alone."""
        with suppress(OSError):  # it has ended
            self._connection.send(orders)

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still alive."""
        if not self.ended.done():
            self._child.signal(number)

    def is_frozen(self) -> bool:
        """Return whether it serves no more, and that is its own fault; ask every `LOOK_S`."""
        self._receive()  # first: this process may have been slow, too
        if self.report is None or self.ended.done():
            return False
        return self._heartbeat.is_frozen(self._reported_s, Activity.of(self._child.pid))

    def _receive(self) -> None:
        """Receive its messages; nothing blocks, since it sends whole messages or dies."""
        try:
            while not self.ended.done() and self._connection.poll():
                self._take(self._connection.recv())
        except (EOFError, OSError):  # only its end closes the connection
            asyncio.get_running_loop().remove_reader(self._connection.fileno())
            self._connection.close()
            end = self._child.wait()
            assert end is not None
            self.culprits = self._crash_record.culprits() if -end.code in CRASHES else frozenset()
            self._crash_record.close()
            self.ended.set_result(end)

    def _take(self, message: Report | ServingError) -> None:
        if isinstance(message, ServingError):
            self.error = message
            return
        is_first, self.report = self.report is None, message
        self._reported_s = time.monotonic()
        if is_first:
            self._ready_s = self._reported_s
            self._on_ready()


def main(channel: socket.socket, words: tuple[Any, ...]) -> None:
    """Serve in this process until a signal, or until the supervisor ends."""
    signals.install()
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGHUP})
    supervisor = Connection(channel.detach())
    files, record_file, place, configs, orders = words
    model_config, batching, config = configs
    record = CrashRecord(record_file)
    record.trace_crashes()
    logs.setup(config.log_format, config.log_level, worker=place)
    for name, (sock, file) in files.items():
        listening.shares[name] = shared_port.SharedPort(socket.socket(fileno=sock), file).share(
            place
        )

    def start_reporting(server: Server) -> None:
        arguments = (supervisor, server, asyncio.get_running_loop())
        threading.Thread(target=_keep_reporting, args=arguments, daemon=True).start()

    try:
        guarded = Host(guard=record.guarded)
        serving = serve(
            model_config, batching, config, start_reporting, guarded, orders.blocked, orders.alone
        )
        is_drained = run_loop(serving, config.transport)
    except ServingError as err:
        supervisor.send(err)
        signals.end_process(1)
    signals.end_process(0 if is_drained else 1)


def _keep_reporting(
    supervisor: Connection, server: Server, loop: asyncio.AbstractEventLoop
) -> None:
    """Report now and every second; drain if the supervisor is gone.

    A report says that calls are answered: without it the supervisor replaces this process.
    """
    # Else the loop has ended, and the process is ending.
    with suppress(RuntimeError, concurrent.futures.CancelledError):
        try:
            while True:
                asyncio.run_coroutine_threadsafe(server.beat(), loop).result()
                supervisor.send(server.report())
                if supervisor.poll(LOOK_S):
                    orders = supervisor.recv()
                    server.block(orders.blocked)
                    server.stop_batching(orders.alone)
        except (EOFError, OSError):
            os.kill(os.getpid(), signal.SIGTERM)
