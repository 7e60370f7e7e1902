"""The output of `info`, for models in files or of a server."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from serving.client import Client
from serving.commandline.terminal import escape
from serving.config import BatchingConfig, ModelConfig
from serving.model.repository import is_file
from serving.tensors import ModelInfo

Facts = dict[str, Any]


def of_files(path: Path, config: ModelConfig) -> Facts:
    """Load a model and describe it.

    Raises:
        ServingError: see `load_model`.
    """
    from serving.versions.catalog import Catalog  # late: one of a server needs no model here

    batching = BatchingConfig()
    # As a server loads it: its settings and labels choose the version.
    if path.suffix == ".py":
        config = replace(config, names=())
    elif path.is_file() or is_file(path):
        config = replace(config, names=(), files=(path,))
    else:
        config = replace(config, models=path.parent, names=(path.name,))
    ((name, served),) = Catalog(config, batching.max_batch_size).models.items()
    info = replace(served.default.describe(batching), name=name, not_served=served.reasons)
    return facts_of(info)


def with_handler(config: ModelConfig, file: Path | None, handler: str | None) -> ModelConfig:
    """Add a handler: that of an option, or a file that is a model by itself."""
    if file is not None and file.suffix == ".py":
        handler = str(file)
    return replace(config, handler=(handler,) if handler else ())


def of_server(client: Client, name: str | None = None, version: str | None = None) -> list[Facts]:
    """Describe the models of a server.

    Args:
        client: of the server.
        name: of the only model to describe; None for all.
        version: the only version to describe, or its label; None for all.

    Raises:
        ModelNotFound: there is no model of this name, or no such version of one.
    """
    described = []
    for each in client.models() if name is None else [name]:
        info = client.describe(each, version or "")
        if version:
            described.append(info)
            continue
        others = [version for version in info.versions if version != info.version]
        described += [info, *(client.describe(each, version) for version in others)]
    return [facts_of(info) for info in described]


def facts_of(info: ModelInfo) -> Facts:
    """Return a description in types that JSON has; without what is not known."""
    facts = {
        "name": info.name,
        "version": info.version,
        "versions": list(info.versions),
        "default_version": info.default_version,
        "canary_version": info.canary_version,
        "not_served": [f"{version}: {reason}" for version, reason in info.not_served.items()],
        "device": info.device,
        "precision": info.precision,
        "optimized": info.optimized,
        "batching": info.batching,
        "max_batch_size": info.max_batch_size,
        "max_request_rows": info.max_request_rows,
        "max_message_bytes": info.max_message_bytes,
        "test_accuracy": info.test_accuracy,
        "labels": list(info.labels),
        "inputs": [*map(str, info.inputs)],
        "outputs": [*map(str, info.outputs)],
    }
    return {name: value for name, value in facts.items() if value not in (None, "", [])}


def as_json(facts: Facts) -> str:
    """Return facts as one line."""
    return json.dumps(facts)


def as_text(facts: Facts, number: int) -> str:
    """Return facts as lines, with one between models."""
    lines = []
    for name, value in facts.items():
        shown = ", ".join(value) if isinstance(value, list) else value
        lines.append(escape(f"{name.replace('_', ' '):<20}{shown}"))
    return "\n".join(([""] if number else []) + lines)
