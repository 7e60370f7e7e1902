"""The command line: `python -m serving {serve,classify,info}`."""

import argparse
import json
import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from serving import logs
from serving.config import (
    BatchingConfig,
    Device,
    LogFormat,
    ModelConfig,
    Precision,
    SecurityConfig,
    ServerConfig,
    Transport,
)
from serving.errors import ConfigurationError, CorruptModel, DeviceError, DigitsError, ModelNotFound

if TYPE_CHECKING:
    from serving.classifier import Classifier
    from serving.client import Client

_log = logging.getLogger(__name__)

_UNUSABLE = (ConfigurationError, CorruptModel, DeviceError, ModelNotFound)


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 served or answered, 2 bad usage or configuration, 1 anything else.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # what goes wrong is told by us, in one line
    options = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], int] = options.command
    try:
        return command(options)
    except DigitsError as err:
        print(f"digits-serve: {err}", file=sys.stderr)
        return 2 if isinstance(err, _UNUSABLE) else 1


def _serve(options: argparse.Namespace) -> int:
    import uvloop

    from serving.rpc.exposure import warn_if_exposed
    from serving.rpc.server import serve
    from serving.rpc.workers import supervise

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
        metrics_port=options.metrics_port,
        transport=options.transport,
        workers=options.workers,
        drain_s=options.drain,
        reload_interval_s=options.reload_interval,
        self_test_interval_s=options.self_test_interval,
        access_log=options.access_log,
        reflection=options.reflection,
        security=SecurityConfig(
            tls_cert=options.tls_cert,
            tls_key=options.tls_key,
            tls_client_ca=options.tls_client_ca,
            token_file=options.token_file,
            tokens=os.environ.get("DIGITS_TOKEN"),
        ),
    )
    warn_if_exposed(config)
    model = _model_config(options)
    if config.workers == 1:
        is_drained = uvloop.run(serve(model, batching, config))
    else:
        is_drained = uvloop.run(supervise(model, batching, config, options.log_format))
    return 0 if is_drained else 1


def _classify(options: argparse.Namespace) -> int:
    import numpy as np

    from serving.images import from_picture

    images, errors = {}, {}
    for picture in options.pictures:
        try:
            images[picture] = from_picture(picture)
        except DigitsError as err:
            errors[picture] = str(err)
    answers: Iterator[Any] = iter(())
    if images:
        with _open(options) as classifier:
            predictions = classifier.classify(np.concatenate(list(images.values())))
        answers = zip(predictions.digits, predictions.probabilities, strict=True)
    for picture in options.pictures:
        if picture in errors:
            _report_error(picture, errors[picture], options.json)
        else:
            digit, probabilities = next(answers)
            _report_answer(picture, digit, probabilities, options)
    return 1 if errors else 0


def _report_error(picture: str, error: str, as_json: bool) -> None:
    if as_json:
        print(json.dumps({"picture": picture, "error": error}))
    else:
        print(f"{picture}: {error}", file=sys.stderr)


def _report_answer(
    picture: str, digit: Any, probabilities: Any, options: argparse.Namespace
) -> None:
    is_rejected = bool(probabilities[digit] < options.reject_below)
    if options.json:
        answer = {"digit": int(digit), "probabilities": [round(float(p), 6) for p in probabilities]}
        print(json.dumps({"picture": picture, **answer, "rejected": is_rejected}))
    else:
        shown = f"? (perhaps {digit}, " if is_rejected else f"{digit} ("
        print(f"{picture}: {shown}{probabilities[digit]:.1%})")


def _info(options: argparse.Namespace) -> int:
    with _open(options) as classifier:
        info = asdict(classifier.model_info())
    if options.json:
        print(json.dumps(info))
        return 0
    for name, value in info.items():
        print(f"{name.replace('_', ' '):<20}{value}")
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
    from serving.rpc.tokens import parse_tokens
    from serving.rpc.watched import read_bytes

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
    )


def _usual_models(model: str) -> Path:
    """Choose the repository where none is named, and say so if it is not the usual one."""
    from serving import repository

    usual = ModelConfig().models
    root = repository.find_root(model, usual)
    if root != usual:
        _log.warning("no model in %s: using the one in the box, %s", usual / model, root / model)
    return root


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="digits-serve", description="Serve a digit classifier over gRPC, or ask one."
    )
    commands = parser.add_subparsers(required=True, metavar="{serve,classify,info}")
    _add_serve(commands.add_parser("serve", **_help("serve a model over gRPC until SIGTERM")))
    _add_classify(commands.add_parser("classify", **_help("tell the digits in PNG or JPEG files")))
    _add_info(commands.add_parser("info", **_help("tell what is served, on what, its limits")))
    return parser


def _help(text: str) -> dict[str, Any]:
    """One text for the list of commands and for the command's own page; shows defaults."""
    return {
        "help": text,
        "description": text[0].upper() + text[1:] + ".",
        "formatter_class": argparse.ArgumentDefaultsHelpFormatter,
    }


