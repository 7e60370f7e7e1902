"""The Open Inference Protocol v2 over HTTP, for tritonclient.http and KServe's clients."""

import math
import time
from collections.abc import Awaitable, Callable

from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.classifier import Classifier
from serving.errors import DigitsError, InvalidRequest, ModelNotFound
from serving.protocols.oip import inference_pb, metadata, rest, tensors
from serving.protocols.oip.methods import Queries
from serving.protocols.oip.statistics import Answered, Run
from serving.transports.http.bodies import Bodies
from serving.transports.http.calls import Calls, deadline_of

LENGTH_HEADER = "Inference-Header-Content-Length"
_JSON_BYTES = 4 << 20
"""The longest JSON: parsing it holds the GIL, some 50 ms for this many bytes. Larger requests send
their images as bytes."""


class Inference:
    """Answers the protocol's paths below /v2."""

    def __init__(
        self, classifier: Classifier, queries: Queries, calls: Calls, bodies: Bodies
    ) -> None:
        """Serve `classifier`; `queries` answers queries about it."""
        self._classifier = classifier
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
        ]
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

    async def _index(self, request: Request) -> Response:
        question = inference_pb.RepositoryIndexRequest()
        async with self._bodies.read(request, 4096) as body:
            if body:
                question.ready = rest.read_index(body)
        message = self._queries.answers["RepositoryIndex"](question.SerializeToString())
        return JSONResponse(rest.as_json(message)["models"])

    async def _infer(self, request: Request) -> Response:
        received_s = time.monotonic()
        try:
            return await self._answer(request, received_s)
        except DigitsError as err:
            if not isinstance(err, ModelNotFound):  # it was for another model
                version = self._classifier.model_info().version
                self._queries.statistics.count_failure(version, time.monotonic() - received_s)
            raise

    async def _answer(self, request: Request, received_s: float) -> Response:
        deadline_s = deadline_of(request)
        info = self._classifier.model_info()
        name, version = request.path_params["name"], request.path_params.get("version", "")
        metadata.check_model(name, version, info)
        json_bytes, image_bytes = _json_bytes(request), info.signature.image_bytes
        num_pixel_bytes = 0 if json_bytes is None else info.max_request_images * image_bytes
        async with self._bodies.read(request, _JSON_BYTES + num_pixel_bytes) as body:
            message, form = rest.read_infer(body, json_bytes, name, version)
            del body
            inference = tensors.decode(message, image_bytes, info.max_request_images)
            answer = await self._calls.classify(
                inference.pixels,
                inference.num_images,
                request,
                min(deadline_s, _after(inference.timeout_s)),
            )
        batch, version = answer.batch, answer.batch.model.version
        response = tensors.encode(inference, answer.probabilities, name, version)
        content, json_bytes = rest.write_infer(response, form)
        answered = Answered(
            1, inference.num_images, answer.arrived_s, answer.arrived_s - received_s
        )
        run = Run(batch.num_rows, batch.started_s, batch.finished_s)
        self._queries.statistics.count_success(version, answered, run)
        if json_bytes is None:
            return Response(content, media_type="application/json")
        headers = {LENGTH_HEADER: str(json_bytes)}
        return Response(content, headers=headers, media_type="application/octet-stream")


def _after(timeout_s: float | None) -> float:
    return math.inf if timeout_s is None else time.monotonic() + timeout_s


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
