"""An argument parser that also reads its options from the environment."""

import argparse
import os
import re
import shlex
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from commandline.checkout import version

PREFIX = "DIGITS_"

_FLAG = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}
_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes gives each container the addresses of its services as `<SERVICE>_PORT=tcp://...`, so
a service named `digits` sets DIGITS_PORT, and one named `digits-metrics` DIGITS_METRICS_PORT."""


class Parser(argparse.ArgumentParser):
    """Reads each option from the command line, else from DIGITS_ and its name in capitals.

    The parsed namespace has `variables`: {name: value} of the variables that are in effect.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        """Take what ArgumentParser takes."""
        self.variables: dict[str, argparse.Action] = {}
        """The action of each variable."""
        super().__init__(*arguments, **options)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument; a flag also gets `--no-FLAG`, which overrides the environment."""
        action = super().add_argument(*names, **options)
        long_names = [name[2:] for name in action.option_strings if name.startswith("--")]
        if long_names and options.get("action", "store") in ("store", "store_true"):
            variable = PREFIX + long_names[0].upper().replace("-", "_")
            self.variables[variable] = action
            if action.nargs == 0:
                super().add_argument(f"--no-{long_names[0]}", dest=action.dest,
                                     action="store_false", help=argparse.SUPPRESS)  # fmt: skip
        return action

    def add_version(self) -> None:
        """Add `--version`, which prints the version of the project."""
        self.add_argument("--version", action=_PrintVersion, nargs=0, default=argparse.SUPPRESS,
                          help="print the version of this program and exit")  # fmt: skip

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command line; variables of the environment are the defaults."""
        words = sys.argv[1:] if args is None else list(args)
        given = {} if {"-h", "--help"} & set(words) else self._given()
        for variable, text in given.items():
            action = self.variables[variable]
            action.default = self._value(action, variable, text)
            action.required = False
        parsed, rest = super().parse_known_args(words, namespace)
        parsed.variables = getattr(parsed, "variables", {}) | {
            variable: text
            for variable, text in given.items()
            if getattr(parsed, (action := self.variables[variable]).dest) == action.default
        }
        return parsed, rest

    def _given(self) -> dict[str, str]:
        """Return this parser's variables that are set."""
        given = {name: os.environ.get(name, "") for name in self.variables}
        return {
            name: text
            for name, text in given.items()
            if text and not (name.endswith("_PORT") and _SERVICE_LINK.match(text))
        }

    def _value(self, action: argparse.Action, variable: str, text: str) -> Any:
        """Convert a variable's text to the option's type, or exit with one line."""
        if action.nargs == 0:
            if text.lower() not in _FLAG:
                self._refuse(variable, f"expected 1 or 0, true or false, yes or no, got {text!r}")
            return _FLAG[text.lower()]
        if action.nargs in (None, "?"):
            return self._converted(action, variable, text)
        return [self._converted(action, variable, word) for word in shlex.split(text)]

    def _converted(self, action: argparse.Action, variable: str, text: str) -> Any:
        convert: Any = action.type or str
        try:
            value = convert(text)
        except argparse.ArgumentTypeError as err:
            self._refuse(variable, str(err))
        except (TypeError, ValueError):
            expected = {int: "a whole number", float: "a number"}.get(convert, action.metavar)
            self._refuse(variable, f"expected {expected}, got {text!r}")
        if action.choices is not None and value not in action.choices:
            self._refuse(variable, f"expected one of {', '.join(action.choices)}, got {text!r}")
        return value

    def _refuse(self, variable: str, reason: str) -> NoReturn:
        self.exit(2, f"{self.prog}: {variable}: {reason}\n")

    def format_help(self) -> str:
        """Add a paragraph on the environment below the options."""
        text = super().format_help()
        if not self.variables:
            return text
        example, *_ = self.variables
        return (
            f"{text}\nEvery option can also be set by the environment, as {PREFIX} and its name\n"
            f"in capitals, such as {example}; the command line wins. A flag takes 1 or 0,\n"
            "and --no-FLAG overrides it.\n"
        )


class _PrintVersion(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        print(parser.prog, version())
        parser.exit()


def blame(message: str, variables: dict[str, str]) -> str:
    """Add to a message the variables that set the value it complains about, if any.

    Args:
        message: the complaint; it names the option or its value.
        variables: those in effect, as `Parser` returns them.
    """
    guilty = [name for name, text in variables.items() if _is_about(message, name, text)]
    return f"{message} (set by {', '.join(guilty)})" if guilty else message


def _is_about(message: str, variable: str, text: str) -> bool:
    name = variable.removeprefix(PREFIX).lower()
    words = map(re.escape, (name, name.replace("_", "-"), text))
    return any(re.search(rf"(?<![\w.-]){word}(?![\w.-])", message) for word in words)
