"""One of several server processes on one port: the process, and its supervisor's view of it."""

import asyncio
import concurrent.futures
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import DigitsError
from serving.server.heartbeat import Heartbeat
from serving.server.serve import run_loop, serve
from serving.server.server import Server
from serving.system import address, signals
from serving.system.process import Activity
from serving.telemetry import logs
from serving.telemetry.report import Report

_REPORT_INTERVAL_S = 1.0
"""How often a worker reports; a crash loses what it counted after the last report."""
_STALE_S = 3 * _REPORT_INTERVAL_S
"""A worker without a report for this long hangs."""

Arguments = tuple[address.Sockets, ModelConfig, BatchingConfig, ServerConfig]
"""Its sockets and its configuration."""


class Worker:
    """A worker process, from the supervisor's event loop."""

    def __init__(self, arguments: Arguments) -> None:
        """Spawn the process: gRPC's threads don't survive a fork."""
        self.report: Report | None = None
        """Its last report; there is one as soon as it answers calls."""
        self.error: DigitsError | None = None
        """Why it couldn't start, if it reported that."""
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit code, negative for a signal."""
        self.ready_s = self.reported_s = 0.0
        """When it was ready, and when it last reported, in monotonic seconds."""
        self.on_ready: Callable[[], None] = lambda: None
        self._reported: asyncio.Future[None] | None = None
        self._heartbeat = Heartbeat()
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, *arguments), daemon=True)
        # Ctrl-C and a closing terminal signal every process of the terminal: the signals stay
        # blocked until the worker handles them. The tracker unblocks SIGINT when it starts, so
        # start it first.
        before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        try:
            resource_tracker.ensure_running()
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            self._process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        theirs.close()
        loop = asyncio.get_running_loop()
        loop.add_reader(self._connection.fileno(), self._receive)
        loop.add_reader(self._process.sentinel, self._end)

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    @property
    def is_serving(self) -> bool | None:
        """Whether its health is SERVING; False if it hangs, None before it has the port."""
        if self.report is None:
            return None
        is_stale = time.monotonic() - self.reported_s > _STALE_S
        return self.report.is_serving and not is_stale

    @property
    def lived_s(self) -> float:
        """Seconds since it was ready; 0 if it never was."""
        return time.monotonic() - self.ready_s if self.report else 0.0

    async def refresh(self) -> None:
        """Wait for a new report; only one request at a time is sent, since the worker may hang."""
        if self.report is None or self.ended.done():
            return
        if self._reported is None:
            self._reported = asyncio.get_running_loop().create_future()
            self._connection.send(None)
        await asyncio.shield(self._reported)

    def signal(self, number: int) -> None:
        """Send a signal, if the process is still alive."""
        if not self.ended.done() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def is_frozen(self) -> bool:
        """Return whether it serves no more, though nothing keeps it from its core.

        Ask every second: it counts how often no report came.
        """
        self._receive()  # first: this process may have been slow, too
        if self.report is None or self._process.pid is None:
            return False
        return self._heartbeat.is_frozen(self.reported_s, Activity.of(self._process.pid))

    def _receive(self) -> None:
        """Receive its messages; nothing blocks, since it sends whole messages or dies."""
        try:
            while self._connection.poll():
                self._take(self._connection.recv())
        except (EOFError, OSError):
            asyncio.get_running_loop().remove_reader(self._connection.fileno())

    def _take(self, message: Report | DigitsError) -> None:
        if isinstance(message, DigitsError):
            self.error = message
            return
        is_first, self.report = self.report is None, message
        self.reported_s = time.monotonic()
        if is_first:
            self.ready_s = self.reported_s
            self.on_ready()
        self._settle()

    def _settle(self) -> None:
        if self._reported is not None:
            self._reported.set_result(None)
            self._reported = None

    def _end(self) -> None:
        loop = asyncio.get_running_loop()
        self._receive()
        loop.remove_reader(self._connection.fileno())
        loop.remove_reader(self._process.sentinel)
        self._process.join()
        self._connection.close()
        self._settle()
        self.ended.set_result(self._process.exitcode or 0)


def _run(
    supervisor: Connection,
    sockets: address.Sockets,
    model_config: ModelConfig,
    batching: BatchingConfig,
    config: ServerConfig,
) -> None:
    """Serve in this process until a signal, or until the supervisor ends."""
    signals.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    logs.setup(config.log_format)
    address.inherit(sockets)

    def start_reporting(server: Server) -> None:
        arguments = (supervisor, server, asyncio.get_running_loop())
        threading.Thread(target=_keep_reporting, args=arguments, daemon=True).start()

    try:
        serving = serve(model_config, batching, config, start_reporting)
        is_drained = run_loop(serving, config.transport)
    except DigitsError as err:
        supervisor.send(err)
        signals.end_process(1)
    signals.end_process(0 if is_drained else 1)


def _keep_reporting(
    supervisor: Connection, server: Server, loop: asyncio.AbstractEventLoop
) -> None:
    """Report now, on request, and every second; drain if the supervisor is gone.

    A report says that calls are answered: without it the supervisor replaces this process.
    """
    try:
        while True:
            asyncio.run_coroutine_threadsafe(server.beat(), loop).result()
            supervisor.send(server.report())
            if supervisor.poll(_REPORT_INTERVAL_S):
                supervisor.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
    except (RuntimeError, concurrent.futures.CancelledError):
        pass  # the loop has ended, and the process is ending
