"""The commands of `digit-serving`, and the parser of a command line."""

import argparse
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from serving import applications
from serving.applications import Command
from serving.cli.doors import DOORS
from serving.commandline.help_texts import Formatter, command_help
from serving.commandline.installation import DISTRIBUTION
from serving.commandline.parser import Parser
from serving.errors import ConfigurationError

COMMANDS = ("serve", "infer", "info", "optimize", "health")
"""The commands of this package, each a `Command` in a module of its name beside this one."""
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


def parser(others: Mapping[str, Command] | None = None) -> Parser:
    """Return the parser of all commands.

    Args:
        others: the commands of other distributions; None for all that are installed.
    """
    program, commands = _program(*COMMANDS)
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


def parser_of(name: str) -> Parser:
    """Return the parser of one command of this package: it is made in a third of the time."""
    return _program(name)[0]


def options_of(name: str) -> list[str]:
    """Return the options of one command of this package, such as "--port"."""
    return list(_program(name)[1].choices[name]._option_string_actions)


def _program(*names: str) -> "tuple[Parser, argparse._SubParsersAction[Any]]":
    """Return the program's parser with some commands, and what others are added to.

    The command's name is parsed as `command`, its function as `run`.
    """
    program = Parser(
        prog=DISTRIBUTION,
        description="Serve any ONNX or Keras model over gRPC and HTTP, in batches that provably "
        "change no answer.",
        epilog=_START,
        formatter_class=Formatter,
    )
    program.add_version()
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for name in names:
        add_command(commands, name, import_module(f"serving.cli.{name}"))
    return program, commands


def add_command(commands: "argparse._SubParsersAction[Any]", name: str, command: Command) -> None:
    """Add a command; its function is parsed as `run`."""
    parser = commands.add_parser(name, **command_help(command.HELP, command.EXAMPLES))
    command.add_arguments(parser)
    parser.set_defaults(run=command.run)
