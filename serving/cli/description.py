"""The output of `info`, for models in files or of a server."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from serving.client import Client
from serving.commandline.installation import escape
from serving.config import BatchingConfig, ModelConfig
from serving.errors import ModelNotFound, Unavailable
from serving.tensors import ModelInfo, Signature, TensorSignature

Facts = dict[str, Any]


def of_files(path: Path, config: ModelConfig) -> Facts:
    """Load a model and describe it.

    Raises:
        ServingError: see `load_model`.
    """
    from serving.catalog import Catalog
    from serving.model.repository import is_file

    batching = BatchingConfig()
    # As a server loads it: its settings and labels choose the version.
    if is_file(path):
        config = replace(config, names=(), files=(path,))
    else:
        config = replace(config, models=path.parent, names=(path.name,))
    (served,) = Catalog(config, batching.max_batch_size).models.values()
    model = served.default
    signature = model.signature
    facts = {
        "name": model.manifest.name,
        "version": model.version,
        "device": model.device,
        "precision": model.precision,
        "transport": "in process",
        "max_request_rows": batching.max_request_rows,
        "max_batch_size": model.settings.of(batching).max_batch_size,
        "batching": model.batching,
    }
    if signature is not None:
        accuracy = model.manifest.test_accuracy
        facts |= {"test_accuracy": accuracy, "signature": signature.document()}
    elif model.class_labels:
        facts["labels"] = list(model.class_labels)
    return facts | _tensors(model.tensors)


def of_server(client: Client, name: str | None = None) -> list[Facts]:
    """Describe the models of a server: first the classifier of digits.v1, if it has one.

    Args:
        client: of the server.
        name: of the only model to describe; None for all.

    Raises:
        ModelNotFound: there is no model of this name.
    """
    models = [each for each in client.models() if name in (None, each[0])]
    if name is not None and not models:
        client.model_facts(name)  # raises ModelNotFound, with the names that there are
    info: ModelInfo | None = None
    try:
        info = client.model_info()
    except (ModelNotFound, Unavailable) as err:
        if not models:
            raise
        if isinstance(err, Unavailable) and "UNIMPLEMENTED" not in str(err):
            raise
    described: list[Facts] = []
    for each in models:
        tensors, facts = client.model_facts(*each)
        batching = {"batching": facts.get("batching", "")}
        if info is not None and each == (info.name, info.version):
            known = asdict(info) | {"signature": info.signature.document()}
            described.insert(0, known | batching | _tensors(tensors))
            continue
        known = {"name": each[0], "version": each[1], **batching}
        known |= {part: facts[part] for part in ("device", "precision", "labels") if part in facts}
        described.append(known | _tensors(tensors))
    return described


def as_json(facts: Facts) -> str:
    """Return facts as one line."""
    return json.dumps(facts)


def as_text(facts: Facts, number: int) -> str:
    """Return facts as lines, with one between models."""
    shown = {name: value for name, value in facts.items() if value != ""}
    signature = shown.pop("signature", None)
    if signature is not None:
        shown["signature"] = str(Signature.of(signature))
        shown |= {"labels": signature["labels"]} if "labels" in signature else {}
    if "labels" in shown:
        shown["labels"] = ", ".join(shown["labels"])
    for side in ("inputs", "outputs"):
        shown[side] = ", ".join(shown[side])
    lines = [
        escape(f"{name.replace('_', ' '):<20}{'unknown' if value is None else value}")
        for name, value in shown.items()
    ]
    return "\n".join(([""] if number else []) + lines)


def _tensors(tensors: TensorSignature) -> Facts:
    return {"inputs": [*map(str, tensors.inputs)], "outputs": [*map(str, tensors.outputs)]}
