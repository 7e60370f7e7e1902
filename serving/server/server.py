"""The server: models behind one port, health, the self-test; and its life: load, listen, drain."""

import asyncio
import gc
import ipaddress
import json
import logging
import math
import signal
import sys
import time
from collections.abc import Callable, Coroutine, Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from functools import partial
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np

from serving import applications
from serving.batching.awaited import AsyncCaller, submit
from serving.catalog import Catalog
from serving.config import BatchingConfig, LogFormat, ModelConfig, ServerConfig, TransportName
from serving.errors import ConfigurationError, Overloaded, ServingError, Unavailable
from serving.model.acceptance import GOLDEN_TOLERANCE
from serving.protocols.grpc_service import GrpcService
from serving.protocols.health import Health
from serving.protocols.method import Rows
from serving.protocols.oip import inference_pb
from serving.protocols.oip.examples import Access, Example
from serving.protocols.oip.methods import Queries, inference_methods
from serving.router import Route, Router
from serving.system import signals
from serving.system.host import Host, first_free
from serving.system.process import Usage, limit_free_memory, waited_for_cores_s
from serving.system.signals import keep_watchdog_fed, notify
from serving.telemetry import logs
from serving.telemetry.metrics import Readiness, Report, Served
from serving.transports import open_transport
from serving.transports.connections import max_message_bytes

# The self-test

_MAX_EXCUSED_S = 60.0
"""How long tests may fail for want of cores."""
_log = logging.getLogger(__name__)


class _OpenRuns(NamedTuple):
    """The runs of a model's versions that go on now, as their owner sees them."""

    oldest_s: float
    """When the oldest began, in monotonic seconds; infinite if there is none."""
    max_run_s: float
    """How long one may take until it is ended."""


class SelfTest:
    """Checks at intervals that the loop has turns, and that each model answers rightly."""

    def __init__(self, router: Router, health: Health, interval_s: float) -> None:
        """Prepare; `run` starts it.

        Args:
            router: the models; those with golden samples are sent them.
            health: gets the results.
            interval_s: seconds between tests, and how long an answer may take.
        """
        self._router = router
        self._health = health
        self._interval_s = interval_s
        self._trouble: str | None = None
        """What is wrong with the server as a whole."""
        self._num_tests = 0
        self._waited_s = 0.0
        self._excused_s = 0.0

    async def run(self) -> None:
        """Test forever."""
        while True:
            self._waited_s = waited_for_cores_s()
            await asyncio.sleep(self._interval_s)
            routes = self._router.routes
            answers = await asyncio.gather(*map(self._wrong_answer, routes.values()))
            wrong = {name: text for name, text in zip(routes, answers, strict=True) if text}
            self._note(*await self._look(routes, wrong))

    def _note(self, trouble: str | None, models: Mapping[str, str]) -> None:
        for name in models.keys() - self._health.stuck_models:
            _log.error("model %s is NOT_SERVING: %s", name, models[name])
        for name in self._health.stuck_models - models.keys():
            _log.info("model %s is SERVING again", name)
        if trouble and not self._trouble:
            _log.error("self-test failed, health is NOT_SERVING: %s", trouble)
        elif self._trouble and not trouble:
            _log.info("self-test passed, health is SERVING")
        is_changed = bool(trouble) != bool(self._trouble)
        self._trouble = trouble
        self._health.set_stuck(models)
        if is_changed:
            self._health.set_serving(trouble is None)

    async def _look(
        self, routes: Mapping[str, Route], wrong: dict[str, str]
    ) -> tuple[str | None, dict[str, str]]:
        """Return the trouble of the server, and of each model."""
        if self._router.owner is None:
            return None, {}
        seconds = f"no answer within {self._interval_s:g} s"
        try:
            runs = await asyncio.wait_for(self._runs(routes), self._interval_s)
        except TimeoutError:
            return (None, wrong) if self._is_excused() else (seconds, wrong)
        now_s, models = time.monotonic(), dict(wrong)
        for name, route in routes.items():
            # The golden sample waits for such a run; without one, a run may take as long as it may.
            is_tested = route.signature is not None
            most_s = 0.0 if is_tested else runs[name].max_run_s
            if now_s - runs[name].oldest_s > most_s + self._interval_s:
                models.setdefault(name, seconds if is_tested else f"a run of over {most_s:g} s")
        if models.keys() == wrong.keys():
            self._excused_s = 0.0
        elif self._is_excused():
            models = wrong
        if models and models.keys() == routes.keys():
            return next(iter(models.values())), models
        return None, models

    async def _runs(self, routes: Mapping[str, Route]) -> dict[str, _OpenRuns]:
        """Look at the models' runs on the thread that they belong to: this shows that it lives."""
        loop, owner = asyncio.get_running_loop(), self._router.owner
        assert owner is not None
        found: asyncio.Future[dict[str, _OpenRuns]] = loop.create_future()

        def look() -> None:
            runs = {}
            for name, route in routes.items():
                batchers = route.batchers.values()
                oldest_s = min((each.oldest_run_s for each in batchers), default=math.inf)
                max_run_s = max((each.max_run_s for each in batchers), default=0.0)
                runs[name] = _OpenRuns(oldest_s, max_run_s)
            loop.call_soon_threadsafe(settle, runs)

        def settle(runs: dict[str, _OpenRuns]) -> None:
            if not found.done():  # else it came too late
                found.set_result(runs)

        owner.post(look)
        return await found

    def _is_excused(self) -> bool:
        """Return whether this process is short of cores, which excuses it for a while.

        It is if its threads have waited for one half of the time.
        """
        waited_s, self._waited_s = self._waited_s, waited_for_cores_s()
        self._excused_s += self._interval_s
        is_starved = self._waited_s - waited_s >= self._interval_s / 2
        return is_starved and self._excused_s <= _MAX_EXCUSED_S

    async def _wrong_answer(self, route: Route) -> str | None:
        """Send a classifier one of its golden samples; return what is wrong with the answer.

        None, too, if there is no answer: the model may only be busy.
        """
        model, owner = route.model, self._router.owner
        target = route.batchers.get(model.version)
        if route.signature is None or owner is None or target is None:  # a reload came between
            return None
        sample = self._num_tests % len(model.manifest.golden_images)
        self._num_tests += 1
        image = model.manifest.golden_images[sample].tobytes()
        call = submit(owner, AsyncCaller(""), image, Rows(target, None, 1))
        try:
            ((probabilities,), result), _ = await asyncio.wait_for(call, self._interval_s)
        except (Overloaded, TimeoutError, Unavailable):  # or it drains
            return None
        except ServingError as err:
            return str(err)
        if result.version != model.version:  # a reload came between; that version was checked
            return None
        expected = model.manifest.golden_probabilities[model.precision][sample]
        difference = np.abs(probabilities[0] - expected).max()
        if difference <= GOLDEN_TOLERANCE:
            return None
        return f"golden sample {sample} is answered wrongly, off by {difference:.2g}"


