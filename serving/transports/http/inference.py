"""The Open Inference Protocol v2 over HTTP, for tritonclient.http and KServe's clients."""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.errors import InvalidRequest
from serving.protocols.oip import infer, inference_pb, rest
from serving.protocols.oip.methods import Queries
from serving.protocols.oip.tensors import decode
from serving.router import Router
from serving.transports import max_message_bytes
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls, deadline_of

LENGTH_HEADER = "Inference-Header-Content-Length"
_JSON_BYTES = 4 << 20
"""The longest JSON: parsing it holds the GIL, some 50 ms for this many bytes. Larger requests send
their images as bytes."""


class Inference:
    """Answers the protocol's paths below /v2."""

    def __init__(self, router: Router, queries: Queries, calls: Calls, bodies: Bodies) -> None:
        """Serve the models of `router`; `queries` answers queries about them."""
        self._router = router
        self._queries = queries
        self._calls = calls
        self._bodies = bodies

    def routes(self) -> list[Route]:
        """Return the routes, with and without a version."""
        routes = [
            _get("/v2", self._query("ServerMetadata")),
            _get("/v2/health/live", self._query("ServerLive")),
            _get("/v2/health/ready", self._query("ServerReady", ready="ready")),
            _get("/v2/models/stats", self._query("ModelStatistics")),
            Route("/v2/repository/index", self._index, methods=["POST"]),
            *(Route(f"/v2/repository/models/{{model_name}}/{verb}", self._change(verb),
                    methods=["POST"]) for verb in ("load", "unload")),
        ]  # fmt: skip
        for model in ("/v2/models/{name}", "/v2/models/{name}/versions/{version}"):
            routes += [
                _get(model, self._query("ModelMetadata")),
                _get(f"{model}/ready", self._query("ModelReady", ready="ready")),
                _get(f"{model}/config", self._query("ModelConfig", inner="config")),
                _get(f"{model}/stats", self._query("ModelStatistics")),
                Route(f"{model}/infer", self._infer, methods=["POST"]),
            ]
        return routes

    def _query(
        self, name: str, *, ready: str | None = None, inner: str | None = None
    ) -> Callable[[Request], Awaitable[Response]]:
        """Answer a query by the method of this name; readiness by the status alone."""
        answer = self._queries.answers[name]

        async def handler(request: Request) -> Response:
            question = getattr(inference_pb, f"{name}Request")(**request.path_params)
            message = answer(question.SerializeToString())
            if ready is not None:
                is_ready = getattr(message, ready)
                return JSONResponse({"ready": is_ready}, 200 if is_ready else 503)
            return JSONResponse(rest.as_json(getattr(message, inner) if inner else message))

        return handler

    def _change(self, verb: str) -> Callable[[Request], Awaitable[Response]]:
        """Load or unload a model."""
        name = f"RepositoryModel{verb.capitalize()}"

        async def handler(request: Request) -> Response:
            question = getattr(inference_pb, f"{name}Request")(**request.path_params)
            answer = self._queries.answers[name]
            await asyncio.to_thread(answer, question.SerializeToString())
            return JSONResponse({})

        return handler

    async def _index(self, request: Request) -> Response:
        question = inference_pb.RepositoryIndexRequest()
        async with self._bodies.read(request, 4096) as body:
            if body:
                question.ready = rest.read_index(body)
        message = self._queries.answers["RepositoryIndex"](question.SerializeToString())
        return JSONResponse(rest.as_json(message)["models"])

    async def _infer(self, request: Request) -> Response:
        received_s = time.monotonic()
        deadline_s = deadline_of(request)
        name, version = request.path_params["name"], request.path_params.get("version", "")
        target, signature = infer.find(self._router, name, version)
        json_bytes, max_rows = _json_bytes(request), self._router.batching.max_request_images
        num_bytes = 0 if json_bytes is None else max_message_bytes(self._router)
        async with self._bodies.read(request, _JSON_BYTES + num_bytes) as body:
            statistics = self._queries.statistics
            with infer.counted_failure(statistics, name, target, received_s):
                message, form = rest.read_infer(body, json_bytes, name, version)
                inference = decode(message, signature, max_rows)
            del body, message
            encoder = infer.InferEncoder(
                target, None, inference, name, signature, lambda response: response,
                statistics, time.monotonic() - received_s,
            )  # fmt: skip
            timeout_s = inference.timeout_s
            left_s = math.inf if timeout_s is None else time.monotonic() + timeout_s
            call = self._calls.run(inference.message, encoder, request, min(deadline_s, left_s))
            response = await call
        content, json_bytes = rest.write_infer(response, form)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        headers = {LENGTH_HEADER: str(json_bytes)}
        return Response(content, headers=headers, media_type="application/octet-stream")


def _get(path: str, handler: Callable[[Request], Awaitable[Response]]) -> Route:
    return Route(path, handler, methods=["GET"])


def _json_bytes(request: Request) -> int | None:
    text = request.headers.get(LENGTH_HEADER)
    if text is None:
        return None
    if not text.isascii() or not text.isdecimal() or len(text) > 10 or int(text) > _JSON_BYTES:
        raise InvalidRequest(
            f"expected {LENGTH_HEADER} as bytes, at most {_JSON_BYTES}, got {text[:40]!r}"
        )
    return int(text)
