"""Options of all programs: from the environment, too, and of fields of configurations."""

import argparse
import ast
import inspect
import os
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import Field, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from types import NoneType
from typing import Any, Literal, NoReturn, get_args, get_origin

from serving.commandline.installation import version

PREFIX = "SERVING_"

_WITH_VARIABLE = ("store", "store_true", "extend")
"""Actions of options that the environment can set."""

_FLAG = {"1": "", "true": "", "yes": "", "0": "no-", "false": "no-", "no": "no-"}
"""Text of a flag's variable to the prefix of the flag's name."""

_SERVICE_LINK = re.compile(r"(tcp|udp|sctp)://")
"""Kubernetes gives each container the addresses of its services as `<SERVICE>_PORT=tcp://...`, so
a service named `serving` sets SERVING_PORT, `serving-metrics` SERVING_METRICS_PORT."""

_LINK_NAME = re.compile(r"_SERVICE_(HOST|PORT)(_\w+)?$|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?$")
"""Names of further such variables."""
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}


class Parser(argparse.ArgumentParser):
    """Reads each option from the command line, else from SERVING_ and its name in capitals.

    The parsed namespace has `variables`: {name: value} of the variables that are in effect.
    """

    def __init__(self, *arguments: Any, **options: Any) -> None:
        self.variables: dict[str, argparse.Action] = {}
        """The action of each variable."""
        self._in_effect: dict[str, str] = {}
        self._group: Any = None
        self.intermixed = ""
        """The name of positional arguments that may also stand behind options."""
        super().__init__(*arguments, **options)

    def begin_group(self, title: str) -> None:
        """Show the arguments that are added from here on below a title."""
        self._group = self.add_argument_group(title)

    def add_argument(self, *names: Any, **options: Any) -> argparse.Action:
        """Add an argument; a flag also gets `--no-FLAG`, which overrides the environment."""
        add = super().add_argument if self._group is None else self._group.add_argument
        action: argparse.Action = add(*names, **options)
        if names[0].startswith("--") and options.get("action", "store") in _WITH_VARIABLE:
            self.variables[PREFIX + names[0][2:].upper().replace("-", "_")] = action
            if action.nargs == 0:
                super().add_argument(
                    f"--no-{names[0][2:]}",
                    dest=action.dest,
                    action="store_false",
                    help=argparse.SUPPRESS,
                )
        return action

    def add_version(self) -> None:
        """Add `--version`, which prints the version of the project."""
        self.add_argument(
            "--version",
            action=_PrintVersion,
            nargs=0,
            default=argparse.SUPPRESS,
            help="print the version of this program and exit",
        )

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command line with the variables' options in front of it."""
        words = sys.argv[1:] if args is None else list(args)
        if not {"-h", "--help"} & set(words):
            self._in_effect = self._given({word.partition("=")[0] for word in words})
        options = [self._option(*variable) for variable in self._in_effect.items()]
        parsed, rest = super().parse_known_args([*options, *words], namespace)
        if self.intermixed:
            late = [word for word in rest if word == "-" or not word.startswith("-")]
            setattr(parsed, self.intermixed, [*getattr(parsed, self.intermixed), *late])
            rest = [word for word in rest if word not in late]
        parsed.variables = getattr(parsed, "variables", {}) | self._in_effect
        return parsed, rest

    def _given(self, words: set[str]) -> dict[str, str]:
        """Return the variables that are set and whose options the command line lacks."""
        return {
            name: text
            for name, action in self.variables.items()
            if (text := os.environ.get(name))
            and not words & {*action.option_strings, f"--no-{action.option_strings[0][2:]}"}
            and not (name.endswith("_PORT") and _SERVICE_LINK.match(text))
        }

    def _option(self, variable: str, text: str) -> str:
        action = self.variables[variable]
        name = action.option_strings[0][2:]
        if action.nargs != 0:
            return f"--{name}={text}"
        if text.lower() not in _FLAG:
            self.error(f"argument --{name}: expected one of {', '.join(_FLAG)}, got {text!r}")
        return f"--{_FLAG[text.lower()]}{name}"

    def error(self, message: str) -> NoReturn:
        """End with one line, which names the variable that is at fault, if one is."""
        option = message.removeprefix("argument ").partition(":")[0]
        guilty = [v for v in self._in_effect if option in self.variables[v].option_strings]
        self.exit(2, f"{self.prog}: {_set_by(message, guilty)}; see --help\n")

    def unknown_variables(self, *others: str) -> Iterator[str]:
        """Yield a line for each variable of ours that is set and that no command reads.

        Args:
            others: variables that are read elsewhere.
        """
        known = {*others, *self.variables}
        for action in self._actions:
            if isinstance(action, argparse._SubParsersAction):
                known.update(*(command.variables for command in action.choices.values()))
        for name, text in sorted(os.environ.items()):
            is_link = _SERVICE_LINK.match(text) or _LINK_NAME.search(name)
            if name.startswith(PREFIX) and text and name not in known and not is_link:
                from difflib import get_close_matches  # here: a probe has no use for it

                ends = [each.removeprefix(PREFIX) for each in known]
                near = get_close_matches(name.removeprefix(PREFIX), ends, 1)
                hint = f"did you mean {PREFIX}{near[0]}?" if near else "ignored"
                yield f"unknown variable {name}: {hint}"

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
    return _set_by(message, guilty)