# The server


@contextmanager
def exporting(config: ServerConfig) -> Iterator[Any]:
    """Open the metrics port; None if the configuration disables it."""
    if config.metrics_port is None:
        yield None
        return
    from serving.server.exporter import Exporter  # HTTP/1.1, which gRPC does without

    host, names = config.metrics_host, config.http_host_names
    ports = config.ports_to_try("metrics_port")
    exporter = first_free(lambda port: Exporter(host, port, names), ports, "--metrics-port")
    try:
        yield exporter
    finally:
        exporter.close()


class Server:
    """Models behind one port."""

    def __init__(
        self,
        router: Router,
        config: ServerConfig,
        exporter: Any = None,
        catalog: Catalog | None = None,
    ) -> None:
        """Prepare on the running event loop; the caller closes router and exporter.

        Raises:
            ConfigurationError: the transport, a certificate or a token can't be used.
        """
        self._router = router
        self._exporter = exporter
        self.config = config
        self.transport = "h2" if config.transport == "auto" else config.transport
        others: Iterable[GrpcService] = applications.installed(applications.GRPC).values()
        services: dict[str, Callable[[], str]] = {
            inference_pb.SERVICE: str,
            **{each.SERVICE: partial(each.model_name, router) for each in others},
        }
        self.health = Health(services, lambda: router.routes)
        allow_control = config.allow_repository_control
        queries = Queries(
            router,
            self.health,
            catalog,
            allow_control=allow_control,
            max_message_bytes=max_message_bytes(router, config),
        )
        methods = [
            *inference_methods(router, queries),
            *self.health.methods(),
            *(each for service in others for each in service.methods(router, self.transport)),
        ]
        if config.reflection:
            from serving.protocols.reflection import reflection_methods

            methods += reflection_methods({each.SERVICE: each.FILE for each in others})
        self._transport = open_transport(router, methods, config)
        self._http = _http_server(router, queries, config)
        self._self_test: asyncio.Task[None] | None = None
        self.address = ""
        self.metrics_address = "off" if exporter is None else exporter.address

    @property
    def http_url(self) -> str | None:
        """Where HTTP answers, such as "http://127.0.0.1:8080"; None if it is off."""
        return None if self._http is None else self._http.url

    @property
    def waiting_versions(self) -> list[str]:
        """Newer versions that are not served by themselves, such as "iris/4"."""
        routes = self._router.routes.items()
        return [f"{name}/{version}" for name, each in routes for version in each.versions.waiting]

    async def start(self) -> None:
        """Bind the port and start to answer.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        limit_free_memory()
        self.address = await self._transport.start()
        if self._http is not None:
            self._http.start(self._transport.loop, self.address)
            await self._http.warm_up()
        self.health.set_serving(True)
        if self._exporter is not None:
            self._exporter.serve(self.report, self._state)
        if interval_s := self.config.self_test_interval_s:
            test = SelfTest(self._router, self.health, interval_s)
            self._self_test = asyncio.create_task(test.run())

    def _state(self) -> Readiness:
        stuck = self.health.stuck_models | self.health.blocked_models
        return Readiness(self.health.is_serving, stuck)

    def report(self) -> Report:
        """Return the served models and all counts; from any thread."""
        router = self._router
        return Report(
            models=tuple(each for route in router.routes.values() for each in self._served(route)),
            batching=router.batching,
            num_waiting=router.num_waiting,
            queue_capacity=router.batching.queue_capacity,
            num_calls=self._transport.num_calls,
            is_serving=self.health.is_serving,
            stuck_models=self._state().stuck_models,
            usage=Usage.now(),
            counts=router.metrics.snapshot(),
            request=next(map(self._request, router.routes.values()), ""),
        )

    def _served(self, route: Route) -> Iterator[Served]:
        versions = route.versions
        canary = versions.canary.version if versions.canary else None
        roles = {versions.default_version: "default", canary: "canary"}
        for version, model in versions.versions.items():
            num_classes = 0 if model.signature is None else model.signature.num_classes
            facts = version, model.device, model.precision, self.transport
            info = model.describe(self._router.batching)
            yield Served(
                route.name,
                *facts,
                roles.get(version, ""),
                num_classes,
                info.max_batch_size,
                info.max_request_rows,
            )

    def _request(self, route: Route) -> str:
        model, security = route.model, self.config.security
        access = Access(self.address, has_tls=security.has_tls, has_tokens=security.has_tokens)
        example = Example(route.name, "", model.tensors, model.sample_shapes, access)
        return example.shell()

    def block(self, blocked: Mapping[int, float]) -> None:
        """Refuse the calls of some versions; see `Router.block`. From any thread."""
        owner = self._router.owner
        assert owner is not None
        owner.post(partial(self._block, blocked))

    def _block(self, blocked: Mapping[int, float]) -> None:
        self._router.block(blocked)
        self.health.set_blocked(self._router.blocked_models)

    async def beat(self) -> None:
        """Return once the loop that answers calls has had a turn; never if it hangs."""
        await self._transport.beat()

    async def drain(self) -> bool:
        """Stop without losing an accepted call.

        Health turns NOT_SERVING, then new calls are refused as UNAVAILABLE while the port still
        listens, and the port closes last.

        Returns:
            False if `drain_s` seconds passed before every accepted call was answered; the server
            goes on then.
        """
        self._end_self_test()  # first: nothing may set SERVING from here on
        self.health.set_serving(False)
        if not await self._transport.drain(self.config.drain_s):
            return False
        await self.stop(grace_s=1.0)
        return True

    def _end_self_test(self) -> None:
        if self._self_test is not None:
            self._self_test.cancel()

    async def stop(self, grace_s: float) -> None:
        """Close the port and cut off pending calls; `drain` first to lose none."""
        self._end_self_test()
        await self._transport.stop(grace_s)
        if self._http is not None:
            await asyncio.to_thread(self._http.stop)


def _http_server(router: Router, queries: Queries, config: ServerConfig) -> Any:
    if config.http_port is None:
        return None
    from serving.http_api import pictures
    from serving.http_api.http_server import HttpServer

    hung_in = applications.installed(applications.HTTP).values()
    return HttpServer(router, queries, config, (pictures, *hung_in))


# Its life in this process


def announce(
    report: Report, address: str, metrics_address: str, log_format: LogFormat, **more: object
) -> None:
    """Print the ready line, which tools may parse, and for people where the page is, and a request.

    Of several models, names and versions are joined by commas, and so are other facts that differ.
    Limits are those in effect: a model's own settings may lower the server's.
    """
    models = [served for served in report.models if served.role == "default"]
    facts = {
        "model": ",".join(served.name for served in models),
        "version": ",".join(served.version for served in models),
        "precision": ",".join(dict.fromkeys(served.precision for served in models)),
        "device": ",".join(dict.fromkeys(served.device for served in models)),
        "transport": models[0].transport,
        "address": address,
        "metrics": metrics_address,
        "max_request_rows": _each(served.max_request_rows for served in models),
        "max_batch_size": _each(served.max_batch_size for served in models),
        **more,
    }
    if log_format == "json":
        line = json.dumps({"message": "serving", **facts})
    else:
        line = " ".join(["serving", *(f"{name}={fact}" for name, fact in facts.items())])
    logs.print_line(line, sys.stdout)  # the server serves even if nobody reads it
    if log_format == "text":
        for line in ([str(more["http"])] if "http" in more else []) + [report.request]:
            logs.print_line(f"try it: {line}", sys.stdout)
    notify("READY=1")


def _each(limits: Iterable[int | None]) -> int | str:
    """Return a limit of all models, or that of each in their order; "none" is no limit."""
    found = ["none" if limit is None else limit for limit in limits]
    return found[0] if len({*found}) == 1 else ",".join(map(str, found))


def _announce(server: Server) -> None:
    more = {} if server.http_url is None else {"http": server.http_url}
    if waiting := server.waiting_versions:
        more["waiting"] = ",".join(waiting)
    log_format = server.config.log_format
    announce(server.report(), server.address, server.metrics_address, log_format, **more)


async def serve(
    model_config: ModelConfig,
    batching: BatchingConfig,
    config: ServerConfig,
    on_ready: Callable[[Server], None] = _announce,
    host: Host | None = None,
    blocked: Mapping[int, float] = MappingProxyType({}),
) -> bool:
    """Load the model, serve it until SIGTERM or SIGINT, drain; SIGHUP looks for a new version.

    Args:
        model_config: the models.
        batching: sizes and limits.
        config: how to listen, reload and stop.
        on_ready: called once the server answers; by default it prints the ready line.
        host: guards the models' runs.
        blocked: versions that are not run at first; see `Router.block`.

    Returns:
        True if every accepted request was answered.

    Raises:
        ServingError: the server can't start; see `load_model` and `Server.start`.
    """
    with ExitStack() as stack:
        # First: it answers 503 while the rest starts.
        exporter = stack.enter_context(exporting(config))
        catalog = Catalog(model_config, batching.max_batch_size)
        router = Router(batching, config.workers, host)
        router.block(blocked)
        for name, versions in catalog.models.items():
            router.change(name, versions)
        catalog.count_reload = router.metrics.count_reload
        catalog.on_change = router.change  # before a call may load or unload a model
        stack.callback(router.close)
        server = Server(router, config, exporter, catalog)
        stops = signals.queue_stops()  # before the first call, so that every stop drains
        try:
            await server.start()
        except (ConfigurationError, Unavailable):
            await server.stop(grace_s=0)
            raise
        with catalog.following(config.reload_interval_s):
            signals.on_hang_up(partial(_reload, catalog))
            return await drain_when_signalled(server, stops, on_ready)


def _reload(catalog: Catalog) -> None:
    notify("RELOADING=1")
    catalog.request(partial(notify, "READY=1"))


def warn_if_exposed(config: ServerConfig) -> None:
    """Log a warning if other machines can reach a port without TLS or without tokens."""
    security = config.security
    missing = [] if security.has_tls else ["TLS"]
    if not security.has_tokens and security.tls_client_ca is None:
        missing.append("tokens")
    hosts = {config.host} if config.http_port is None else {config.host, config.http_host}
    for host in sorted(hosts):
        if missing and not _is_local(host):
            lacking = " and ".join(missing)
            _log.warning("other machines can reach %s without %s: see SECURITY.md", host, lacking)


def _is_local(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.startswith("unix:")


def run_loop(main: Coroutine[None, None, bool], transport: TransportName) -> bool:
    """Run `serve` on an event loop: grpcio answers its calls there, so it gets a faster one."""
    if transport != "grpcio":
        return asyncio.run(main)
    import uvloop

    return bool(uvloop.run(main))


async def drain_when_signalled(
    server: Server, stops: "asyncio.Queue[int]", on_ready: Callable[[Server], None]
) -> bool:
    """Serve until SIGTERM or SIGINT, then drain; a second signal ends the process, exit code 1.

    A worker ignores a second signal: it may get the first from the terminal or from systemd, and
    the same one from the supervisor, which ends its workers itself.

    Args:
        server: a started server.
        stops: the queue of signals; see `signals.queue_stops`.
        on_ready: called once signals are handled: the reader of the ready line may send one.

    Returns:
        True: every accepted request was answered. A drain that takes longer than `drain_s` ends the
        process too.
    """
    signals.install()
    gc.freeze()  # else each full collection looks at all that start-up made
    on_ready(server)
    watched = asyncio.create_task(keep_watchdog_fed(server.beat))
    _log.info("draining: %s", signal.Signals(await stops.get()).name)
    watched.cancel()
    notify("STOPPING=1")
    drain = asyncio.create_task(server.drain())
    is_alone = server.config.workers == 1
    forced = asyncio.create_task(stops.get() if is_alone else asyncio.Event().wait())
    await asyncio.wait((drain, forced), return_when=asyncio.FIRST_COMPLETED)
    if drain.done() and drain.result():
        forced.cancel()
        return True
    reason = "accepted calls took longer than --drain" if drain.done() else "second signal"
    _log.warning("stopped by force: %s", reason)
    return signals.end_process(1)
