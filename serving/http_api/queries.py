"""What a server says of itself and its models over HTTP; `inference.py` runs them."""

from collections.abc import Callable, Iterator
from typing import Any

from serving.errors import Unsupported
from serving.oip import infer, rest
from serving.oip.methods import UNSUPPORTED
from serving.oip.queries import Fields, Queries
from serving.router import Router
from serving.transports.http_port import Exchange
from serving.transports.http_routing import Answer, Endpoint, as_json
from serving.transports.pools import Pool

MODEL_PATHS = ("/v2/models/{name}", "/v2/models/{name}/versions/{version}")
"""Where a model is, with and without a version."""


class HttpQueries:
    """Answers the paths that run no model."""

    def __init__(self, router: Router, queries: Queries, control: Pool) -> None:
        """Tell of the models of `router`; they are loaded and unloaded on `control`."""
        self._router, self._queries, self._control = router, queries, control

    def routes(self) -> list[Endpoint]:
        """Return the routes."""
        queries = self._queries
        routes = [
            Endpoint("GET", "/v2", _answering(queries.server_metadata)),
            Endpoint("GET", "/v2/health/live", _answering(lambda: {"live": True})),
            Endpoint("GET", "/v2/health/ready", _whether(queries.is_ready)),
            Endpoint("GET", "/v2/models/stats", self._statistics),
            Endpoint("POST", "/v2/repository/index", self._index, 4096),
            *(
                Endpoint("POST", f"/v2/repository/models/{{name}}/{verb}", self._change(change))
                for verb, change in (("load", queries.load_model), ("unload", queries.unload_model))
            ),
            *(Endpoint(method, path, _refusing(text)) for method, path, text in _unsupported()),
        ]
        for model in MODEL_PATHS:
            routes += [
                Endpoint("GET", model, self._metadata),
                Endpoint("GET", f"{model}/ready", _whether(queries.is_model_ready)),
                Endpoint("GET", f"{model}/config", _answering(queries.model_config)),
                Endpoint("GET", f"{model}/stats", self._statistics),
            ]
        return [
            *routes,
            # KServe's first protocol, for clients that still speak it.
            Endpoint("GET", "/v1/models", self._names),
            Endpoint("GET", "/v1/models/{name}", self._ready),
        ]

    async def _metadata(self, call: Exchange) -> Answer:
        """Describe a model: the protocol's fields, and all other facts as its parameters."""
        facts = self._queries.facts(**call.plan.params)
        return as_json(self._queries.model_metadata(**call.plan.params) | {"parameters": facts})

    async def _statistics(self, call: Exchange) -> Answer:
        return as_json({"model_stats": self._queries.model_statistics(**call.plan.params)})

    async def _index(self, call: Exchange) -> Answer:
        only_ready = bool(call.body) and rest.read_index(call.body)
        return as_json(self._queries.index(only_ready=only_ready))

    def _change(self, change: Callable[[str, list[str]], Fields]) -> Any:
        """Load or unload a model."""

        async def handler(call: Exchange) -> Answer:
            parameters = rest.read_parameters(call.body)
            work = change, call.plan.params["name"], parameters
            return as_json(await call.work(*work, pool=self._control))

        return handler

    async def _names(self, _: Exchange) -> Answer:
        return as_json({"models": [*self._router.routes]})

    async def _ready(self, call: Exchange) -> Answer:
        name = call.plan.params["name"]
        infer.find(self._router, name, "")
        return as_json({"name": name, "ready": True})


def _answering(query: Callable[..., Any]) -> Any:
    """Answer a query by what it returns."""

    async def handler(call: Exchange) -> Answer:
        return as_json(query(**call.plan.params))

    return handler


def _whether(query: Callable[..., bool]) -> Any:
    """Answer whether something is ready, by the status, too."""

    async def handler(call: Exchange) -> Answer:
        is_ready = query(**call.plan.params)
        return as_json({"ready": is_ready}, 200 if is_ready else 503)

    return handler


def _unsupported() -> Iterator[tuple[str, str, str]]:
    """Yield method and path of the extensions that there are not, and why."""
    memory, trace, log = UNSUPPORTED
    yield "GET", "/v2/{kind}sharedmemory/status", memory
    yield "GET", "/v2/{kind}sharedmemory/region/{name}/status", memory
    yield "POST", "/v2/{kind}sharedmemory/unregister", memory
    yield "POST", "/v2/{kind}sharedmemory/region/{name}/{verb}", memory
    for method in ("GET", "POST"):
        yield method, "/v2/trace/setting", trace
        yield method, "/v2/models/{name}/trace/setting", trace
        yield method, "/v2/logging", log


def _refusing(text: str) -> Any:
    async def handler(call: Exchange) -> Answer:
        raise Unsupported(text)

    return handler
