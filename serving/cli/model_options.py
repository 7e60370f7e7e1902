"""Options of commands that load a model."""

import argparse
from pathlib import Path

from serving.cli import target
from serving.commandline.fields import add_fields
from serving.config import ModelConfig, ServerConfig


def add_source(parser: argparse.ArgumentParser) -> None:
    """Add the options of a command that loads a model or calls a server, and may print JSON."""
    target.add_server(parser)
    add_model(parser)


def add_model(parser: argparse.ArgumentParser) -> None:
    """Add the options of one model in files."""
    add_repository(parser)
    parser.add_argument(
        "--model",
        default="",
        metavar="NAME",
        help="name of the model: a folder or a file in the repository; without one, its only model "
        "or the bundled one",
    )


def add_pictures(parser: argparse.ArgumentParser) -> None:
    """Add the options that describe how a model without a manifest takes pictures."""
    add_fields(parser, ServerConfig, "input")
    parser.add_argument(
        "--labels", type=Path, metavar="FILE", help="the names of the classes, one a line"
    )


def add_handler(parser: argparse.ArgumentParser) -> None:
    """Add the option of the Python around a model that is loaded here."""
    parser.add_argument(
        "--handler",
        dest="around",
        metavar="[NAME=]FILE.py",
        help="Python around the model, as `serve` takes it: FILE.py or FILE.py:CLASS, with the "
        "model's name before it or not; see docs/handlers.md",
    )


def add_repository(parser: argparse.ArgumentParser) -> None:
    """Add the options of a repository of models."""
    parser.add_argument(
        "--models",
        metavar="DIR|URL",
        default=argparse.SUPPRESS,
        help="root of the model repository, or where to copy it from: s3://, gs://, hf:// or other "
        "URLs of fsspec, or an .onnx at https:// (default: "
        f"{ModelConfig().models} if it has the model, else the bundled one)",
    )
    add_fields(parser, ModelConfig, "model_cache", "version", "device", "precision")
