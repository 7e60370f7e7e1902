"""The parser of all programs: options come from the command line, else from the environment."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, NoReturn

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
        # A short form that is unique today names two options once another one is added.
        self.allow_abbrev = False

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
        if unknown := [word.partition("=")[0] for word in rest if word.startswith("--")]:
            self.error(unknown_option(unknown[0], self._option_string_actions))
        parsed.variables = getattr(parsed, "variables", {}) | self._in_effect
        return parsed, rest

    def _given(self, words: set[str]) -> dict[str, str]:
        """Return the variables that are set and whose options the command line lacks."""
        given = {}
        for name, action in self.variables.items():
            text = os.environ.get(name, "")
            is_link = name.endswith("_PORT") and _SERVICE_LINK.match(text)
            if text and not is_link and not words & _flags_of(action):
                given[name] = text
        return given

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


def unknown_option(name: str, options: Iterable[str]) -> str:
    """Say that there is no such option, and which one has a similar name."""
    from difflib import get_close_matches  # here: a probe has no use for it

    whole = [option for option in options if option.startswith(name)]
    near = sorted(whole, key=len) or get_close_matches(name, options, 1)
    return f"unknown option {name}" + (f": did you mean {near[0]}?" if near else "")


def _flags_of(action: argparse.Action) -> set[str]:
    """Return the flags that set an option, and the one that takes it back."""
    return {*action.option_strings, f"--no-{action.option_strings[0][2:]}"}


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
