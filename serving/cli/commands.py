"""The commands of `digit-serving`: their options, their help texts, and what each does."""

import argparse
import gc
import logging
import os
from collections.abc import Callable, Mapping
from dataclasses import fields
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from serving import applications
from serving.applications import Command
from serving.cli import models
from serving.commandline import installation, options
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.options import Parser, add_fields, command_help
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError, Unavailable
from serving.system import signals
from serving.system.files import require_descriptors, reserve_standard_files
from serving.system.host import with_port
from serving.telemetry import logs

_log = logging.getLogger(__name__)
_SERVE = """\
  digit-serving serve detector.onnx classifier.onnx
  digit-serving serve flowers.onnx --input image --labels labels.txt
  digit-serving serve --models models --model digits letters --workers 2
  digit-serving serve --models s3://bucket/models --reload-interval 60 --canary 5%
  digit-serving serve --models https://example.org/flowers.onnx#sha256=DIGEST
  digit-serving serve --served-name mnist --tls-cert cert.pem --tls-key key.pem
  SERVING_PORT=8033 SERVING_LOG_FORMAT=json digit-serving serve --host 0.0.0.0
"""
_INFER = """\
  digit-serving infer iris.onnx 'x=[5.1, 3.5, 1.4, 0.2]'
  digit-serving infer iris --target 127.0.0.1:50051 'x=[[5.1, 3.5, 1.4, 0.2], [6, 3, 5, 2]]'
  digit-serving infer sentiment --target 127.0.0.1:50051 text='a good film' --json
  digit-serving infer towers.onnx left=@left.npy right=@right.npy
  digit-serving infer flowers.onnx --input image --labels labels.txt @rose.jpg
  python numbers.py | digit-serving infer iris.onnx x=-
  digit-serving infer detector.onnx --random
"""
_INFO = """\
  digit-serving info model.onnx
  digit-serving info --models models --model letters --json
  digit-serving info --target 127.0.0.1:50051 --model letters
"""
_PROBE = """\
  digit-serving health                                   exit code 0: SERVING, else 1
  digit-serving health --target 10.0.0.7:50051 --tls-ca ca.pem --tls-server-name digits
"""
_GROUPS: tuple[tuple[str, type, str], ...] = (
    ("", ModelConfig, "versions canary served_name batch threads max_model_bytes"),
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
_USUAL_HTTP_PORT = 8080


def parser(others: Mapping[str, Command] | None = None) -> Parser:
    """Return the parser of all commands.

    The command's name is parsed as `command`; of one of `others`, its function as `run`.

    Args:
        others: the commands of other distributions; None for all that are installed.
    """
    program = Parser(
        prog=DISTRIBUTION,
        description="Serve ONNX and Keras models over gRPC and HTTP, with batching, deadlines, "
        "metrics and reloads.",
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, examples, add in (
        ("serve", "serve models over gRPC and HTTP until SIGTERM", _SERVE, _add_serve),
        ("infer", "run any model on values, arrays or pictures", _INFER, _add_infer),
        ("info", "print a model, its tensors, device and limits", _INFO, _add_info),
        ("health", "check the health of a server", _PROBE, _add_health),
    ):
        add(commands.add_parser(name, **command_help(text, examples)))
    others = applications.installed(applications.COMMANDS) if others is None else others
    for name, other in others.items():
        try:
            add_command(commands, name, other)
        except Exception as err:  # another's module lacks a part, or has the name of a command here
            reason = f"{type(err).__name__}: {err}"
            raise ConfigurationError(f"the command {name} can't be used: {reason}") from err
    return program


def add_command(commands: "argparse._SubParsersAction[Any]", name: str, command: Command) -> None:
    """Add a command of an application; its function is parsed as `run`."""
    parser = commands.add_parser(name, **command_help(command.HELP, command.EXAMPLES))
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


def _add_serve(parser: Parser) -> None:
    parser.add_argument(
        "files",
        nargs="*",
        type=Path,
        metavar="MODEL.onnx",
        help="file to serve, as a model of its name; without --models and --model nothing else "
        "is served",
    )
    parser.begin_group("models")
    models.add_repository(parser)
    parser.add_argument(
        "--model",
        dest="names",
        nargs="+",
        action="extend",
        metavar="NAME",
        help="models of the repository to serve (default: all)",
    )
    models.add_pictures(parser)
    for title, kind, names in _GROUPS:
        if title:
            parser.begin_group(title)
        add_fields(parser, kind, *names.split())


def _add_infer(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="name of a model, of the server or the repository; or an "
        "ONNX file, or a model's folder",
    )
    add(
        "values",
        nargs="*",
        metavar="NAME=VALUE",
        help="an input: JSON or a text; @FILE with a NumPy array (.npy), JSON, a text or a "
        "picture; - for stdin; zeros or random, or with sizes of its axes zeros[1,64]. The batch "
        "axis may be left out, and so may the name of the only input",
    )
    add("--random", action="store_true", help="fill the inputs that no value is given for")
    parser.intermixed = "values"
    models.add_pictures(parser)
    models.add_server(parser)
    models.add_repository(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="MODEL.onnx",
        help="file to describe, instead of a model of a repository",
    )
    models.add_source(parser)
    parser.set_defaults(model=None)


def _add_health(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--target",
        type=models.target,
        default=f"127.0.0.1:{ServerConfig().port}",
        metavar="HOST:PORT",
        help="the server",
    )
    add("--timeout", type=options.seconds, default=5.0, metavar="SECONDS", help="time limit")
    add(
        "--tls-server-name",
        metavar="NAME",
        help="name that the certificate must have (default: the target's)",
    )
    models.add_access(parser)


def _serve(options: argparse.Namespace) -> int:
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
    gc.disable()  # 10 ms: nothing that is imported is garbage
    import_module("serving.server.server")
    from serving.model.repository import named_models, read_labels

    gc.freeze()
    gc.enable()
    logs.setup(options.log_format, options.log_level)
    batching = models.config_of(BatchingConfig, options)
    security = models.config_of(SecurityConfig, options, tokens=os.environ.get("SERVING_TOKEN"))
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
    from serving.server.server import run_loop, serve, warn_if_exposed

    if config.reload_interval_s and model.version is not None:
        raise ConfigurationError("reload_interval replaces versions, and --version pins one")
    warn_if_exposed(config)
    if config.workers == 1:
        return run_loop(serve(model, batching, config), config.transport)
    import asyncio  # here: handlers of signals are installed before

    from serving.server.supervisor import supervise  # one process needs no multiprocessing

    return asyncio.run(supervise(model, batching, config))


def _other_port(config: ServerConfig, error: str) -> str:
    """Return which option chooses another port, if one is taken."""
    ports = {"port": (config.host, config.port), "http-port": (config.http_host, config.http_port),
             "metrics-port": (config.metrics_host, config.metrics_port)}  # fmt: skip
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


def _infer(options: argparse.Namespace) -> int:
    from serving.cli import infer

    return infer.run(options)


def _info(options: argparse.Namespace) -> int:
    from serving.cli import description

    if options.target:
        with models.client_of(options) as client:
            described = description.of_server(client, options.model, options.version)
    else:
        if options.file is not None:
            config = models.config_of(ModelConfig, options, model="")
            described = [description.of_files(options.file, config)]
        else:
            options.model = options.model or ""
            config = models.model_config(options)
            described = [description.of_files(config.models / config.model, config)]
    for number, facts in enumerate(described):
        print(description.as_json(facts) if options.json else description.as_text(facts, number))
    return 0


def _health(options: argparse.Namespace) -> int:
    from serving.cli.probe import trouble

    reason = trouble(
        options.target,
        options.timeout,
        token=models.token_of(options),
        tls=(options.tls_ca, options.tls_key, options.tls_cert),
        server_name=options.tls_server_name,
    )
    if reason is not None:
        raise Unavailable(f"{options.target}: {reason}")
    print(f"{options.target}: SERVING")
    return 0


def _served_models(options: argparse.Namespace) -> ModelConfig:
    from serving.model.repository import models_in

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
    elif files and not names:
        source = {"names": ()}
    elif names or not models_in(usual):
        source = {"models": models.usual_models(*names[:1])}
    return models.config_of(
        ModelConfig, options, **({"names": names or None, "files": files} | source)
    )


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "infer": _infer,
    "info": _info,
    "health": _health,
}
"""Each takes the parsed options and returns the exit code; `main` handles its errors."""
