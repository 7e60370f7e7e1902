"""Several server processes on one port, and the supervisor that restarts them.

They share only the port; a connection is taken by one of those that have the fewest.
"""

import asyncio
import logging
import signal
import threading
import time
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from typing import Any

from serving.batching.spot_check import MOST_BATCHES
from serving.config import BatchingConfig, ModelConfig, ServerConfig
from serving.errors import ConfigurationError, Unavailable
from serving.processes.back_off import WORKER_DEATHS, BackOff
from serving.processes.end import End
from serving.server.crashes import Crashes
from serving.server.lifetime import exporting
from serving.server.ready_line import announce
from serving.server.worker import LOOK_S, Configs, Orders, Worker
from serving.system import signals
from serving.system.addresses import first_free, with_port
from serving.system.crash_record import number_of
from serving.system.listening import is_activated
from serving.system.shared_port import SharedPort, refuse_callers, reserved_port
from serving.system.systemd import keep_watchdog_fed, notify
from serving.telemetry.metrics import Counts, ModelLabel, Readiness, Report, total

_log = logging.getLogger(__name__)

_MAX_DEATHS = 5
"""Give up after this many consecutive deaths in one place, while no worker is ready."""
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
        ServingError: the workers can't start, or keep dying until none is left.
    """
    if is_activated():
        raise ConfigurationError("a socket of systemd's serves one process: leave out --workers")
    with ExitStack() as stack:
        exporter = stack.enter_context(exporting(config))
        ports: dict[tuple[str, int], SharedPort] = {}

        def reserve(host: str, port: int) -> int:
            found = stack.enter_context(reserved_port(host, port, config.workers))
            number: int = found.socket.getsockname()[1]
            ports[host, number] = found
            return number

        port, http_port = reserve(config.host, config.port), None
        if config.http_port is not None:
            ports_to_try = config.ports_to_try("http_port")
            http_port = first_free(partial(reserve, config.http_host), ports_to_try, "--http-port")
        config = replace(config, port=port, http_port=http_port, usual_ports=())
        configs = (model_config, batching, replace(config, metrics_port=None))
        return await Supervisor(ports, configs, config, exporter).run()


class Supervisor:
    """Restarts workers, passes signals on to them, and adds up their counts."""

    def __init__(
        self,
        ports: dict[tuple[str, int], SharedPort],
        configs: Configs,
        config: ServerConfig,
        exporter: Any,
    ) -> None:
        """Prepare on the running event loop; `run` starts the workers."""
        self._ports = ports
        self._configs = configs
        self._config = config
        self._exporter = exporter
        self._workers: dict[int, Worker] = {}
        """Workers that run, ready or not, by place."""
        self._dead = Counts()
        """The counts of the workers that died."""
        self._crashes = Crashes()
        self._alone: frozenset[int] = frozenset()
        """The versions of which each call runs alone, by their numbers."""
        self._labels: dict[int, ModelLabel] = {}
        """The versions that workers have served, by the numbers of crash records."""
        self._last: Report | None = None
        self._lock = threading.Lock()
        """Held while workers come and go, and while the counts of dead ones change."""
        self._all_ready = asyncio.Event()
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
            self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        for worker in self._workers.values():
            worker.signal(number)

    def _reload(self) -> None:
        """Pass SIGHUP on: each worker looks, and logs its result."""
        notify("RELOADING=1")
        self._signal(signal.SIGHUP)
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
            self._exporter.serve(self.report, self._state)
            metrics_address = self._exporter.address
        more: dict[str, object] = {"workers": config.workers}
        if config.http_port is not None:
            scheme = "https" if config.security.has_tls else "http"
            more["http"] = f"{scheme}://{with_port(config.http_host, config.http_port)}"
        address = with_port(config.host, config.port)
        announce(self.report(), address, metrics_address, config, **more)

    def report(self) -> Report:
        """Add up the last reports of all workers, a second old at most; from any thread."""
        with self._lock:
            reports = [worker.report for worker in self._workers.values() if worker.report]
            if not reports:
                assert self._last is not None, "no worker has been ready yet"
                reports = [self._last.ended()]
            return total(reports, self._dead)

    def _state(self) -> Readiness:
        """Return whether at least one worker is ready, and all that are ready are well."""
        ready = [worker for worker in list(self._workers.values()) if worker.report]
        is_well = bool(ready) and all(worker.is_serving for worker in ready)
        reports = [worker.report for worker in ready if worker.report]
        stuck = frozenset[str]().union(*(each.stuck_models for each in reports))
        reasons: dict[str, str] = {}
        for each in reports:
            reasons |= {**each.missing, **each.waiting}
        return Readiness(is_well and not self._is_draining, stuck, reasons)

    @property
    def _num_ready(self) -> int:
        return sum(worker.report is not None for worker in self._workers.values())

    async def _keep(self, place: int) -> None:
        """Keep a worker running in one place.

        Raises:
            ServingError: it couldn't start and reported the reason, or workers keep dying and none
                is left in any place.
        """
        deaths = BackOff(WORKER_DEATHS)
        while True:
            worker = Worker(
                self._ports, place, self._configs_now(), self._count_ready, self._orders
            )
            with self._lock:
                self._workers[place] = worker
            end = await self._end_of(worker, place)
            self._blame(worker, place)
            self._remove(place)
            if worker.error is not None and not self._all_ready.is_set():
                raise worker.error
            reason = str(worker.error or end)
            if worker.culprits:
                deaths.reset()
            delay_s = deaths.fail(worker.lived_s)
            outage_s = time.monotonic() - self._outage_since_s
            is_hopeless = worker.report is not None or outage_s >= _MAX_OUTAGE_S
            if deaths.num_failures >= _MAX_DEATHS and not self._num_ready and is_hopeless:
                raise Unavailable(
                    f"worker {place} died {deaths.num_failures} times in a row ({reason}), "
                    "and no other one serves"
                )
            with self._lock:
                self._dead.restarts += 1
            _log.warning("worker %d died (%s), restart in %.1f s", place, reason, delay_s)
            await asyncio.sleep(delay_s)

    def _configs_now(self) -> Configs:
        """Return the settings of a worker: one that starts again serves what it can."""
        if not self._all_ready.is_set():
            return self._configs
        model, batching, config = self._configs
        return replace(model, allow_missing=True), batching, config

    async def _end_of(self, worker: Worker, place: int) -> End:
        """Wait for the end of a worker, or end it if it is frozen; return how it has ended."""
        while not (await asyncio.wait([worker.ended], timeout=LOOK_S))[0]:
            if worker.is_frozen():
                _log.warning("worker %d is frozen, it is ended and restarted", place)
                worker.signal(signal.SIGKILL)
                await asyncio.wait([worker.ended])
            self._follow_mismatches()
        return worker.ended.result()

    def _blame(self, worker: Worker, place: int) -> None:
        """Have no worker run, for a while, the models whose run has ended a worker."""
        now_s = time.monotonic()
        for served in worker.report.models if worker.report else ():
            label = served.name, served.version
            self._labels[number_of(label)] = label
        for model in worker.culprits:
            number, rest_s = self._crashes.note(model, now_s)
            label = self._labels.get(model, ("?", "?"))
            with self._lock:  # the page's thread may be adding them up
                self._dead.crashes[label] += 1
            _log.error(
                "model %s version %s has ended worker %d (%s), crash %d: it is not run for %s",
                *label,
                place,
                worker.ended.result(),
                number,
                f"{rest_s:.0f} s" if number > 1 else "the time of a restart",
            )
            asyncio.get_running_loop().call_later(rest_s + 0.01, self._send_orders)
        if worker.culprits:
            self._send_orders()

    def _follow_mismatches(self) -> None:
        """Have all workers run the calls of a version alone whose rows depend on one another."""
        if not self._num_ready:
            return
        found = {
            number_of(label)
            for label, counts in self.report().counts.models.items()
            if counts.num_mismatches >= MOST_BATCHES
        }
        if not found <= self._alone:
            self._alone |= found
            self._send_orders()

    @property
    def _orders(self) -> Orders:
        return Orders(self._crashes.blocked(time.monotonic()), self._alone)

    def _send_orders(self) -> None:
        """Say to all workers which models they must not run now, or only alone."""
        for worker in self._workers.values():
            worker.order(self._orders)

    def _remove(self, place: int) -> None:
        with self._lock:
            for port in self._ports.values():
                port.share(place).note()
            if report := self._workers.pop(place).report:
                self._dead += report.counts
                self._last = report
        if report and not self._num_ready:
            self._outage_since_s = time.monotonic()
            for port in self._ports.values():
                refuse_callers(port.socket)

    def _count_ready(self) -> None:
        if self._num_ready == self._config.workers:
            self._crashes.end_pauses(time.monotonic())
            self._send_orders()
        if self._all_ready.is_set():
            _log.info("worker restarted, %d serving", self._num_ready)
        elif self._num_ready == self._config.workers:
            self._all_ready.set()

    async def _drain(self, stops: "asyncio.Queue[int]") -> bool:
        """Drain all workers; a second signal, or a worker that hangs, ends them by force."""
        self._is_draining = True
        notify("STOPPING=1")
        for port in self._ports.values():
            port.socket.close()  # so that the ports close with the last worker
        ended = asyncio.gather(*(worker.ended for worker in self._workers.values()))
        self._signal(signal.SIGTERM)
        forced = asyncio.create_task(stops.get())
        timeout_s = self._config.drain_s + _OVERDUE_S
        await asyncio.wait((ended, forced), timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
        if not ended.done():
            _log.warning(
                "stopped by force: %s", "second signal" if forced.done() else "a worker hangs"
            )
            return False
        # One that was still starting had no calls, and is ended by the signal itself.
        return {end.code for end in ended.result()} <= {0, -signal.SIGTERM}
