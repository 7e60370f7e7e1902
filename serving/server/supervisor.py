"""Several server processes on one port, and the supervisor that restarts them.

They share only the port; the kernel gives each connection to one of them.
"""

import asyncio
import itertools
import logging
import signal
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import Unavailable
from serving.server.backoff import Backoff
from serving.server.exporter import Exporter, exporting
from serving.server.heartbeat import LOOK_S
from serving.server.port import optional_http, refuse_callers, reserved_port
from serving.server.ready_line import announce
from serving.server.worker import Arguments, Worker
from serving.server.workers import Workers
from serving.system import signals
from serving.system.address import Sockets, with_port
from serving.system.notify import keep_watchdog_fed, notify

_log = logging.getLogger(__name__)

_MAX_OUTAGE_S = 60.0
"""How long no worker may be ready, once all were, before failing starts end the server."""
_OVERDUE_S = 5.0
"""How long past `drain_s` the supervisor waits for a worker to end itself."""


async def supervise(
    model_config: ModelConfig, batching: BatchingConfig, config: ServerConfig
) -> bool:
    """Serve like `serve`, from `config.workers` processes; one that dies is restarted.

    Returns:
        True if every worker that was alive at the first signal answered all calls that it accepted.

    Raises:
        DigitsError: the workers can't start, or keep dying until none is left.
    """
    with ExitStack() as stack:
        exporter = stack.enter_context(exporting(config))
        sockets: Sockets = {}

        def reserve(host: str, port: int) -> int:
            found = stack.enter_context(reserved_port(host, port, config.workers))
            number: int = found[0].getsockname()[1]
            sockets[host, number] = found
            return number

        port, http_port = reserve(config.host, config.port), None
        if config.http_port is not None:
            with optional_http(config):
                http_port = reserve(config.http_host, config.http_port)
        config = replace(config, port=port, http_port=http_port)
        arguments = (sockets, model_config, batching, replace(config, metrics_port=None))
        return await Supervisor(arguments, config, exporter).run()


class Supervisor:
    """Restarts workers, passes signals on to them, and adds up their counts."""

    def __init__(
        self, arguments: Arguments, config: ServerConfig, exporter: Exporter | None
    ) -> None:
        """Prepare on the running event loop; `run` starts the workers."""
        self._workers = Workers(arguments)
        self._sockets = list(itertools.chain(*arguments[0].values()))
        self._config = config
        self._all_ready = asyncio.Event()
        self._exporter = exporter
        self._is_draining = False
        self._outage_since_s = time.monotonic() - _MAX_OUTAGE_S
        """Since when no worker is ready, if none is; at start, failing starts are given up
        early."""

    async def run(self) -> bool:
        """Run the workers until SIGTERM or SIGINT, then drain; see `supervise`."""
        signals.install()
        stops = signals.queue_stops()
        signals.on_hang_up(self._reload)
        stopped = asyncio.create_task(stops.get())
        serving = asyncio.create_task(self._serve())
        try:
            await asyncio.wait((stopped, serving), return_when=asyncio.FIRST_COMPLETED)
            if serving.done():
                serving.result()  # it ends only by an error, which this raises
            serving.cancel()
            return await self._drain(stops)
        finally:
            self._workers.signal(signal.SIGKILL)

    def _reload(self) -> None:
        """Pass SIGHUP on: each worker looks, and logs what it found."""
        notify("RELOADING=1")
        self._workers.signal(signal.SIGHUP)
        notify("READY=1")

    async def _serve(self) -> None:
        """Keep a worker in every place until cancelled; the first failure ends all."""
        places = map(self._keep, range(self._config.workers))
        works = self._announce(), keep_watchdog_fed(partial(asyncio.sleep, 0)), *places
        tasks = [asyncio.create_task(work) for work in works]
        try:
            await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _announce(self) -> None:
        """Once all workers are ready, open the metrics page and print the ready line."""
        await self._all_ready.wait()
        config, metrics_address = self._config, "off"
        if self._exporter is not None:
            loop = asyncio.get_running_loop()
            self._exporter.serve(partial(self._workers.report_from_thread, loop), self._is_serving)
            metrics_address = self._exporter.address
        more: dict[str, object] = {"workers": config.workers}
        if config.http_port is not None:
            scheme = "https" if config.security.has_tls else "http"
            more["http"] = f"{scheme}://{with_port(config.http_host, config.http_port)}"
        report, address = await self._workers.report(), with_port(config.host, config.port)
        announce(report, address, metrics_address, config.log_format, **more)

    def _is_serving(self) -> bool:
        return self._workers.is_serving and not self._is_draining

    async def _keep(self, place: int) -> None:
        """Keep a worker running in one place.

        Raises:
            DigitsError: it couldn't start and reported the reason, or workers keep dying and none
                is left in any place.
        """
        backoff = Backoff()
        while True:
            worker = self._workers.start(place)
            worker.on_ready = self._count_ready
            exit_code = await self._end_of(worker, place)
            self._workers.remove(place)
            if worker.report is not None and not self._workers.num_ready:
                self._outage_since_s = time.monotonic()
                refuse_callers(self._sockets)
            if worker.error is not None and not self._all_ready.is_set():
                raise worker.error
            reason = str(worker.error or f"exit code {exit_code}")
            delay_s = backoff.delay_s(worker.lived_s)
            if self._is_hopeless(backoff):
                raise Unavailable(
                    f"worker {place} died {backoff.num_deaths} times in a row ({reason}), "
                    "and no other one serves"
                )
            self._workers.dead.restarts += 1
            _log.warning("worker %d died (%s), restart in %.1f s", place, reason, delay_s)
            await asyncio.sleep(delay_s)

    async def _end_of(self, worker: Worker, place: int) -> int:
        """Wait for the end of a worker, or end it if it is frozen; return its exit code."""
        while not (await asyncio.wait([worker.ended], timeout=LOOK_S))[0]:
            if worker.is_frozen():
                _log.warning("worker %d is frozen, it is ended and restarted", place)
                worker.signal(signal.SIGKILL)
                await asyncio.wait([worker.ended])
        return worker.ended.result()

    def _count_ready(self) -> None:
        if self._all_ready.is_set():
            _log.info("worker restarted, %d serving", self._workers.num_ready)
        elif self._workers.num_ready == self._config.workers:
            self._all_ready.set()

    def _is_hopeless(self, backoff: Backoff) -> bool:
        """Return whether to give up: none is ready, and they crash or fail to start for long."""
        if self._workers.num_ready:
            return False
        outage_s = time.monotonic() - self._outage_since_s
        return backoff.is_crash_loop or (backoff.is_death_loop and outage_s >= _MAX_OUTAGE_S)

    async def _drain(self, stops: "asyncio.Queue[int]") -> bool:
        """Drain all workers; a second signal, or a worker that hangs, ends them by force."""
        self._is_draining = True
        notify("STOPPING=1")
        for sock in self._sockets:
            sock.close()  # so that the ports close with the last worker
        ended = asyncio.gather(*(worker.ended for worker in self._workers.alive))
        self._workers.signal(signal.SIGTERM)
        forced = asyncio.create_task(stops.get())
        timeout_s = self._config.drain_s + _OVERDUE_S
        await asyncio.wait((ended, forced), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            _log.warning(
                "stopped by force: %s", "second signal" if forced.done() else "a worker hangs"
            )
            return False
        # One that was still starting had no calls, and is ended by the signal itself.
        return set(ended.result()) <= {0, -signal.SIGTERM}
