"""The commands of `digit-serving`, their options and their help texts."""

import argparse
from functools import partial
from pathlib import Path
from typing import Any, get_args

from serving.cli import scoring, values
from serving.cli.parser import Parser
from serving.config import (
    BatchingConfig,
    Device,
    LogFormat,
    ModelConfig,
    Precision,
    ServerConfig,
    TransportName,
)
from serving.installation import DISTRIBUTION


def parser() -> Parser:
    """Return the parser of all commands; the command's name is parsed as `command`."""
    program = Parser(
        prog=DISTRIBUTION, description="Serve a digit classifier over gRPC, or call one."
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(
        commands.add_parser("serve", **_help("serve models over gRPC until SIGTERM", _SERVE))
    )
    _add_classify(
        commands.add_parser("classify", **_help("say what picture files show", _CLASSIFY))
    )
    _add_read(commands.add_parser("read", **_help("read the numbers in picture files", _READ)))
    _add_score(
        commands.add_parser(
            "score", **_help("classify a data set into Parquet files", scoring.EXAMPLES)
        )
    )
    _add_info(
        commands.add_parser("info", **_help("print a model, its tensors, device and limits", _INFO))
    )
    _add_health(commands.add_parser("health", **_help("check the health of a server", _PROBE)))
    return program


class _Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Leave out a default that says nothing: None, or a flag that is off."""
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def _help(text: str, examples: str = "") -> dict[str, Any]:
    """Use one text in the list of commands and on the command's own page."""
    return {
        "help": text,
        "description": text[0].upper() + text[1:] + ".",
        "epilog": examples and f"examples:\n{examples}",
        "formatter_class": _Formatter,
    }


_SERVE = """\
  digit-serving serve detector.onnx classifier.onnx
  digit-serving serve flowers.onnx --input image --labels labels.txt
  digit-serving serve --models models --model digits letters --workers 2
  digit-serving serve --models s3://bucket/models --reload-interval 60 --canary 5%%
  digit-serving serve --models https://example.org/models.tar.gz#sha256=DIGEST
  digit-serving serve --served-name mnist --tls-cert cert.pem --tls-key key.pem
  DIGITS_PORT=8033 DIGITS_LOG_FORMAT=json digit-serving serve --host 0.0.0.0
"""
_CLASSIFY = """\
  digit-serving classify seven.png scans/ --csv > answers.csv
  digit-serving classify - --target 127.0.0.1:50051 < seven.png
  digit-serving classify scans/ --reject-below 0.9 --collect own
  digit-serving classify rose.jpg --model flowers.onnx --input image --labels labels.txt
"""
_READ = """\
  digit-serving read form.png                             form.png: 90210 (98.7 %)
  digit-serving read bill.jpg scans/ --csv > numbers.csv  12/05/2026 and -3,14, a row for each
  digit-serving read scans/ --json > numbers.jsonl        with a box for each digit
  digit-serving read note.jpg --reject-below 0.9          ? instead of what is less probable
"""
_INFO = """\
  digit-serving info model.onnx
  digit-serving info --models models --model letters --json
  digit-serving info --target 127.0.0.1:50051
"""
_PROBE = """\
  digit-serving health                                   exit code 0: SERVING, else 1
  digit-serving health --target 10.0.0.7:50051 --tls-ca ca.pem --tls-server-name digits
"""


def _add_serve(parser: argparse.ArgumentParser) -> None:
    batching, config = BatchingConfig(), ServerConfig()
    add = parser.add_argument
    add("files", nargs="*", type=Path, metavar="MODEL.onnx",
        help="file to serve, as a model of its name; without --models and --model nothing else "
        "is served")  # fmt: skip
    _add_repository(parser)
    add("--model", dest="names", nargs="+", action="extend", metavar="NAME",
        help="models of the repository to serve (default: all)")  # fmt: skip
    _add_pictures(parser)
    add("--versions", default=ModelConfig().versions, metavar="WHICH",
        help="versions of each model to serve: latest, all, or numbers such as 3,4")  # fmt: skip
    add("--canary", type=values.share, default=ModelConfig().canary, metavar="SHARE",
        help="share of the calls for the newest version, such as 5%%; the one before answers the "
        "others; a model's labels.json goes first")  # fmt: skip
    add("--allow-repository-control", action="store_true",
        help="let callers load and unload models")  # fmt: skip
    add("--host", default=config.host, help="address to listen on")
    add("--port", type=int, default=config.port, help="TCP port; 0 lets the kernel choose")
    add(
        "--served-name",
        metavar="NAME",
        help="the only model's name for callers (default: the name that it was exported with)",
    )
    add(
        "--metrics-host",
        default=config.metrics_host,
        metavar="HOST",
        help="address of /metrics, /healthz and /readyz, without TLS and tokens",
    )
    add("--metrics-port", type=values.port_or_off, default=config.metrics_port, metavar="PORT",
        help="TCP port of these; 0 lets the kernel choose; off disables them")  # fmt: skip
    add("--http-host", default=config.http_host, metavar="HOST", help="address of HTTP")
    add("--http-port", type=values.port_or_off, default="auto", metavar="PORT",
        help="TCP port of HTTP: pictures, tensors as JSON, and a page to draw on; 0: the kernel "
        "chooses; or off; auto: 8080 if it is free and the extra http is installed")  # fmt: skip
    add_list = partial(add, nargs="+", action="extend", default=[])
    add_list("--http-host-name", dest="http_host_names", metavar="NAME",
             help="names of this server in URLs, beside localhost and addresses; "
                  "*: any")  # fmt: skip
    add_list("--http-allow-origin", dest="http_allow_origins", metavar="URL",
             help="sites whose pages may ask, such as https://example.org")  # fmt: skip
    add("--transport", choices=get_args(TransportName), default=config.transport,
        help="gRPC implementation; auto is h2")  # fmt: skip
    add("--workers", type=int, default=config.workers, metavar="N",
        help="processes that share the port and divide the cores; one that dies is restarted; "
        "limits such as the queue's are per worker")  # fmt: skip
    add("--max-batch-size", type=int, default=batching.max_batch_size, metavar="IMAGES",
        help="most images in one run")  # fmt: skip
    add("--max-queue-delay", type=float, default=batching.max_queue_delay_s, metavar="SECONDS",
        help="how long an idle engine waits for more images before it runs")  # fmt: skip
    add("--queue-capacity", type=int, default=batching.queue_capacity, metavar="IMAGES",
        help="most images that wait for a run; further requests are rejected")  # fmt: skip
    add("--slo", dest="slo_s", type=values.objective, default=batching.slo_s, metavar="TIME",
        help="time such as 5ms within which accepted calls are to be answered; calls that would "
        "wait longer are rejected at once")  # fmt: skip
    add("--max-request-images", type=int, default=batching.max_request_images, metavar="IMAGES",
        help="most images in one request")  # fmt: skip
    add("--reflection", action="store_true",
        help="list services and messages to callers such as grpcurl")  # fmt: skip
    add("--drain", type=float, default=config.drain_s, metavar="SECONDS",
        help="time for accepted requests to finish after SIGTERM or Ctrl-C")  # fmt: skip
    add("--max-connection-age", type=float, default=config.max_connection_age_s, metavar="SECONDS",
        help="age at which callers are asked to reconnect, so that load balancers spread "
             "them; 0: never")  # fmt: skip
    add("--reload-interval", type=float, default=config.reload_interval_s, metavar="SECONDS",
        help="time between looks for new versions, labels, models; 0: only at SIGHUP")  # fmt: skip
    add("--self-test-interval", type=float, default=config.self_test_interval_s,
        metavar="SECONDS", help="time between golden samples that decide what health says; "
        "0: never")  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE",
        help="PEM certificate chain: enables TLS; reloaded when it changes")  # fmt: skip
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of the certificate")
    add("--tls-client-ca", type=Path, metavar="FILE",
        help="PEM authorities: clients need a certificate from one of them (mTLS)")  # fmt: skip
    add("--token-file", type=Path, metavar="FILE",
        help="bearer tokens, one a line, all valid; or set DIGITS_TOKEN")  # fmt: skip
    add("--access-log", type=float, default=config.access_log, metavar="SHARE",
        help="share of the calls to log, 0 to 1, besides all that fail")  # fmt: skip
    add("--otlp-endpoint", metavar="URL",
        help="OpenTelemetry collector that gets a span for each call, such as "
        "http://127.0.0.1:4317 (extra otel)")  # fmt: skip
    add("--log-format", choices=get_args(LogFormat), default="text",
        help="format of the log lines on stderr and of the ready line on stdout")  # fmt: skip


