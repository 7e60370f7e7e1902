"""What a server says of itself and its models, as plain values, whichever protocol asks.

Names of fields are the protocol's (Open Inference Protocol v2, and Triton's extensions): over HTTP
the values are the JSON, over gRPC the messages are made of them (`methods.py`).
"""

import json
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from typing import Any

from serving.commandline import installation
from serving.config import BatchingConfig
from serving.errors import InvalidRequest, ModelNotFound, NotAllowed
from serving.model.loaded import LoadedModel
from serving.protocols.health import Health
from serving.router import Route, Router
from serving.telemetry.metrics import ModelCounts, ModelLabel
from serving.tensors import ModelInfo, Tensor, TensorSignature
from serving.versions.catalog import Catalog

Fields = dict[str, Any]
"""A message of the protocol as plain values: numbers, texts, lists, and such a mapping again."""

_PLATFORMS = {"onnxruntime": "onnxruntime_onnx", "python": "python"}
"""As Triton names them, by the backend."""
_EXTENSIONS = ("model_configuration", "statistics")
"""Only complete extensions: of "schedule_policy" there is the timeout, but no priority."""
_FOLDERS = re.compile(r"(?<![\w.])(?<!:/)/(?!/)(?:[^/\s]+/)*")
"""Folders of this machine before the name of a file, which callers need not know; not of a URL."""
_version = cache(installation.version)


def model_metadata(
    name: str, versions: Iterable[str], tensors: TensorSignature, backend: str = "onnxruntime"
) -> Fields:
    """Return a ModelMetadataResponse; its shapes include the batch axis."""
    return {
        "name": name,
        "versions": [*versions],
        "platform": _PLATFORMS[backend],
        "inputs": [*map(_metadata_of, tensors.inputs)],
        "outputs": [*map(_metadata_of, tensors.outputs)],
    }


def _metadata_of(tensor: Tensor) -> Fields:
    return {"name": tensor.name, "datatype": tensor.datatype, "shape": [*tensor.shape]}


def model_config(
    name: str,
    tensors: TensorSignature,
    batching: BatchingConfig,
    facts: Mapping[str, str],
    backend: str = "onnxruntime",
) -> Fields:
    """Return a ModelConfig; its shapes leave the batch axis out, if there is one.

    Args:
        name: the model's.
        tensors: its inputs and outputs.
        batching: the sizes of its runs, if it can batch.
        facts: those without a field in the protocol, such as the device.
        backend: what runs it; see `LoadedModel.backend`.
    """
    first = 1 if tensors.is_batchable else 0
    config: Fields = {
        "name": name,
        "platform": _PLATFORMS[backend],
        "max_batch_size": batching.max_batch_size if first else 0,
        "input": [_configured(each, first) for each in tensors.inputs],
        "output": [_configured(each, first) for each in tensors.outputs],
        "parameters": {name: {"string_value": text} for name, text in facts.items()},
        "backend": backend,
    }
    if tensors.in_parts:
        config["model_transaction_policy"] = {"decoupled": True}
    if first:
        delay_us = round(batching.max_queue_delay_s * 1e6)
        config["dynamic_batching"] = {
            "preferred_batch_size": [],
            "max_queue_delay_microseconds": delay_us,
        }
    return config


def _configured(tensor: Tensor, first: int) -> Fields:
    kind = "STRING" if tensor.datatype == "BYTES" else tensor.datatype
    return {"name": tensor.name, "data_type": f"TYPE_{kind}", "dims": [*tensor.shape[first:]]}


