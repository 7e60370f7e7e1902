"""The methods of inference.GRPCInferenceService (Open Inference Protocol v2)."""

import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache, partial
from typing import Any

from serving.catalog import Catalog
from serving.commandline import installation
from serving.config import BatchingConfig
from serving.errors import InvalidRequest, ModelNotFound, NotAllowed, Unsupported
from serving.model.loaded import LoadedModel
from serving.oip import inference_pb
from serving.oip.infer import Infer
from serving.protocols import parse
from serving.protocols.health import Health
from serving.protocols.method import BatchedStream, BatchedUnary, Method, Unary
from serving.router import Route, Router
from serving.telemetry.metrics import ModelCounts, ModelLabel
from serving.tensors import ModelInfo, Tensor, TensorSignature

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "python": "python"}
"""As Triton names them, by the backend."""
_EXTENSIONS = ("model_configuration", "statistics")
"""Only complete extensions: of "schedule_policy" there is the timeout, but no priority."""
SERVICE = inference_pb.SERVICE
UNSUPPORTED = {
    "shared memory is not supported: tensors travel in the messages": [
        f"{kind}SharedMemory{verb}"
        for kind in ("System", "Cuda")
        for verb in ("Status", "Register", "Unregister")
    ],
    "trace settings can't be changed by callers: the server's --otlp-endpoint sends traces": [
        "TraceSetting"
    ],
    "log settings can't be changed by callers: the server has --log-level and --log-format": [
        "LogSettings"
    ],
}
"""Methods of other servers for the protocol's extensions, by why they are refused."""
_FOLDERS = re.compile(r"(?<![\w.])/(?:[^/\s]+/)*")
"""Folders of this machine before the name of a file, which callers need not know."""
_version = cache(installation.version)


def model_metadata(
    name: str, versions: Iterable[str], tensors: TensorSignature, backend: str = "onnxruntime"
) -> Any:
    """Build the ModelMetadataResponse; its shapes include the batch axis."""
    return inference_pb.ModelMetadataResponse(
        name=name,
        versions=versions,
        platform=_PLATFORMS[backend],
        inputs=map(_metadata_of, tensors.inputs),
        outputs=map(_metadata_of, tensors.outputs),
    )


def model_config(
    name: str,
    tensors: TensorSignature,
    batching: BatchingConfig,
    facts: Mapping[str, str],
    backend: str = "onnxruntime",
) -> Any:
    """Build the ModelConfigResponse; its shapes leave the batch axis out, if there is one.

    Args:
        name: the model's.
        tensors: its inputs and outputs.
        batching: the sizes of its runs, if it can batch.
        facts: those without a field in the protocol, such as the device.
        backend: what runs it; see `LoadedModel.backend`.
    """
    config = inference_pb.ModelConfig(
        name=name,
        platform=_PLATFORMS[backend],
        backend=backend,
        parameters={name: {"string_value": text} for name, text in facts.items()},
    )
    first = 1 if tensors.is_batchable else 0
    for each, described in ((tensors.inputs, config.input), (tensors.outputs, config.output)):
        for tensor in each:
            kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
            dims = tensor.shape[first:]
            described.add(name=tensor.name, data_type=f"TYPE_{kind}", dims=dims)
    if tensors.is_batchable:
        config.max_batch_size = batching.max_batch_size
        delay_us = round(batching.max_queue_delay_s * 1e6)
        config.dynamic_batching.max_queue_delay_microseconds = delay_us
        config.dynamic_batching.SetInParent()
    return inference_pb.ModelConfigResponse(config=config)


def _metadata_of(tensor: Tensor) -> dict[str, Any]:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": tensor.shape}


def model_statistics(model: ModelLabel, counts: ModelCounts, last_ms: int) -> Any:
    """Build the ModelStatistics of a version.

    Args:
        model: the model's name and its version.
        counts: its own.
        last_ms: when it last answered, in milliseconds since 1970; 0 for never.
    """
    number = counts.num_answered
    times_s = {
        "queue": counts.queue_s.sum,
        "compute_infer": counts.calls_run_s,
        "compute_output": counts.calls_output_s,
    }
    parts = {part: {"count": number, "ns": _ns(seconds)} for part, seconds in times_s.items()}
    return inference_pb.ModelStatistics(
        name=model[0],
        version=model[1],
        last_inference=last_ms,
        inference_count=counts.num_rows,
        execution_count=counts.runs.total(),
        inference_stats={
            **parts,
            "success": {"count": number, "ns": sum(part["ns"] for part in parts.values())},
            "compute_input": {"count": number},  # decoding is part of no run, and is not timed
            "fail": {"count": counts.num_failed, "ns": _ns(counts.failed_s)},
        },
        batch_stats=[
            {"batch_size": size, "compute_infer": {"count": times, "ns": counts.runs_ns[size]}}
            for size, times in sorted(counts.runs.items())
        ],
    )


