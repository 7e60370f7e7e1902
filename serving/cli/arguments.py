"""The commands of `digit-serving`, their options and their help texts."""

import argparse
from collections.abc import Mapping
from dataclasses import fields
from pathlib import Path
from typing import Any

from serving import applications
from serving.applications import Command
from serving.cli import scoring
from serving.cli.models import add_access, add_model, add_pictures, add_repository, add_source
from serving.commandline import options
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.options import Parser, add_fields, command_help
from serving.config import BatchingConfig, ModelConfig, SecurityConfig, ServerConfig
from serving.digits import command as classify


def parser(others: Mapping[str, Command] | None = None) -> Parser:
    """Return the parser of all commands.

    The command's name is parsed as `command`; of one of `others`, its function as `run`.

    Args:
        others: the commands of other distributions; None for all that are installed.
    """
    program = Parser(
        prog=DISTRIBUTION, description="Serve a digit classifier over gRPC, or call one."
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, examples, add in (
        ("serve", "serve models over gRPC until SIGTERM", _SERVE, _add_serve),
        ("classify", classify.HELP, classify.EXAMPLES, classify.add_arguments),
        ("score", "classify a data set into Parquet files", scoring.EXAMPLES, _add_score),
        ("info", "print a model, its tensors, device and limits", _INFO, _add_info),
        ("health", "check the health of a server", _PROBE, _add_health),
    ):
        add(commands.add_parser(name, **command_help(text, examples)))
    others = applications.installed(applications.COMMANDS) if others is None else others
    for name, other in others.items():
        add_command(commands, name, other)
    return program


def add_command(commands: "argparse._SubParsersAction[Any]", name: str, command: Command) -> None:
    """Add a command of an application; its function is parsed as `run`."""
    parser = commands.add_parser(name, **command_help(command.HELP, command.EXAMPLES))
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)


_SERVE = """\
  digit-serving serve detector.onnx classifier.onnx
  digit-serving serve flowers.onnx --input image --labels labels.txt
  digit-serving serve --models models --model digits letters --workers 2
  digit-serving serve --models s3://bucket/models --reload-interval 60 --canary 5%
  digit-serving serve --models https://example.org/flowers.onnx#sha256=DIGEST
  digit-serving serve --served-name mnist --tls-cert cert.pem --tls-key key.pem
  DIGITS_PORT=8033 DIGITS_LOG_FORMAT=json digit-serving serve --host 0.0.0.0
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
    add_repository(parser)
    parser.add_argument("--model", dest="names", nargs="+", action="extend", metavar="NAME",
        help="models of the repository to serve (default: all)")  # fmt: skip
    add_pictures(parser)
    add_fields(parser, ModelConfig, "versions", "canary", "served_name", "batch", "max_model_bytes")
    add_fields(
        parser, ServerConfig,
        "allow_repository_control", "host", "port", "metrics_host", "metrics_port", "http_host",
        "http_port", "http_host_names", "http_allow_origins", "max_json_bytes",
        "transport", "workers",
    )  # fmt: skip
    add_fields(parser, BatchingConfig, *(each.name for each in fields(BatchingConfig)))
    add_fields(
        parser, ServerConfig,
        "reflection", "drain_s", "max_connection_age_s", "reload_interval_s",
        "self_test_interval_s", "access_log", "otlp_endpoint", "log_format",
    )  # fmt: skip
    add_fields(parser, SecurityConfig, "tls_cert", "tls_key", "tls_client_ca", "token_file")


def _add_score(parser: argparse.ArgumentParser) -> None:
    scoring.add_arguments(parser)
    add_model(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", nargs="?", type=Path, metavar="MODEL.onnx",
        help="file to describe, instead of a model of a repository")  # fmt: skip
    add_source(parser)


def _add_health(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add("--target", type=options.target, default=f"127.0.0.1:{ServerConfig().port}",
        metavar="HOST:PORT", help="the server")  # fmt: skip
    add("--timeout", type=options.seconds, default=5.0, metavar="SECONDS", help="time limit")
    add("--tls-server-name", metavar="NAME",
        help="name that the certificate must have (default: the target's)")  # fmt: skip
    add_access(parser)
