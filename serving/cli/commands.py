"""The commands: serve, classify, score, info, health."""

import argparse
import gc
import os
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from serving.cli.models import client_of, config_of, model_config, token_of, usual_models
from serving.commandline import installation
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.digits import command as classify
from serving.errors import ConfigurationError, Unavailable
from serving.system import signals
from serving.system.files import require_descriptors, reserve_standard_files
from serving.telemetry import logs


def _serve(options: argparse.Namespace) -> int:
    reserve_standard_files()
    if signals.HANG_UP is None:
        raise ConfigurationError("serve needs Linux: on Windows, run it in WSL or in the container")
    # Here, so that a missing package is one line and not a traceback of each worker.
    loop = ["uvloop"] if options.transport == "grpcio" else []
    installation.require("onnxruntime", "grpc_health", "prometheus_client", "h11", *loop)
    gc.disable()  # 10 ms: nothing that is imported is garbage
    from serving.model.repository import read_labels
    from serving.server.serve import run_loop, serve, warn_if_exposed

    gc.freeze()
    gc.enable()
    logs.setup(options.log_format)
    batching = config_of(BatchingConfig, options)
    security = config_of(SecurityConfig, options, tokens=os.environ.get("DIGITS_TOKEN"))
    labels = read_labels(options.labels)
    config = config_of(ServerConfig, options, **_http(options), security=security, labels=labels)
    require_descriptors(64 + 8 * config.workers)
    model = _served_models(options)
    if config.reload_interval_s and model.version is not None:
        raise ConfigurationError("reload_interval replaces versions, and --version pins one")
    warn_if_exposed(config)
    if config.workers == 1:
        is_drained = run_loop(serve(model, batching, config), config.transport)
    else:
        import asyncio  # here: handlers of signals are installed before

        from serving.server.supervisor import supervise  # one process needs no multiprocessing

        is_drained = asyncio.run(supervise(model, batching, config))
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


def _score(options: argparse.Namespace) -> int:
    from serving.cli import scoring

    return scoring.score(options, model_config(options))


def _info(options: argparse.Namespace) -> int:
    from serving.cli import description

    if options.target:
        with client_of(options) as client:
            models = description.of_server(client)
    else:
        config = model_config(options)
        models = [description.of_files(options.file or config.models / config.model, config)]
    for number, facts in enumerate(models):
        print(description.as_json(facts) if options.json else description.as_text(facts, number))
    return 0


def _health(options: argparse.Namespace) -> int:
    from serving.cli.probe import trouble

    reason = trouble(
        options.target,
        options.timeout,
        token=token_of(options),
        tls=(options.tls_ca, options.tls_key, options.tls_cert),
        server_name=options.tls_server_name,
    )
    if reason is not None:
        raise Unavailable(f"{options.target}: {reason}")
    print(f"{options.target}: SERVING")
    return 0


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
        source = {"models": usual_models(*names[:1])}
    return config_of(ModelConfig, options, **({"names": names or None, "files": files} | source))


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "classify": classify.run,
    "score": _score,
    "info": _info,
    "health": _health,
}
"""Each takes the parsed options and returns the exit code; `main` handles its errors."""