def _ns(seconds: float) -> int:
    return max(0, round(seconds * 1e9))


def inference_methods(router: Router, queries: "Queries", pool: Any = None) -> list[Method]:
    """Return the service's methods, and those that are refused by name; see `Infer`."""
    infer, stream = Infer(router, pool), Infer(router, pool, is_stream=True)
    return [
        BatchedUnary(
            path=f"/{SERVICE}/ModelInfer",
            name="ModelInfer",
            read=infer.read,
            known=infer.known,
            elsewhere=infer.elsewhere,
        ),
        BatchedStream(
            path=f"/{SERVICE}/ModelStreamInfer",
            name="ModelStreamInfer",
            read=stream.read,
            known=stream.known,
            elsewhere=stream.elsewhere,
            error_message=stream.error_message,
        ),
        *(
            Unary(
                path=f"/{SERVICE}/{name}",
                name=name,
                answer=_encoded(answer),
                is_slow=name in queries.slow,
            )
            for name, answer in queries.answers.items()
        ),
        *(
            Unary(path=f"/{SERVICE}/{name}", name="other", answer=partial(_refuse, text))
            for text, names in UNSUPPORTED.items()
            for name in names
        ),
    ]


def _facts(info: ModelInfo, max_message_bytes: int | None) -> dict[str, Any]:
    """Return what the protocol has no field for; without what is not known."""
    sides = (*info.inputs, *info.outputs)
    facts = {
        "version": info.version,
        "versions": info.versions,
        "default_version": info.default_version,
        "canary_version": info.canary_version,
        "batching": info.batching,
        "device": info.device,
        "precision": info.precision,
        "max_request_rows": info.max_request_rows,
        "max_message_bytes": max_message_bytes,
        "test_accuracy": info.test_accuracy,
        "labels": info.labels,
        "axes": {each.name: each.names for each in sides if any(each.names)},
        "contents": {each.name: each.content for each in sides if each.content},
        "pictures": info.pictures,
    }
    return {name: fact for name, fact in facts.items() if fact}


def _as_texts(facts: Mapping[str, Any]) -> dict[str, str]:
    """Return facts as parameters of a configuration: texts as they are, all else as JSON.

    `serving.client.model_messages` reads them.
    """
    return {
        name: fact if isinstance(fact, str) else json.dumps(fact) for name, fact in facts.items()
    }


def _refuse(text: str, request: bytes) -> bytes:
    raise Unsupported(text)


def _encoded(answer: Callable[[bytes], Any]) -> Callable[[bytes], bytes]:
    return lambda request: answer(request).SerializeToString()


