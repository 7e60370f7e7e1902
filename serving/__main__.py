"""The command line: `python -m serving {serve,classify,info,health}`."""

import sys

from serving.system import signals

if sys.argv[1:2] == ["serve"]:  # before all else, which takes time to import
    signals.heed()

import argparse
import json
import logging
import os
from collections.abc import Callable
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

from commandline import extras
from commandline.parser import blame
from serving.cli.arguments import parser
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import ConfigurationError, CorruptModel, DeviceError, DigitsError, ModelNotFound
from serving.system.files import require_descriptors
from serving.telemetry import logs

if TYPE_CHECKING:
    from serving.classifier import Classifier
    from serving.client import Client

_log = logging.getLogger(__name__)

_UNUSABLE = (ConfigurationError, CorruptModel, DeviceError, ModelNotFound)

EXTRAS = {
    "onnxruntime": "serve",
    "grpc_health": "serve",
    "grpc_reflection": "serve",
    "prometheus_client": "serve",
    "ngh2": "serve",
    "uvloop": "serve",
    "PIL": "pictures",
    "scipy": "pictures",
}
"""What the base installation lacks, and the extra that brings it."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 served or answered, 2 bad usage or configuration, 1 anything else.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told by us, in one line
    options = parser().parse_args(argv)
    if options.command == "serve":
        _reserve_standard_files()
    try:
        code = _COMMANDS[options.command](options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        return _end_output()
    except ModuleNotFoundError as err:
        return _fail(extras.advice(err, EXTRAS), 2)
    except _UNUSABLE as err:
        return _fail(blame(str(err), options.variables), 2)
    except DigitsError as err:
        return _fail(str(err), 1)
    except OSError as err:  # such as no descriptors or no memory left
        return _fail(str(err), 1)
    except KeyboardInterrupt:
        return 1


def _fail(reason: str, code: int) -> int:
    if not logs.print_line(f"digits-serve: {reason}", sys.stderr):
        signals.end_process(code)
    return code


def _end_output() -> int:
    """Write no more: who read stdout, such as head, has left."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1


def _reserve_standard_files() -> None:
    """Keep what writes to stdin, stdout or stderr where one is closed out of later files."""
    for descriptor in range(3):
        try:
            os.fstat(descriptor)
        except OSError:
            os.set_inheritable(os.open(os.devnull, os.O_RDWR), True)


def _serve(options: argparse.Namespace) -> int:
    if signals.HANG_UP is None:
        raise ConfigurationError("serve needs Linux: on Windows, run it in WSL or in the container")
    # Named here, not in each worker's traceback.
    extras.require("onnxruntime", "uvloop", "grpc_health", "prometheus_client")
    from serving.server.run import run

    logs.setup(options.log_format)
    batching = BatchingConfig(
        max_batch_size=options.max_batch_size,
        max_queue_delay_s=options.max_queue_delay,
        queue_capacity=options.queue_capacity,
        max_request_images=options.max_request_images,
    )
    config = ServerConfig(
        host=options.host,
        port=options.port,
        metrics_host=options.metrics_host,
        metrics_port=options.metrics_port,
        transport=options.transport,
        workers=options.workers,
        drain_s=options.drain,
        max_connection_age_s=options.max_connection_age,
        reload_interval_s=options.reload_interval,
        self_test_interval_s=options.self_test_interval,
        access_log=options.access_log,
        reflection=options.reflection,
        log_format=options.log_format,
        security=SecurityConfig(
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            tls_client_ca=options.tls_client_ca,
            token_file=options.token_file,
            tokens=os.environ.get("DIGITS_TOKEN"),
        ),
    )
    require_descriptors(64 + 8 * config.workers)
    is_drained = run(_model_config(options), batching, config)
    signals.end_process(0 if is_drained else 1)


def _classify(options: argparse.Namespace) -> int:
    extras.require("PIL", "scipy")
    if options.csv and options.json:
        raise ConfigurationError("--csv and --json exclude each other")
    from serving.cli import picture_files
    from serving.cli.answers import Answer, Report, answer

    found = picture_files.find(options.pictures)
    report = Report("csv" if options.csv else "json" if options.json else "text", len(found))
    is_good = True
    with (
        closing(picture_files.read(found)) as readings,
        _open(options) as classifier,
        closing(report),
    ):
        for picture, image in readings:
            if isinstance(image, str):
                is_good = False
                report.add(Answer(picture=picture, error=image))
            else:
                report.add(answer(picture, classifier.classify(image), options.reject_below))
    return 0 if is_good else 1


def _info(options: argparse.Namespace) -> int:
    with _open(options) as classifier:
        info = asdict(classifier.model_info())
    if options.json:
        print(json.dumps(info))
        return 0
    for name, value in info.items():
        print(f"{name.replace('_', ' '):<20}{value}")
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
        return _fail(f"{options.target}: {reason}", 1)
    print(f"{options.target}: SERVING")
    return 0


def _open(options: argparse.Namespace) -> "Classifier | Client":
    if options.target:
        from serving.client import Client

        return Client(
            options.target,
            token=_token(options),
            tls_ca=options.tls_ca,
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
        )
    from serving.classifier import Classifier

    return Classifier.open(_model_config(options))


def _token(options: argparse.Namespace) -> str | None:
    """Return the first token of the file or of DIGITS_TOKEN."""
    from serving.credentials.tokens import parse_tokens
    from serving.credentials.watched_files import read_bytes

    if options.token_file is not None:
        return parse_tokens(read_bytes(options.token_file), options.token_file)[0].decode()
    text = os.environ.get("DIGITS_TOKEN")
    return None if text is None else parse_tokens(text.encode(), "DIGITS_TOKEN")[0].decode()


def _model_config(options: argparse.Namespace) -> ModelConfig:
    return ModelConfig(
        models=getattr(options, "models", None) or _usual_models(options.model),
        model=options.model,
        version=options.version,
        device=options.device,
        precision=options.precision,
        served_name=getattr(options, "served_name", None),
    )


def _usual_models(model: str) -> Path:
    """Choose the repository where none is named, and say so if it is not the usual one."""
    from serving.model import repository

    usual = ModelConfig().models
    root = repository.find_root(model, usual)
    if root != usual:
        _log.warning("no model in %s: using the bundled one, %s", usual / model, root / model)
    return root


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": _serve,
    "classify": _classify,
    "info": _info,
    "health": _health,
}


if __name__ == "__main__":
    sys.exit(main())