def _set_by(message: str, guilty: list[str]) -> str:
    return f"{message} (set by {', '.join(guilty)})" if guilty else message


def _is_about(message: str, variable: str, text: str) -> bool:
    name = variable.removeprefix(PREFIX).lower()
    words = map(re.escape, (name, name.replace("_", "-"), text))
    return any(re.search(rf"(?<![\w.-]){word}(?![\w.-])", message) for word in words)


# Values


def port_or_off(text: str) -> int | Literal["auto"] | None:
    """Read a TCP port, or "auto"; "off" is None."""
    if text == "off":
        return None
    if text == "auto":
        return "auto"
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"expected a port or off, got {text!r}")
    return int(text)


def duration(text: str) -> float:
    """Read a time such as 5ms, 0.5s or 0.005, in seconds; who takes it bounds it."""
    number, unit_s = (text[:-2], 1e-3) if text.endswith("ms") else (text.removesuffix("s"), 1.0)
    with suppress(ValueError):
        return float(number) * unit_s
    raise argparse.ArgumentTypeError(f"expected a time such as 5ms or 0.5s, got {text!r}")


def seconds(text: str) -> float:
    """Read a time of more than 0; see `duration`."""
    if 0 < duration(text) <= 1e6:
        return duration(text)
    raise argparse.ArgumentTypeError(f"expected a time such as 5ms or 0.5s, got {text!r}")


def size(text: str) -> int:
    """Read a number of bytes, such as 500M, 2G or 1048576."""
    number, unit = (text[:-1], text[-1:].upper()) if text[-1:].isalpha() else (text, "")
    if number.isdecimal() and unit in _UNITS and 0 < int(number) * _UNITS[unit] < 1 << 50:
        return int(number) * _UNITS[unit]
    raise argparse.ArgumentTypeError(f"expected a size such as 500M or 2G, got {text!r}")


def share(text: str) -> float:
    """Read a share or a probability, such as 5% or 0.05."""
    with suppress(ValueError):
        number = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
        if 0 <= number <= 1:
            return number
    raise argparse.ArgumentTypeError(f"expected a share such as 5% or 0.05, got {text!r}")


def at_least(least: int) -> Callable[[str], int]:
    """Return a parser of whole numbers that are not smaller."""

    def number(text: str) -> int:
        with suppress(ValueError):
            if int(text) >= least:
                return int(text)
        raise argparse.ArgumentTypeError(f"expected a whole number, at least {least}, got {text!r}")

    return number


count = at_least(1)
"""Reads a whole number that is at least 1."""


