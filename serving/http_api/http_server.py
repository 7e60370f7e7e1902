"""The HTTP port: a listening socket of the loop that serves gRPC."""

import asyncio
import resource
from collections.abc import Sequence
from contextlib import suppress
from functools import partial

from serving.config import ServerConfig
from serving.errors import ServingError
from serving.http_api.http_application import Document, HttpApplication
from serving.http_api.inference import Inference
from serving.http_api.models_page import ModelsPage
from serving.http_api.openapi import openapi_document
from serving.http_api.pages import Pages, answered
from serving.http_api.queries import HttpQueries
from serving.oip.queries import Queries
from serving.router import Router
from serving.security.certificates import server_tls
from serving.security.tokens import token_check
from serving.system.addresses import first_free, with_port
from serving.system.listening import activated, bind
from serving.telemetry.access_log import open_access_log
from serving.transports.http_port import open_port
from serving.transports.http_routing import App, Endpoint, as_json
from serving.transports.loop import Loop
from serving.transports.pools import OneThread, Pool, decoders
from serving.transports.port import Port
from serving.transports.port_limits import PortLimits, max_buffered_bytes, max_message_bytes

_BACKLOG = 256
_MAX_CONNECTIONS = 1024
_SHARE_OF_FILES = 0.25
"""HTTP's share of the file descriptors."""
_MODULES = (
    "serving.http_api.inference",
    "serving.http_api.files_path",
    "serving.oip.large_messages",
)


class HttpServer:
    """Answers HTTP from `start` to `stop`."""

    def __init__(
        self,
        router: Router,
        queries: Queries,
        config: ServerConfig,
        applications: Sequence[HttpApplication] = (),
        limits: PortLimits | None = None,
    ) -> None:
        """Bind the port; `start` begins to answer.

        Args:
            router: the models.
            queries: answers queries about the server and its models.
            config: address, TLS and tokens.
            applications: paths and pages beside the protocol's.
            limits: of peers.

        Raises:
            ConfigurationError: the address can't be bound, a certificate or token can't be used, or
                an application can't do what the options say.
        """
        assert config.http_port is not None
        self._router = router
        self._queries = queries
        self._config = config
        self._modules = _MODULES + tuple(name for each in applications for name in each.MODULES)
        self._is_open = False
        self._models = ModelsPage(router, queries, config)
        self._routes = [*self._models.routes(), *_routes(router, config, applications)]
        self._limits = limits or PortLimits(
            max_message_bytes=max_message_bytes(router),
            max_connections=_max_connections(),
            max_buffered_bytes=max_buffered_bytes(router, config),
            message_s=30.0,
            idle_s=30.0,
        )
        self._tokens = token_check(config.security)
        self._log = open_access_log(config)
        self._tls = server_tls(config.security, "http/1.1")
        # From here on callers wait instead of being refused.
        self._socket = activated("http") or first_free(
            partial(bind, config.http_host, backlog=_BACKLOG),
            config.ports_to_try("http_port"),
            "--http-port",
        )
        scheme = "http" if self._tls is None else "https"
        self.address = with_port(config.http_host, self._socket.getsockname()[1])
        self.url = f"{scheme}://{self.address}"
        self.pool = decoders(router, self._modules)
        """Decodes pictures and JSON."""
        self._pools: list[Pool] = []
        self._started = self.pool.submit("", int)

    @property
    def method_names(self) -> list[str]:
        """The names by which calls of applications' paths are counted."""
        return [*dict.fromkeys(each.name for each in self._routes if each.name and each.is_work)]

    def start(self, loop: Loop, grpc_address: str = "") -> None:
        """Start to answer, on a loop that runs already, and that serves gRPC at an address."""
        self._models.grpc_address = grpc_address
        loop.call(lambda: loop.add(self._port(loop)))

    async def warm_up(self) -> None:
        """Wait until a process for pictures and JSON has started; for a while, if none can."""
        with suppress(ServingError):  # jobs say so, too
            await asyncio.wrap_future(self._started)

    def _port(self, loop: Loop) -> Port:
        config, router = self._config, self._router
        control = OneThread("control")
        self._pools.append(control)
        self._is_open = True
        routes = [
            *HttpQueries(router, self._queries, control).routes(),
            *Inference(router, config.max_json_bytes).routes(),
            *self._routes,
        ]
        names = (*config.http_host_names, config.http_host)
        app = App(routes, self._tokens, names, config.http_allow_origins)
        return open_port(
            loop, self._socket, app, router, self._limits, self.pool, tls=self._tls, log=self._log
        )

    def stop(self) -> None:
        """End what its loop, which has closed the port, does not."""
        if not self._is_open:
            self._socket.close()
        for pool in self._pools:
            pool.close()
        if self._log is not None:
            self._log.close()


def _routes(
    router: Router, config: ServerConfig, applications: Sequence[HttpApplication]
) -> list[Endpoint]:
    """Return the routes of applications, and of the pages and the document about all."""
    routes = [each for application in applications for each in application.routes(router, config)]
    paths: Document = {}
    schemas: Document = {}
    pages = Pages()
    for application in applications:
        described = application.describe(router, config)
        paths |= described[0]
        schemas |= described[1]
        pages.add(application)
    document = openapi_document(router, paths, schemas)
    routes.append(answered("/openapi.json", as_json(document)))
    return routes + pages.routes(document)


def _max_connections() -> int:
    """Return how many callers may be connected: gRPC and the files of models need descriptors."""
    most, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if most == resource.RLIM_INFINITY:
        return _MAX_CONNECTIONS
    return min(_MAX_CONNECTIONS, max(1, int(most * _SHARE_OF_FILES)))
