"""Models behind one port: all services on one transport, health, metrics, self-test."""

import asyncio
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from serving import applications
from serving.catalog.catalog import Catalog
from serving.config import ServerConfig
from serving.digits.protocol import methods as digits_v1
from serving.digits.protocol.methods import digits_methods
from serving.errors import ConfigurationError, Unavailable
from serving.protocols.health import Health
from serving.protocols.oip import inference_pb
from serving.protocols.oip.methods import Queries, inference_methods
from serving.router import Route, Router
from serving.server.self_test import SelfTest
from serving.system.process import Usage, limit_free_memory
from serving.telemetry.report import Report, Served, State
from serving.transports import open_transport

_log = logging.getLogger(__name__)


@contextmanager
def exporting(config: ServerConfig) -> Iterator[Any]:
    """Open the metrics port; None if the configuration disables it."""
    if config.metrics_port is None:
        yield None
        return
    from serving.server.exporter import Exporter  # HTTP/1.1, which gRPC does without

    exporter = Exporter(config.metrics_host, config.metrics_port, config.http_host_names)
    try:
        yield exporter
    finally:
        exporter.close()


@contextmanager
def optional_http(config: ServerConfig) -> Iterator[None]:
    """Log a warning if the port of HTTP can't be bound in this block and is optional."""
    try:
        yield
    except (ConfigurationError, Unavailable) as err:
        if not config.http_is_optional:
            raise
        _log.warning("HTTP is off: %s; choose another port with --http-port", err)


class Server:
    """Models behind one port."""

    def __init__(
        self, router: Router, config: ServerConfig, exporter: Any = None,
        catalog: Catalog | None = None,
    ) -> None:  # fmt: skip
        """Prepare on the running event loop; the caller closes router and exporter.

        Raises:
            ConfigurationError: the transport, a certificate or a token can't be used.
        """
        self._router = router
        self._exporter = exporter
        self.config = config
        self.transport = "h2" if config.transport == "auto" else config.transport
        services: dict[str, Callable[[], str]] = {
            digits_v1.SERVICE: self._classifier_name, inference_pb.SERVICE: str,
        }  # fmt: skip
        self.health = Health(services, lambda: router.routes)
        allow_control = config.allow_repository_control
        queries = Queries(router, self.health, catalog, allow_control=allow_control)
        methods = [
            *digits_methods(router, self.transport),
            *inference_methods(router, queries),
            *self.health.methods(),
        ]
        if config.reflection:
            from serving.protocols.reflection import reflection_methods

            methods += reflection_methods({digits_v1.SERVICE: digits_v1.FILE})
        self._transport = open_transport(router, methods, config)
        self._http = _http_server(router, queries, config)
        self._self_test: asyncio.Task[None] | None = None
        self.address = ""
        self.metrics_address = "off" if exporter is None else exporter.address

    @property
    def http_url(self) -> str | None:
        """Where HTTP answers, such as "http://127.0.0.1:8080"; None if it is off."""
        return None if self._http is None else self._http.url

    async def start(self) -> None:
        """Bind the port and start to answer.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        limit_free_memory()
        self.address = await self._transport.start()
        if self._http is not None:
            self._http.start(self._transport.loop)
        self.health.set_serving(True)
        if self._exporter is not None:
            self._exporter.serve(self.report, self._state)
        if interval_s := self.config.self_test_interval_s:
            test = SelfTest(self._router, self.health, interval_s)
            self._self_test = asyncio.create_task(test.run())

    def _classifier_name(self) -> str:
        route = self._router.classifier
        return "" if route is None else route.name

    def _state(self) -> State:
        return State(self.health.is_serving, self.health.stuck_models)

    def report(self) -> Report:
        """Return the served models and all counts; from any thread."""
        router = self._router
        return Report(
            models=tuple(self._served(route) for route in router.routes.values()),
            batching=router.batching,
            num_waiting=router.num_waiting,
            queue_capacity=router.batching.queue_capacity,
            num_calls=self._transport.num_calls,
            is_serving=self.health.is_serving,
            stuck_models=self.health.stuck_models,
            usage=Usage.now(),
            counts=router.metrics.snapshot(),
        )

    def _served(self, route: Route) -> Served:
        model = route.model
        num_classes = 0 if model.signature is None else model.signature.num_classes
        return Served(
            route.name, model.version, model.device, model.precision, self.transport, num_classes
        )

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
    from serving.digits.http import application as digits
    from serving.transports.http.http_server import HttpServer

    others = applications.installed(applications.HTTP).values()
    with optional_http(config):
        return HttpServer(router, queries, config, (digits, *others))
    return None
