"""The command `serve`: its options, and from them the configurations of a server."""

import argparse
import gc
import logging
import os
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from serving.cli import model_options, models
from serving.commandline import installation
from serving.commandline.fields import add_fields
from serving.commandline.parser import Parser
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError
from serving.security.exposure import warn_if_exposed
from serving.system import signals
from serving.system.addresses import with_port
from serving.system.files import require_descriptors, reserve_standard_files
from serving.telemetry import logs

_log = logging.getLogger(__name__)
HELP = "serve models over gRPC and HTTP until SIGTERM"
EXAMPLES = """\
  digit-serving serve detector.onnx classifier.onnx
  digit-serving serve model.onnx --handler sentiment.py
  digit-serving serve flowers.onnx --input image --labels labels.txt
  digit-serving serve --models models --model digits letters --workers 2
  digit-serving serve --models s3://bucket/models --reload-interval 60 --canary 5%
  digit-serving serve --models https://example.org/flowers.onnx#sha256=DIGEST
  digit-serving serve --served-name mnist --tls-cert cert.pem --tls-key key.pem
  SERVING_PORT=8033 SERVING_LOG_FORMAT=json digit-serving serve --host 0.0.0.0
"""
_GROUPS: tuple[tuple[str, type, str], ...] = (
    (
        "",
        ModelConfig,
        "allow_missing handler allow_handlers max_handler_setup_s versions canary served_name "
        "batch threads max_model_bytes",
    ),
    ("", ServerConfig, "reload_interval_s allow_repository_control"),
    (
        "addresses",
        ServerConfig,
        "host port http_host http_port http_host_names "
        "http_allow_origins metrics_host metrics_port",
    ),
    ("TLS and tokens", SecurityConfig, "tls_cert tls_key tls_client_ca token_file"),
    ("batching and limits", BatchingConfig, " ".join(each.name for each in fields(BatchingConfig))),
    ("", ServerConfig, "max_json_bytes max_buffered_bytes max_connection_age_s"),
    (
        "operation",
        ServerConfig,
        "transport workers drain_s self_test_interval_s reflection "
        "log_level log_format access_log otlp_endpoint",
    ),
)
"""The options of `serve` that set fields of configurations; those without a title go on."""
_HTTP = "python_multipart"
_EITHER_PROTOBUF = "grpcio-health-checking==1.81.1", "grpcio-reflection==1.81.1"
"""The newest of gRPC's packages whose generated code takes protobuf 6, too."""
_USUAL_HTTP_PORT = 8080


def add_arguments(parser: Parser) -> None:
    """Add the command's options."""
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="MODEL.onnx",
        help="file to serve, as a model of its name; without --models and --model nothing else "
        "is served",
    )
    parser.begin_group("models")
    model_options.add_repository(parser)
    parser.add_argument(
        "--model",
        dest="names",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="models of the repository to serve (default: all)",
    )
    model_options.add_pictures(parser)
    for title, kind, names in _GROUPS:
        if title:
            parser.begin_group(title)
        add_fields(parser, kind, *names.split())


def run(options: argparse.Namespace) -> int:
    """Serve until a signal ends this process."""
    # NumPy's BLAS starts a thread for each core, and each spins: 60 ms of processor time on two
    # cores. No call is answered by it: networks run in ONNX Runtime, handlers in other processes.
    # So all that imports NumPy is imported behind this line.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    reserve_standard_files()
    signals.end_process(0 if serve_until_stopped(options) else 1)


