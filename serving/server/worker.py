"""One of several server processes on one port: its life, and how its supervisor sees it."""

import asyncio
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from multiprocessing import resource_tracker
from multiprocessing.connection import Connection

import uvloop

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import DigitsError
from serving.server.serve import serve
from serving.server.server import Server
from serving.system import signals
from serving.telemetry import logs
from serving.telemetry.report import Report

_REPORT_INTERVAL_S = 1.0
"""What a worker counts is told so often: what it counted since is lost with it."""
_STALE_S = 3 * _REPORT_INTERVAL_S
"""A worker that has not reported for so long hangs."""

Arguments = tuple[ModelConfig, BatchingConfig, ServerConfig]
"""What a worker serves, and where."""


class Worker:
    """A worker process, as its supervisor's event loop sees it."""

    def __init__(self, arguments: Arguments) -> None:
        """Start it, as a fresh interpreter: gRPC's threads don't survive a fork."""
        self.report: Report | None = None
        """The last one that it sent; there is one as soon as it answers calls."""
        self.error: DigitsError | None = None
        """Why it couldn't start, if it said so."""
        self.ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        """Its exit code; minus the signal that ended it."""
        self.ready_s = self.reported_s = 0.0
        """When it was ready, and when it last reported, in seconds of the monotonic clock."""
        self.on_ready: Callable[[], None] = lambda: None
        self._told: asyncio.Future[None] | None = None
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_run, args=(theirs, *arguments), daemon=True)
        # Ctrl-C and a terminal that closes reach every process of the terminal: a worker heeds
        # them once it can. The tracker unblocks SIGINT when it starts, so it starts first.
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
        """What its health says; False if it hangs, None while it starts and holds no port."""
        if self.report is None:
            return None
        is_stale = time.monotonic() - self.reported_s > _STALE_S
        return self.report.is_serving and not is_stale

    @property
    def lived_s(self) -> float:
        """For how many seconds it has been ready."""
        return time.monotonic() - self.ready_s if self.report else 0.0

    async def refresh(self) -> None:
        """Wait for a report of now; asks at most once at a time, for it may hang."""
        if self.report is None or self.ended.done():
            return
        if self._told is None:
            self._told = asyncio.get_running_loop().create_future()
            self._connection.send(None)
        await asyncio.shield(self._told)

    def signal(self, number: int) -> None:
        """Send a signal, if the process still lives."""
        if not self.ended.done() and self._process.pid is not None:
            os.kill(self._process.pid, number)

    def _receive(self) -> None:
        """Take what it sent; nothing blocks, as it sends whole messages or dies."""
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
        if self._told is not None:
            self._told.set_result(None)
            self._told = None

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
    model_config: ModelConfig,
    batching: BatchingConfig,
    config: ServerConfig,
) -> None:
    """Serve in this process until a signal or the supervisor's end."""
    signals.install()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT, signal.SIGHUP})
    logs.setup(config.log_format)

    def report_from_now(server: Server) -> None:
        arguments = (supervisor, server.report)
        threading.Thread(target=_keep_reporting, args=arguments, daemon=True).start()

    try:
        is_drained = uvloop.run(serve(model_config, batching, config, report_from_now))
    except DigitsError as err:
        supervisor.send(err)
        signals.end_process(1)
    signals.end_process(0 if is_drained else 1)


def _keep_reporting(supervisor: Connection, report: Callable[[], Report]) -> None:
    """Report now, when asked, and every second; without a supervisor, drain."""
    try:
        while True:
            supervisor.send(report())
            if supervisor.poll(_REPORT_INTERVAL_S):
                supervisor.recv()
    except (EOFError, OSError):
        os.kill(os.getpid(), signal.SIGTERM)
