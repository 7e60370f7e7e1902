"""The commands of `digit-serving`, their options and their help texts."""

import argparse
from dataclasses import fields
from pathlib import Path

from serving.cli import scoring
from serving.commandline import values
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.options import add_fields, command_help
from serving.commandline.parser import Parser
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.errors import InvalidRequest


def parser() -> Parser:
    """Return the parser of all commands; the command's name is parsed as `command`."""
    program = Parser(
        prog=DISTRIBUTION, description="Serve a digit classifier over gRPC, or call one."
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, examples, add in (
        ("serve", "serve models over gRPC until SIGTERM", _SERVE, _add_serve),
        ("classify", "classify picture files", _CLASSIFY, _add_classify),
        ("read", "read the numbers in picture files", _READ, _add_read),
        ("score", "classify a data set into Parquet files", scoring.EXAMPLES, _add_score),
        ("info", "print a model, its tensors, device and limits", _INFO, _add_info),
        ("health", "check the health of a server", _PROBE, _add_health),
    ):
        add(commands.add_parser(name, **command_help(text, examples)))
    return program


_SERVE = """\
  digit-serving serve detector.onnx classifier.onnx
  digit-serving serve flowers.onnx --input image --labels labels.txt
  digit-serving serve --models models --model digits letters --workers 2
  digit-serving serve --models s3://bucket/models --reload-interval 60 --canary 5%
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
  digit-serving read form.png                             form.png: 90210 (92.7 %)
  digit-serving read bill.jpg scans/ --csv > numbers.csv  12/05/2026 and -3,14, a row for each
  digit-serving read scans/ --json > numbers.jsonl        with a box for each digit
  digit-serving read note.jpg --reject-below 0.9          ? for less probable digits
  digit-serving read bill.jpg --pattern '\\d+[.,]\\d{2}'    only amounts, such as 3,14
  digit-serving read scans/ --pattern '[A-Z]{2}\\d{20}'    letters are ink that is skipped
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
    parser.add_argument("files", nargs="*", type=Path, metavar="MODEL.onnx",
        help="file to serve, as a model of its name; without --models and --model nothing else "
        "is served")  # fmt: skip
    _add_repository(parser)
    parser.add_argument("--model", dest="names", nargs="+", action="extend", metavar="NAME",
        help="models of the repository to serve (default: all)")  # fmt: skip
    _add_pictures(parser)
    add_fields(parser, ModelConfig, "versions", "canary", "served_name")
    add_fields(
        parser, ServerConfig,
        "allow_repository_control", "host", "port", "metrics_host", "metrics_port", "http_host",
        "http_port", "http_host_names", "http_allow_origins", "transport", "workers",
    )  # fmt: skip
    add_fields(parser, BatchingConfig, *(each.name for each in fields(BatchingConfig)))
    add_fields(
        parser, ServerConfig,
        "reflection", "drain_s", "max_connection_age_s", "reload_interval_s",
        "self_test_interval_s", "access_log", "otlp_endpoint", "log_format",
    )  # fmt: skip
    add_fields(parser, SecurityConfig, "tls_cert", "tls_key", "tls_client_ca", "token_file")


def _add_classify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
        help="picture of one digit, any size, dark on light or the reverse, or one for another "
        "classifier: PNG, JPEG, WebP, GIF, TIFF, BMP, AVIF; HEIC with pillow-heif; a folder of "
        "them; or - for stdin")  # fmt: skip
    parser.add_argument("--reject-below", type=values.share, default=0.0, metavar="P",
        help="print ? instead of a digit that is less probable than this, 0 to 1")  # fmt: skip
    parser.add_argument("--collect", type=Path, metavar="DIR",
        help="copy those pictures into DIR/unsure/GUESS; `python -m training label DIR` asks which "
        "digits they are, to train on")  # fmt: skip
    _add_pictures(parser)
    _add_table(parser)


def _add_read(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("pictures", nargs="+", metavar="PICTURE",
        help="picture with numbers, such as a photo of a note or a scan of a form, of the formats "
        "of classify; a folder of them; or - for stdin")  # fmt: skip
    parser.add_argument("--reject-below", type=values.share, default=0.0, metavar="P",
        help="print ? instead of a number that is less probable than this, 0 to 1")  # fmt: skip
    parser.add_argument("--pattern", type=_pattern, metavar="REGEX",
        help="read only numbers that fit this regular expression of digits, marks and blanks; "
        "letters in it are ink that is skipped")  # fmt: skip
    _add_table(parser)


def _pattern(text: str) -> str:
    from digit_reader.text.pattern import of_rows  # needs numpy, which `serve --help` does not

    try:
        of_rows(text)
    except InvalidRequest as err:
        raise argparse.ArgumentTypeError(str(err)) from err
    return text


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
    add_fields(parser, ServerConfig, "input")
    parser.add_argument("--labels", type=Path, metavar="FILE",
        help="the names of their classes, one a line")  # fmt: skip


def _add_repository(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", metavar="DIR|URL", default=argparse.SUPPRESS,
        help="root of the model repository, or where to copy it from: s3://, gs://, hf:// or other "
        "URLs of fsspec, or a .zip, .tar.gz or .onnx at https:// (default: "
        f"{ModelConfig().models} if it has the model, else the bundled one)")  # fmt: skip
    add_fields(parser, ModelConfig, "model_cache", "version", "device", "precision")