class Queries:
    """Answers queries about the server and its models."""

    def __init__(
        self,
        router: Router,
        health: Health,
        catalog: Catalog | None = None,
        *,
        allow_control: bool = False,
        max_message_bytes: int | None = None,
    ) -> None:
        self._router = router
        self._max_message_bytes = max_message_bytes
        self._health = health
        self._catalog = catalog
        self._changing = catalog if allow_control else None
        """The repository, if callers may load and unload models."""
        self.slow = ("RepositoryModelLoad", "RepositoryModelUnload") if self._changing else ()
        """Methods that may take seconds, so that they run on their own threads."""
        self.answers: dict[str, Callable[[bytes], Any]] = {
            "ServerLive": lambda _: inference_pb.ServerLiveResponse(live=True),
            "ServerReady": lambda _: inference_pb.ServerReadyResponse(ready=health.is_serving),
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.index,
            "RepositoryModelLoad": self.load_model,
            "RepositoryModelUnload": self.unload_model,
        }

    def server_metadata(self, _: bytes) -> Any:
        """Return the extensions; the operator may allow to load and unload models."""
        extensions = (*_EXTENSIONS, *["model_repository"] * (self._changing is not None))
        return inference_pb.ServerMetadataResponse(
            name=installation.DISTRIBUTION, version=_version(), extensions=extensions
        )

    def model_ready(self, request: bytes) -> Any:
        """Return whether a model is ready; an unknown one is not."""
        message = parse(inference_pb.ModelReadyRequest, request)
        try:
            self._find(message.name, message.version)
        except ModelNotFound:
            return inference_pb.ModelReadyResponse(ready=False)
        ready = self._health.is_model_serving(message.name)
        return inference_pb.ModelReadyResponse(ready=ready)

    def model_metadata(self, request: bytes) -> Any:
        """Return the tensors' names, types and shapes."""
        message = parse(inference_pb.ModelMetadataRequest, request)
        route, model = self._find(message.name, message.version)
        versions = (model.version,) if message.version else tuple(route.served)
        return model_metadata(route.name, versions, model.tensors, model.backend)

    def model_config(self, request: bytes) -> Any:
        """Return the model's configuration."""
        message = parse(inference_pb.ModelConfigRequest, request)
        route, model = self._find(message.name, message.version)
        batching = model.settings.of(self._router.batching)
        facts = _as_texts(self._facts_of(route, message.version))
        return model_config(route.name, model.tensors, batching, facts, model.backend)

    def facts(self, name: str, version: str = "") -> dict[str, Any]:
        """Return what `describe()` says beside a model's metadata, as HTTP's JSON has it."""
        route, _ = self._find(name, version)
        limit = {"max_batch_size": route.describe(version).max_batch_size}
        return limit | self._facts_of(route, version)

    def _facts_of(self, route: Route, version: str) -> dict[str, Any]:
        return _facts(route.describe(version), self._max_message_bytes)

    def model_statistics(self, request: bytes) -> Any:
        """Return the statistics of a version, of all of a model's, or of all models'."""
        message = parse(inference_pb.ModelStatisticsRequest, request)
        router = self._router
        routes = [router.find(message.name)] if message.name else [*router.routes.values()]
        if message.version:
            versions = [(routes[0].name, routes[0].versions.find(message.version).version)]
        else:
            versions = [(route.name, version) for route in routes for version in route.served]
        metrics = router.metrics
        counts, last = metrics.snapshot().models, metrics.last_ms
        statistics = [
            model_statistics(each, counts.get(each) or ModelCounts(), last.get(each, 0))
            for each in versions
        ]
        return inference_pb.ModelStatisticsResponse(model_stats=statistics)

    def index(self, request: bytes) -> Any:
        """List all versions and those that can't be served, or only the ready ones."""
        only_ready = parse(inference_pb.RepositoryIndexRequest, request).ready
        response = inference_pb.RepositoryIndexResponse()
        for name, version, reason in self._states():
            if not (only_ready and reason):
                state = "UNAVAILABLE" if reason else "READY"
                response.models.add(name=name, version=version, state=state, reason=reason)
        return response

    def load_model(self, request: bytes) -> Any:
        """Load a model of the repository by its name, or again; return once it is ready."""
        message = parse(inference_pb.RepositoryModelLoadRequest, request)
        catalog = self._control()
        if message.parameters:
            raise InvalidRequest(
                "expected no parameters: models are loaded as the repository has them"
            )
        catalog.load(message.model_name)
        return inference_pb.RepositoryModelLoadResponse()

    def unload_model(self, request: bytes) -> Any:
        """Serve a model no longer."""
        message = parse(inference_pb.RepositoryModelUnloadRequest, request)
        self._control().unload(message.model_name)
        return inference_pb.RepositoryModelUnloadResponse()

    def _control(self) -> Catalog:
        if self._changing is None:
            raise NotAllowed(  # Triton answers UNAVAILABLE, which clients send again in vain
                "models are not loaded or unloaded on request: the server was started without "
                "--allow-repository-control"
            )
        return self._changing

    def _states(self) -> Iterator[tuple[str, str, str]]:
        """Yield name, version, and why it is not ready; the reason is empty if it is."""
        for route in self._router.routes.values():
            reason = "" if self._health.is_model_serving(route.name) else "not ready"
            for version in route.served:
                yield route.name, version, reason
        if self._catalog is None:
            return
        for name, versions in self._catalog.models.items():
            yield from ((name, version, why) for version, why in versions.waiting.items())
        for name, trouble in self._catalog.failures.items():
            yield name, "", _FOLDERS.sub("", trouble)

    def _find(self, name: str, version: str) -> tuple[Route, LoadedModel]:
        route = self._router.find(name)
        return route, route.versions.find(version) if version else route.model