def _add_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
        help="picture of one digit, any size, dark on light or the reverse, or what another model "
        "classifies: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF; HEIC with pillow-heif; a folder of "
        "them; or - for stdin")  # fmt: skip
    parser.add_argument("--reject-below", type=values.probability, default=0.0, metavar="P",
        help="print ? instead of a digit that is less probable than this, 0 to 1")  # fmt: skip
    parser.add_argument("--collect", type=Path, metavar="DIR",
        help="copy those pictures into DIR/unsure/GUESS; moved on into DIR/0 to DIR/9, they are "
        "what `python -m training train --extra DIR` learns from")  # fmt: skip
    _add_pictures(parser)
    _add_table(parser)


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
        help="picture with numbers, such as a photo of a note or a scan of a form, of the formats "
        "of classify; a folder of them; or - for stdin")  # fmt: skip
    parser.add_argument("--reject-below", type=values.probability, default=0.0, metavar="P",
        help="print ? instead of a number that is less probable than this, 0 to 1")  # fmt: skip
    _add_table(parser)


def _add_table(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--csv", action="store_true", help="print a CSV table with a heading")
    _add_source(parser)


def _add_score(parser: argparse.ArgumentParser) -> None:
    scoring.add_arguments(parser)
    _add_model(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="MODEL.onnx",
        help="file to describe, instead of a model of a repository")  # fmt: skip
    _add_source(parser)


def _add_source(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--target", type=values.target, metavar="HOST:PORT",
        help="call a running server instead of loading the model here")  # fmt: skip
    _add_access(parser)
    parser.add_argument("--json", action="store_true", help="print one JSON object a line")
    _add_model(parser)


def _add_health(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", type=values.target, default=f"127.0.0.1:{ServerConfig().port}",
        metavar="HOST:PORT", help="the server")  # fmt: skip
    add("--timeout", type=values.seconds, default=5.0, metavar="SECONDS", help="time limit")
    add("--tls-server-name", metavar="NAME",
        help="name that the certificate must have (default: the target's)")  # fmt: skip
    _add_access(parser)


def _add_access(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--tls-ca", type=Path, metavar="FILE",
        help="PEM authorities that sign servers' certificates: enables TLS")  # fmt: skip
    add("--tls-cert", type=Path, metavar="FILE", help="PEM certificate of the caller, for mTLS")
    add("--tls-key", type=Path, metavar="FILE", help="PEM key of that certificate")
    add("--token-file", type=Path, metavar="FILE",
        help="file whose first line is the bearer token; or set DIGITS_TOKEN")  # fmt: skip


def _add_model(parser: argparse.ArgumentParser) -> None:
    _add_repository(parser)
    parser.add_argument(
        "--model",
        default=ModelConfig().model,
        metavar="NAME",
        help="name of the model: a folder in the repository",
    )


def _add_pictures(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--input", choices=("tensors", "image"), default=ServerConfig().input,
        help="image: models without a manifest classify pictures, of the size that their graphs "
        "say; a classifier.json beside a model says more")  # fmt: skip
    add("--labels", type=Path, metavar="FILE", help="what their classes are called, one a line")


def _add_repository(parser: argparse.ArgumentParser) -> None:
    config = ModelConfig()
    add = parser.add_argument
    add("--models", metavar="DIR|URL", default=argparse.SUPPRESS,
        help="root of the model repository, or where to copy it from: s3://, gs://, hf:// or other "
        "URLs of fsspec, or a .zip, .tar.gz or .onnx at https:// (default: "
        f"{config.models} if it has the model, else the bundled one)")  # fmt: skip
    add("--model-cache", type=Path, metavar="DIR",
        help="folder of copies from URLs (default: ~/.cache/digit-serving/models)")  # fmt: skip
    add("--version", metavar="N", help="version to use (default: the newest good one)")
    add("--device", choices=get_args(Device), default=config.device,
        help="auto takes CUDA if it works, else the CPU")  # fmt: skip
    add("--precision", choices=get_args(Precision), default=config.precision,
        help="variant of the model")  # fmt: skip
