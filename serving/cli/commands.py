"""The commands: serve, classify, read, score, info, health."""

import argparse
import gc
import logging
import os
from collections.abc import Callable
from dataclasses import fields
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from serving.commandline import installation
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError, InvalidRequest, Unavailable
from serving.system import signals
from serving.system.files import require_descriptors, reserve_standard_files
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.classifier import Classifier
    from serving.client import Client
    from serving.images import Images
    from serving.predictions import Predictions

_log = logging.getLogger(__name__)

Config = TypeVar("Config", BatchingConfig, ModelConfig, SecurityConfig, ServerConfig)


def _serve(options: argparse.Namespace) -> int:
    reserve_standard_files()
    if signals.HANG_UP is None:
        raise ConfigurationError("serve needs Linux: on Windows, run it in WSL or in the container")
    # Here, so that a missing package is one line and not a traceback of each worker.
    loop = ["uvloop"] if options.transport == "grpcio" else []
    installation.require("onnxruntime", "grpc_health", "prometheus_client", "h11", *loop)
    gc.disable()  # 10 ms: nothing that is imported is garbage
    from serving.model.pictures import read_labels
    from serving.server.serve import run

    gc.freeze()
    gc.enable()
    logs.setup(options.log_format)
    batching = _config(BatchingConfig, options)
    security = _config(SecurityConfig, options, tokens=os.environ.get("DIGITS_TOKEN"))
    labels = read_labels(options.labels)
    config = _config(ServerConfig, options, **_http(options), security=security, labels=labels)
    require_descriptors(64 + 8 * config.workers)
    is_drained = run(_served_models(options), batching, config)
    signals.end_process(0 if is_drained else 1)


_HTTP = ("python_multipart",)
_USUAL_HTTP_PORT = 8080


def _http(options: argparse.Namespace) -> dict[str, object]:
    """Choose the port of HTTP: the usual one if none is named, where that works or is needed."""
    is_auto, is_needed = options.http_port == "auto", options.input == "image"
    if is_auto and not is_needed:
        port = _USUAL_HTTP_PORT if all(map(find_spec, _HTTP)) else None
        return {"http_port": port, "http_is_optional": True}
    if options.http_port is not None:
        installation.require(*_HTTP)
    return {"http_port": _USUAL_HTTP_PORT if is_auto else options.http_port}


def _classify(options: argparse.Namespace) -> int:
    installation.require("PIL", "scipy")
    from serving.digits import command as classifying
    from serving.model.preprocessing import DIGITS_PICTURES

    if not options.target:
        return classifying.classify(
            options, *classifying.local_model(options, _model_config(options))
        )
    with _client(options) as client:
        return classifying.classify(options, DIGITS_PICTURES, partial(_predictions, client))


def _read(options: argparse.Namespace) -> int:
    installation.require("PIL", "scipy")
    from serving.digits import command as classifying

    with _open(options) as classifier:
        return classifying.read(options, partial(_predictions, classifier))


def _predictions(classifier: "Classifier | Client", images: "Images") -> "Predictions":
    try:
        return classifier.classify(images)
    except InvalidRequest as err:
        raise ConfigurationError(f"pictures are read as images of 28 x 28: {err}") from err


def _score(options: argparse.Namespace) -> int:
    from serving.cli import scoring

    return scoring.score(options, _model_config(options))


def _info(options: argparse.Namespace) -> int:
    from serving.cli import description

    if options.target:
        with _client(options) as client:
            models = description.of_server(client)
    else:
        config = _model_config(options)
        models = [description.of_files(options.file or config.models / config.model, config)]
    for number, facts in enumerate(models):
        print(description.as_json(facts) if options.json else description.as_text(facts, number))
    return 0


def _health(options: argparse.Namespace) -> int:
    from serving.cli.probe import trouble

    reason = trouble(
        options.target,
        options.timeout,
        token=_token(options),
        tls=(options.tls_ca, options.tls_key, options.tls_cert),
        server_name=options.tls_server_name,
    )
    if reason is not None:
        raise Unavailable(f"{options.target}: {reason}")
    print(f"{options.target}: SERVING")
    return 0


def _open(options: argparse.Namespace) -> "Classifier | Client":
    if options.target:
        return _client(options)
    from serving.classifier import Classifier

    config = _model_config(options)
    path = config.models / config.model
    return Classifier.load(path, config.version, config.device, config.precision)


def _client(options: argparse.Namespace) -> "Client":
    from serving.client import Client

    return Client(
        options.target,
        token=_token(options),
        tls_ca=options.tls_ca,
        tls_cert=options.tls_cert,
        tls_key=options.tls_key,
    )


def _token(options: argparse.Namespace) -> str | None:
    """Return the first token of the file or of DIGITS_TOKEN."""
    from serving.credentials.tokens import parse_tokens
    from serving.credentials.watched_files import read_bytes

    if options.token_file is not None:
        return parse_tokens(read_bytes(options.token_file), options.token_file)[0].decode()
    text = os.environ.get("DIGITS_TOKEN")
    return None if text is None else parse_tokens(text.encode(), "DIGITS_TOKEN")[0].decode()


def _config(kind: type[Config], options: argparse.Namespace, **others: object) -> Config:
    """Make a configuration from the options that are named like its fields, and from `others`."""
    names = [field.name for field in fields(kind) if field.name in options]
    return kind(**({name: getattr(options, name) for name in names} | others))


def _model_config(options: argparse.Namespace) -> ModelConfig:
    """Make the configuration of one model."""
    models = getattr(options, "models", None)
    if models is None and options.model.endswith(".onnx"):
        root = Path()
    elif models is None:
        root = _usual_models(options.model)
    elif "://" in models:
        installation.require("fsspec")
        from serving.catalog.remote import RemoteRepository

        root = RemoteRepository(models, options.model_cache).fetch()
    else:
        root = Path(models)
    return _config(ModelConfig, options, models=root)


def _served_models(options: argparse.Namespace) -> ModelConfig:
    """Make the configuration of a server's models."""
    from serving.model.repository import models_in

    names = tuple(name for text in options.names or () for name in text.split(","))
    files = tuple(options.files)
    models, usual = getattr(options, "models", None), ModelConfig().models
    source: dict[str, object] = {"models": usual}
    if models is not None and "://" in models:
        installation.require("fsspec")
        source = {"url": models}
    elif models is not None:
        source = {"models": Path(models)}
    elif files and not names:
        source = {"names": ()}
    elif names or not models_in(usual):
        source = {"models": _usual_models(*names[:1])}
    return _config(ModelConfig, options, **({"names": names or None, "files": files} | source))


def _usual_models(model: str = ModelConfig().model) -> Path:
    """Choose the repository if none is named; log if it is the bundled one."""
    from serving.model import repository

    usual = ModelConfig().models
    root = repository.find_root(model, usual)
    if root != usual:
        _log.info("no model in %s: using the bundled one, %s", usual / model, root / model)
    return root


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "classify": _classify,
    "read": _read,
    "score": _score,
    "info": _info,
    "health": _health,
}
"""Each takes the parsed options and returns the exit code; `main` handles its errors."""