def model_statistics(model: ModelLabel, counts: ModelCounts, last_ms: int) -> Fields:
    """Return the ModelStatistics of a version.

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
    parts = {part: _times(number, seconds) for part, seconds in times_s.items()}
    return {
        "name": model[0],
        "version": model[1],
        "last_inference": last_ms,
        "inference_count": counts.num_rows,
        "execution_count": counts.runs.total(),
        "inference_stats": {
            **parts,
            "success": {"count": number, "ns": sum(part["ns"] for part in parts.values())},
            "compute_input": _times(number, 0.0),  # decoding is part of no run, and is not timed
            "fail": _times(counts.num_failed, counts.failed_s),
        },
        "batch_stats": [
            {"batch_size": size, "compute_infer": {"count": times, "ns": counts.runs_ns[size]}}
            for size, times in sorted(counts.runs.items())
        ],
    }


def _times(number: int, seconds: float) -> dict[str, int]:
    return {"count": number, "ns": max(0, round(seconds * 1e9))}


def _facts(info: ModelInfo, max_message_bytes: int | None) -> dict[str, Any]:
    """Return what the protocol has no field for; without what is not known."""
    sides = (*info.inputs, *info.outputs)
    facts = {
        "version": info.version,
        "versions": info.versions,
        "default_version": info.default_version,
        "canary_version": info.canary_version,
        "not_served": dict(info.not_served),
        "batching": info.batching,
        "device": info.device,
        "precision": info.precision,
        "optimized": info.optimized,
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

    @property
    def is_control_slow(self) -> bool:
        """Whether loading and unloading may take seconds: they are refused at once otherwise."""
        return self._changing is not None

    def is_ready(self) -> bool:
        """Return whether the server serves."""
        return self._health.is_serving

    def server_metadata(self) -> Fields:
        """Return the extensions; the operator may allow to load and unload models."""
        extensions = [*_EXTENSIONS, *["model_repository"] * (self._changing is not None)]
        return {
            "name": installation.DISTRIBUTION,
            "version": _version(),
            "extensions": extensions,
        }

    def is_model_ready(self, name: str, version: str = "") -> bool:
        """Return whether a model is ready; an unknown one is not."""
        try:
            self._find(name, version)
        except ModelNotFound:
            return False
        return self._health.is_model_serving(name)

    def model_metadata(self, name: str, version: str = "") -> Fields:
        """Return the tensors' names, types and shapes."""
        route, model = self._find(name, version)
        versions = (model.version,) if version else tuple(route.served)
        return model_metadata(route.name, versions, model.tensors, model.backend)

    def model_config(self, name: str, version: str = "") -> Fields:
        """Return the model's configuration."""
        route, model = self._find(name, version)
        batching = model.settings.of(self._router.batching)
        facts = _as_texts(self._facts_of(route, version))
        return model_config(route.name, model.tensors, batching, facts, model.backend)

    def facts(self, name: str, version: str = "") -> Fields:
        """Return what `describe()` says beside a model's metadata, as HTTP's JSON has it."""
        route, _ = self._find(name, version)
        limit = {"max_batch_size": route.describe(version).max_batch_size}
        return limit | self._facts_of(route, version)

    def _facts_of(self, route: Route, version: str) -> Fields:
        return _facts(route.describe(version), self._max_message_bytes)

    def model_statistics(self, name: str = "", version: str = "") -> list[Fields]:
        """Return the statistics of a version, of all of a model's, or of all models'."""
        router = self._router
        routes = [router.find(name)] if name else [*router.routes.values()]
        if version:
            versions = [(routes[0].name, routes[0].versions.find(version).version)]
        else:
            versions = [(route.name, version) for route in routes for version in route.served]
        metrics = router.metrics
        counts, last = metrics.snapshot().models, metrics.last_ms
        return [
            model_statistics(each, counts.get(each) or ModelCounts(), last.get(each, 0))
            for each in versions
        ]

    def index(self, *, only_ready: bool = False) -> list[Fields]:
        """List all versions and those that can't be served, or only the ready ones."""
        return [
            {
                "name": name,
                "version": version,
                "state": "UNAVAILABLE" if reason else "READY",
                "reason": reason,
            }
            for name, version, reason in self._states()
            if not (only_ready and reason)
        ]

    def load_model(self, name: str, parameters: Iterable[str] = ()) -> Fields:
        """Load a model of the repository by its name, or again; return {} once it is ready.

        Args:
            name: the model's.
            parameters: the names of a request's parameters, of which none is known.

        Raises:
            NotAllowed: callers may not change what is served.
            InvalidRequest: there are parameters.
            ModelNotFound: the repository has no such model.
        """
        catalog = self._control()
        if [*parameters]:
            raise InvalidRequest(
                "expected no parameters: models are loaded as the repository has them"
            )
        catalog.load(name)
        return {}

    def unload_model(self, name: str, parameters: Iterable[str] = ()) -> Fields:
        """Serve a model no longer, and return {}; of the parameters none changes that.

        Raises:
            NotAllowed: callers may not change what is served.
            ModelNotFound: no such model is served.
        """
        self._control().unload(name)
        return {}

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
