"""The commands of `digit-serving`: their options, their help texts, and what each does."""

import argparse
import logging
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from serving import applications
from serving.applications import Command
from serving.cli import model_options, models, serve
from serving.cli.doors import DOORS
from serving.commandline import values
from serving.commandline.fields import Formatter, command_help
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.parser import Parser
from serving.config import ModelConfig, ServerConfig
from serving.errors import ConfigurationError, Unavailable

_log = logging.getLogger(__name__)
_START = """\
a file, from its server to its answer:
  digit-serving serve model.onnx
  digit-serving infer model --target 127.0.0.1:50051 --random
  digit-serving info --target 127.0.0.1:50051

a Keras model:
  digit-serving export model.keras --name mine
  digit-serving serve --models models --model mine

each command has a --help of its own, with examples
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
        epilog=_START,
        formatter_class=Formatter,
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name, text, examples, add in (
        ("serve", serve.HELP, serve.EXAMPLES, serve.add_arguments),
        ("infer", "run any model on values, arrays or pictures", _INFER, _add_infer),
        ("info", "print a model, its tensors, device and limits", _INFO, _add_info),
        ("health", "check the health of a server", _PROBE, _add_health),
    ):
        add(commands.add_parser(name, **command_help(text, examples)))
    for name, door in DOORS.items():  # listed only: the program itself reads its words
        commands.add_parser(name, add_help=False, **command_help(door.help))
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


def _add_infer(parser: Parser) -> None:
    add = parser.add_argument
    add(
        "model",
        metavar="MODEL",
        help="name of a model, of the server or the repository; or an "
        "ONNX file, a model's folder, or a handler that is a model by itself (FILE.py)",
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
    model_options.add_pictures(parser)
    model_options.add_handler(parser)
    model_options.add_server(parser)
    model_options.add_repository(parser)


def _add_info(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "file",
        nargs="?",
        type=Path,
        metavar="MODEL.onnx",
        help="file to describe, instead of a model of a repository; or a handler (FILE.py)",
    )
    model_options.add_handler(parser)
    model_options.add_source(parser)
    parser.set_defaults(model=None)


def _add_health(parser: argparse.ArgumentParser) -> None:
    add = parser.add_argument
    add(
        "--target",
        type=model_options.target,
        default=f"127.0.0.1:{ServerConfig().port}",
        metavar="HOST:PORT",
        help="the server",
    )
    add("--timeout", type=values.seconds, default=5.0, metavar="SECONDS", help="time limit")
    add(
        "--tls-server-name",
        metavar="NAME",
        help="name that the certificate must have (default: the target's)",
    )
    model_options.add_access(parser)


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
            config = description.with_handler(config, options.file, options.around)
            described = [description.of_files(options.file, config)]
        else:
            options.model = options.model or ""
            config = models.model_config(options)
            config = description.with_handler(config, None, options.around)
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


COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "serve": serve.run,
    "infer": _infer,
    "info": _info,
    "health": _health,
}
"""Each takes the parsed options and returns the exit code; `main` handles its errors."""