def serve_until_stopped(options: argparse.Namespace) -> bool:
    """Serve as the parsed command line says; return whether every accepted call was answered.

    Raises:
        ServingError: the server can't start.
    """
    if signals.HANG_UP is None:
        raise ConfigurationError("serve needs Linux: on Windows, run it in WSL or in the container")
    # Here, so that a missing package is one line and not a traceback of each worker.
    loop = ["uvloop"] if options.transport == "grpcio" else []
    installation.require("onnxruntime", "grpc_health", "prometheus_client", "h11", *loop)
    gc.disable()  # as in `__main__`
    try:
        import_module("serving.server.lifetime")
    except Exception as err:
        if type(err).__name__ != "VersionError":  # protobuf's own, which is no ImportError
            raise
        command = installation.install("serve", *_EITHER_PROTOBUF)
        raise ConfigurationError(
            f"{str(err).partition('. ')[0]}: a package that was installed later wants an older "
            f"one; {command} takes either protobuf"
        ) from err

    from serving.model.repository import named_models  # late: NumPy

    gc.freeze()
    gc.enable()
    logs.setup(options.log_format, options.log_level)
    batching = models.config_of(BatchingConfig, options)
    security = models.config_of(SecurityConfig, options, tokens=os.environ.get("SERVING_TOKEN"))
    labels: tuple[str, ...] = ()
    if options.labels is not None:
        from serving.model.picture_inputs import read_labels  # late: NumPy

        labels = read_labels(options.labels)
    config = models.config_of(
        ServerConfig, options, **_ports(options), security=security, labels=labels
    )
    require_descriptors(64 + 8 * config.workers)
    models_to_serve = _served_models(options)
    if models_to_serve.url is None:
        named_models(models_to_serve, models_to_serve.models)  # what is wrong with a file or a name
    try:
        return _run(models_to_serve, batching, config)
    except ConfigurationError as err:
        raise ConfigurationError(f"{err}{_other_port(config, str(err))}") from err


def _run(model: ModelConfig, batching: BatchingConfig, config: ServerConfig) -> bool:
    """Serve until a signal; return whether every accepted request was answered."""
    # Late: `serve_until_stopped` says which package is missing before anything needs it.
    from serving.server.lifetime import run_loop, serve

    if config.reload_interval_s and model.version is not None:
        raise ConfigurationError("reload_interval replaces versions, and --version pins one")
    warn_if_exposed(config)
    if config.workers == 1:
        return run_loop(serve(model, batching, config), config.transport)
    import asyncio  # here: handlers of signals are installed before

    from serving.server.supervisor import supervise  # late: as above

    return asyncio.run(supervise(model, batching, config))


def _other_port(config: ServerConfig, error: str) -> str:
    """Return which option chooses another port, if one is taken."""
    ports = {
        "port": (config.host, config.port),
        "http-port": (config.http_host, config.http_port),
        "metrics-port": (config.metrics_host, config.metrics_port),
    }
    named = [
        f"--{name}"
        for name, (host, port) in ports.items()
        if port and f"on {with_port(host, port)}: the port is taken" in error
    ]
    return f"; choose another by {' or '.join(named)}" if named else ""


def _ports(options: argparse.Namespace) -> dict[str, object]:
    """Choose the ports of HTTP and metrics: the usual ones where none is named."""
    ports = {"http_port": options.http_port, "metrics_port": options.metrics_port}
    usual = {"http_port": _USUAL_HTTP_PORT, "metrics_port": ServerConfig().metrics_port}
    is_auto = options.http_port == "auto" and options.input != "image"
    if not is_auto and options.http_port is not None:
        installation.require(_HTTP)
    elif is_auto and not find_spec(_HTTP):
        _log.info("HTTP is off: %s", installation.missing(_HTTP))
        ports["http_port"] = None
    automatic = tuple(name for name, port in ports.items() if port == "auto")
    return ports | {name: usual[name] for name in automatic} | {"usual_ports": automatic}


def _served_models(options: argparse.Namespace) -> ModelConfig:
    from serving.model.repository import models_in  # late: NumPy

    named = [name for text in options.names or () for name in text.split(",")]
    # Of `--model iris cnn.onnx` the last one is meant as a file.
    names = tuple(name for name in named if not name.endswith(".onnx"))
    files = (*options.files, *(Path(name) for name in named if name.endswith(".onnx")))
    named_root, usual = getattr(options, "models", None), ModelConfig().models
    source: dict[str, object] = {"models": usual}
    if named_root is not None and "://" in named_root:
        installation.require("fsspec")
        source = {"url": named_root}
    elif named_root is not None:
        source = {"models": Path(named_root)}
    elif (files or options.handler) and not names:
        source = {"names": ()}
    elif names or not models_in(usual):
        source = {"models": models.usual_models(*names[:1])}
    return models.config_of(
        ModelConfig, options, **({"names": names or None, "files": files} | source)
    )