# Options of the fields of configurations

_SPECIAL: dict[str, dict[str, Any]] = {
    "model_cache": {"type": Path, "metavar": "DIR"},
    "input": {"choices": ("tensors", "image")},
    "handler": {"action": "append", "default": [], "metavar": "[NAME=]FILE.py"},
    "canary": {"type": share, "metavar": "SHARE"},
    "access_log": {"type": share, "metavar": "SHARE"},
    "max_model_bytes": {"type": size, "metavar": "SIZE"},
    "max_json_bytes": {"type": size, "metavar": "SIZE"},
    "max_buffered_bytes": {"type": size, "metavar": "SIZE"},
    "max_handler_bytes": {"type": size, "metavar": "SIZE"},
    "slo_s": {"type": seconds, "metavar": "TIME"},
    "metrics_port": {"type": port_or_off, "metavar": "PORT"},
    "http_port": {"type": port_or_off, "metavar": "PORT", "default": "auto"},
}
"""Options that are more than their fields' types say."""


def add_fields(parser: argparse.ArgumentParser, kind: Any, *names: str) -> None:
    """Add an option for each of these fields of a configuration, parsed under the field's name."""
    known = {field.name: field for field in fields(kind)}
    for name in names:
        flag = name.removesuffix("_s").replace("_", "-")
        settings = _settings(known[name])
        if settings.get("action") == "extend":  # a flag for each of several
            flag = flag.removesuffix("s")
        action = parser.add_argument(f"--{flag}", dest=name, help=name, **settings)
        action.of_field = kind, name  # type: ignore[attr-defined]


def _settings(field: Field[Any]) -> dict[str, Any]:
    if field.name in _SPECIAL:
        return {"default": field.default, **_SPECIAL[field.name]}
    if field.type is bool:
        return {"action": "store_true"}
    if field.type is float and field.name.endswith("_s"):
        return {"type": duration, "default": field.default, "metavar": "TIME"}
    if get_origin(field.type) is Literal:
        return {"choices": get_args(field.type), "default": field.default}
    last = field.name.rpartition("_")[2].upper()
    if get_origin(field.type) is tuple:
        return {"nargs": "+", "action": "extend", "default": [], "metavar": last.removesuffix("S")}
    (kind,) = {*get_args(field.type)} - {NoneType} or {field.type}
    usual = {Path: "FILE", float: "SECONDS", int: "N"}.get(kind, last)
    metavar = "PORT" if last == "PORT" else usual
    return {"type": kind, "default": field.default, "metavar": metavar}


@cache
def field_docs(kind: Any) -> dict[str, str]:
    """Read the docstrings of a configuration's fields, which Python keeps in the source alone."""
    (tree,) = ast.parse(inspect.getsource(kind)).body
    found = {}
    for field, text in pairwise(ast.iter_child_nodes(tree)):
        match field, text:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(
                value=ast.Constant(value=str(doc))
            ):
                found[name] = doc
    return found


class Formatter(argparse.ArgumentDefaultsHelpFormatter, argparse.RawDescriptionHelpFormatter):
    """Shows fields' docstrings, defaults, and examples as they are."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        """Leave out a default that says nothing, such as None, or a flag that is off."""
        if (of_field := getattr(action, "of_field", None)) is not None:
            kind, name = of_field
            text = " ".join(field_docs(kind)[name].split()).removesuffix(".").replace("%", "%%")
            is_name = text.partition(" ")[0][1:] != text.partition(" ")[0][1:].lower()
            action.help = text if is_name else text[0].lower() + text[1:]
        if action.default in (None, [], float("inf")) or action.default is False:
            return action.help
        return super()._get_help_string(action)


def command_help(text: str, examples: str = "") -> dict[str, Any]:
    """Return the settings of a command's parser: one text in the list and on the command's page."""
    return {
        "help": text,
        "description": text[0].upper() + text[1:] + ".",
        "epilog": examples and f"examples:\n{examples}",
        "formatter_class": Formatter,
    }
