"""The server: models behind one port, health, the self-test; and its life: load, listen, drain."""

import asyncio
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

from serving import applications
from serving.config import ServerConfig
from serving.oip import inference_pb, large_messages
from serving.oip.examples import Access, Example
from serving.oip.methods import inference_methods
from serving.oip.queries import Queries
from serving.protocols.grpc_service import GrpcService
from serving.protocols.health import Health
from serving.protocols.method import BatchedStream, BatchedUnary
from serving.router import Route, Router
from serving.server.ready_line import access_of
from serving.server.self_test import SelfTest
from serving.system.usage import Usage
from serving.telemetry.metrics import MAX_LABELS, Readiness, Report, Served
from serving.transports import open_transport
from serving.transports.pools import decoders
from serving.transports.port_limits import max_message_bytes
from serving.versions.catalog import Catalog

_log = logging.getLogger(__name__)


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
        pool = decoders(router, (large_messages.__name__,))
        self._missing: Callable[[], Mapping[str, str]] = (
            dict if catalog is None else lambda: catalog.missing
        )
        self.health = Health(services, lambda: router.routes, self._missing)
        router.on_block = lambda: self.health.set_blocked(router.blocked_models)
        allow_control = config.allow_repository_control
        queries = Queries(
            router,
            self.health,
            catalog,
            allow_control=allow_control,
            max_message_bytes=max_message_bytes(router, config),
        )
        of_others = [each for service in others for each in service.methods(router, self.transport)]
        methods = [
            *inference_methods(router, queries, pool),
            *self.health.methods(),
            *of_others,
        ]
        if config.reflection:
            # Late: reflection is off by default.
            from serving.protocols.reflection import reflection_methods

            methods += reflection_methods({each.SERVICE: each.FILE for each in others})
        self._transport = open_transport(router, methods, config)
        self._http = _http_server(router, queries, config)
        batched = (each for each in of_others if isinstance(each, BatchedUnary | BatchedStream))
        over_http = () if self._http is None else self._http.method_names
        self._methods = (*(each.name for each in batched), *over_http)
        self._self_test: asyncio.Task[None] | None = None
        self.address = ""
        self._access = Access(self.address)
        self.metrics_address = "off" if exporter is None else exporter.address

    @property
    def http_url(self) -> str | None:
        """Where HTTP answers, such as "http://127.0.0.1:8080"; None if it is off."""
        return None if self._http is None else self._http.url

    @property
    def num_calls(self) -> int:
        """Calls in progress; see the transports."""
        return self._transport.num_calls

    async def start(self) -> None:
        """Bind the port and start to answer.

        Raises:
            ConfigurationError: the address can't be bound.
        """
        self.address = await self._transport.start()
        self._access = access_of(self.config.security, self.address)
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
        missing = self._missing()
        stuck = self.health.stuck_models | self.health.blocked_models | missing.keys()
        return Readiness(self.health.is_serving, stuck, {**missing, **self._waiting()})

    def _waiting(self) -> dict[str, str]:
        """Return the newer versions that are not served, and why."""
        routes = self._router.routes.values()
        return {
            f"{route.name}/{version}": reason
            for route in routes
            for version, reason in route.versions.waiting.items()
        }

    def report(self) -> Report:
        """Return the served models and all counts; from any thread."""
        router = self._router
        return Report(
            methods=self._methods,
            models=tuple(each for route in router.routes.values() for each in self._served(route)),
            batching=router.batching,
            queues=router.queues(),
            num_calls=self._transport.num_calls,
            is_serving=self.health.is_serving,
            stuck_models=self._state().stuck_models,
            usage=Usage.now(),
            counts=router.metrics.snapshot(),
            request=next(map(self._request, router.routes.values()), ""),
            handlers=router.handlers(),
            waiting=self._waiting(),
            missing=dict(sorted(self._missing().items())),
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
                None if model.answers is None else model.answers.names[:MAX_LABELS],
                info.max_batch_size,
                info.max_request_rows,
            )

    def _request(self, route: Route) -> str:
        model = route.model
        example = Example(route.name, "", model.tensors, model.sample_shapes, self._access)
        return example.shell()

    def block(self, blocked: Mapping[int, float]) -> None:
        """Refuse the calls of some versions; see `Router.block`. From any thread."""
        owner = self._router.owner
        assert owner is not None
        owner.post(partial(self._block, blocked))

    def stop_batching(self, versions: frozenset[int]) -> None:
        """Run each call of some versions alone; see `Router.stop_batching`. From any thread."""
        owner = self._router.owner
        assert owner is not None
        owner.post(partial(self._router.stop_batching, versions))

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
        await asyncio.to_thread(self._router.close_pool)
        if self._http is not None:
            await asyncio.to_thread(self._http.stop)


def _http_server(router: Router, queries: Queries, config: ServerConfig) -> Any:
    if config.http_port is None:
        return None
    # Late: HTTP may be off.
    from serving.http_api import pictures
    from serving.http_api.http_server import HttpServer

    hung_in = applications.installed(applications.HTTP).values()
    return HttpServer(router, queries, config, (pictures, *hung_in))