def _add_serve(parser: argparse.ArgumentParser) -> None:
    batching, config = BatchingConfig(), ServerConfig()
    parser.set_defaults(command=_serve)
    _add_model(parser)
    add = parser.add_argument
    add("--host", default=config.host, help="address to listen on")
    add("--port", type=int, default=config.port, help="TCP port; 0 lets the kernel choose")
    add("--metrics-port", type=_port_or_off, default=config.metrics_port, metavar="PORT",
        help="TCP port of the metrics, on loopback; 0: the kernel chooses; or off")  # fmt: skip
    add("--transport", choices=get_args(Transport), default=config.transport,
        help="what answers the port; auto takes native where it is installed")  # fmt: skip
    add("--workers", type=int, default=config.workers, metavar="N",
        help="processes that share the port, the cores divided among them; one that dies is "
        "started again; limits such as the queue's are each worker's own")  # fmt: skip
    add("--max-batch-size", type=int, default=batching.max_batch_size, metavar="IMAGES",
        help="most images in one run")  # fmt: skip
    add("--max-queue-delay", type=float, default=batching.max_queue_delay_s, metavar="SECONDS",
        help="how long an idle engine waits for more images")  # fmt: skip
    add("--queue-capacity", type=int, default=batching.queue_capacity, metavar="IMAGES",
        help="most images that wait; what would exceed it is rejected")  # fmt: skip
    add("--max-request-images", type=int, default=batching.max_request_images, metavar="IMAGES",
        help="most images in one request")  # fmt: skip
    add("--reflection", action="store_true",
        help="tell callers such as grpcurl which services and messages there are")  # fmt: skip
    add("--drain", type=float, default=config.drain_s, metavar="SECONDS",
        help="how long accepted requests may take to finish after SIGTERM or Ctrl-C")  # fmt: skip
    add("--reload-interval", type=float, default=config.reload_interval_s, metavar="SECONDS",
        help="how often to look for a new version; 0: only at SIGHUP")  # fmt: skip
    add("--self-test-interval", type=float, default=config.self_test_interval_s,
        metavar="SECONDS", help="how often a golden sample proves that health may say SERVING; "
        "0: never")  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE",
        help="PEM certificate chain: makes the port TLS; read again when it changes")  # fmt: skip
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of the certificate")
    add("--tls-client-ca", type=Path, metavar="FILE",
        help="PEM authorities: each client needs a certificate from one")  # fmt: skip
    add("--token-file", type=Path, metavar="FILE",
        help="bearer tokens, one a line, all valid; or set DIGITS_TOKEN")  # fmt: skip
    add("--access-log", type=float, default=config.access_log, metavar="SHARE",
        help="log this share of the calls, 0 to 1, and all that fail; grpcio only")  # fmt: skip
    add("--log-format", choices=get_args(LogFormat), default="text", help="of the lines on stderr")


def _port_or_off(text: str) -> int | None:
    return None if text == "off" else int(text)


def _probability(text: str) -> float:
    with suppress(ValueError):
        if 0 <= float(text) <= 1:
            return float(text)
    raise argparse.ArgumentTypeError(f"expected a probability, 0 to 1, got {text!r}")


def _add_classify(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_classify)
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
        help="PNG or JPEG of one digit: any size, dark on light or the reverse")  # fmt: skip
    parser.add_argument("--reject-below", type=_probability, default=0.0, metavar="P",
        help="answer ? where the digit is less probable than this, 0 to 1")  # fmt: skip
    _add_source(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.set_defaults(command=_info)
    _add_source(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", metavar="HOST:PORT",
        help="ask a running server instead of loading the model here")  # fmt: skip
    add = parser.add_argument
    add("--tls-ca", type=Path, metavar="FILE",
        help="PEM authorities that sign servers' certificates: asks by TLS")  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE", help="PEM certificate of one's own, for mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of that certificate")
    add("--token-file", type=Path, metavar="FILE",
        help="its first line is the bearer token; or set DIGITS_TOKEN")  # fmt: skip
    add("--json", action="store_true", help="one JSON object a line")
    _add_model(parser)


def _add_model(parser: argparse.ArgumentParser) -> None:
    config = ModelConfig()
    add = parser.add_argument
    add("--models", type=Path, metavar="DIR", default=argparse.SUPPRESS,
        help=f"the model repository's root (default: {config.models} if it holds the model, else "
        "the model in the box)")  # fmt: skip
    add("--model", default=config.model, metavar="NAME", help="the model's name: a folder in it")
    add("--version", metavar="N", help="the version to use; the newest good one if not given")
    add("--device", choices=get_args(Device), default=config.device,
        help="auto takes CUDA where it works, else the CPU")  # fmt: skip
    add("--precision", choices=get_args(Precision), default=config.precision,
        help="which variant of the model runs")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
