"""The program `digit-reader`; its command is one of `digit-serving`, too."""

import sys

from digit_reader import command
from serving.__main__ import run
from serving.cli.commands import add_command
from serving.commandline.parser import Parser


def parser(_: str = "") -> Parser:
    """Return the parser of the commands."""
    program = Parser(prog="digit-reader", description="Read handwritten numbers on pages.")
    commands = program.add_subparsers(dest="command", required=True, metavar="COMMAND")
    add_command(commands, "read", command)
    return program


def main() -> int:
    """Run one command; return the exit code, as `digit-serving` does."""
    return run(parser, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
