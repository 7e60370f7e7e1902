"""The command line: `digit-serving {serve,infer,bench,export,train,info,health}` and others."""

import gc
import sys

from serving.system import signals

if sys.argv[1:2] == ["serve"]:  # first: the other imports take time
    signals.install()
    gc.disable()  # 15 ms: nothing that is imported is garbage; `serve` enables it

import os
from collections.abc import Callable

from serving.cli.commands import COMMANDS, parser, parser_of
from serving.cli.doors import DOORS, NOT_HERE, open_door
from serving.commandline import installation
from serving.commandline.parser import Parser, blame
from serving.commandline.terminal import escape
from serving.errors import (
    ConfigurationError,
    CorruptModel,
    DeviceError,
    ModelNotFound,
    ServingError,
)
from serving.telemetry import logs

_UNUSABLE = (ConfigurationError, CorruptModel, DeviceError, ModelNotFound)

_READ_ELSEWHERE = "SERVING_TOKEN", "SERVING_VERDICTS"
"""Variables that are no options."""


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Returns:
        The exit code: 0 served or answered, 2 bad usage or configuration, 1 anything else.
    """
    words = sys.argv[1:] if argv is None else argv
    if words[:1] and words[0] in DOORS:
        return _open(words[0], words[1:])
    return run(_parser, words, lambda: parser({}))


def _open(name: str, words: list[str]) -> int:
    """Run a command of another program, which reports its own errors."""
    try:
        return open_door(name, words)
    except ModuleNotFoundError as err:
        if (err.name or "") not in DOORS[name].module:  # not for want of the program
            raise
        return _fail(NOT_HERE.format(name), 2)


def _parser(command: str) -> Parser:
    """Return the parser for a command; entry points cost time, which a probe does not have."""
    if command in COMMANDS:
        return parser_of(command)
    return parser()


def run(
    make_parser: Callable[[str], Parser],
    words: list[str],
    make_whole: Callable[[], Parser] | None = None,
) -> int:
    """Run a command, with one line on stderr for each error.

    Args:
        make_parser: makes the parser for a command line's first word.
        words: of the command line.
        make_whole: makes a parser that knows the variables of all commands, if the other does not.

    Returns:
        The exit code, as `main` does.
    """
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # errors are reported in one line
    variables: dict[str, str] = {}
    try:
        arguments = make_parser(words[0] if words else "")
        options = arguments.parse_args(words or ["--help"])
        variables = options.variables
        _warn_of_variables(arguments, make_whole)
        code: int = options.run(options)
        if sys.stdout is not None:
            sys.stdout.flush()
        return code
    except BrokenPipeError:
        # Discard further output: the reader of stdout, such as `head`, has left.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except ModuleNotFoundError as err:
        return _fail(installation.advice(err), 2)
    except _UNUSABLE as err:
        return _fail(blame(str(err), variables), 2)
    except ServingError as err:
        return _fail(str(err), 1)
    except OSError as err:  # such as no file descriptors left
        return _fail(str(err), 1)
    except KeyboardInterrupt:
        return 1


def _warn_of_variables(arguments: Parser, make_whole: Callable[[], Parser] | None) -> None:
    """Print a line for each variable of ours that no command reads."""
    if not any(arguments.unknown_variables(*_READ_ELSEWHERE)):
        return
    whole = arguments if make_whole is None else make_whole()
    for line in whole.unknown_variables(*_READ_ELSEWHERE):
        logs.print_line(f"{arguments.prog}: {line}", sys.stderr)


def _fail(reason: str, code: int) -> int:
    line = f"{installation.DISTRIBUTION}: {escape(reason)}"  # it may be a server's text
    if not logs.print_line(line, sys.stderr):
        signals.end_process(code)
    return code


if __name__ == "__main__":
    sys.exit(main())
