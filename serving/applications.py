"""Commands, HTTP paths and pages that other distributions add: docs/applications.md.

Each is a module that an entry point names, so this package knows none of them:

    [project.entry-points."digit_serving.commands"]
    read = "digit_reader.command"
"""

import argparse
from collections.abc import Mapping
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

from serving.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS = "digit_serving.commands"
"""The group of entry points of modules that are a `Command`, by its name."""
HTTP = "digit_serving.http"
"""The same of an `HttpApplication` (`serving.transports.http.applications`), by any name."""


class Command(Protocol):
    """A command of `digit-serving`: a module, imported for this command and for `--help`."""

    @property
    def HELP(self) -> str:  # noqa: N802
        """One line, without a period."""

    @property
    def EXAMPLES(self) -> str:  # noqa: N802
        """Command lines, each behind two blanks."""

    def add_arguments(self, parser: argparse.ArgumentParser, /) -> None:
        """Add the command's options."""

    def run(self, options: argparse.Namespace, /) -> int:
        """Run it with the parsed options; return the exit code.

        Raises:
            ConfigurationError: the options can't be used: exit code 2.
            ServingError: anything else: exit code 1.
        """


@cache
def installed(group: str) -> Mapping[str, Any]:
    """Import what the entry points of a group name, by their names.

    Raises:
        ConfigurationError: one can't be imported, or two have one name.
    """
    found: dict[str, Any] = {}
    values: dict[str, str] = {}
    for entry in _entry_points(group):
        before = values.setdefault(entry.name, entry.value)
        if before != entry.value:
            raise ConfigurationError(
                f"{before} and {entry.value}, of {group}, are both {entry.name!r}"
            )
        try:
            found[entry.name] = entry.load()
        except Exception as err:  # a module of others raises anything
            reason = " ".join(f"{type(err).__name__}: {err}".split())
            raise ConfigurationError(f"{entry.value}, of {group}, can't be used: {reason}") from err
    return found


def modules_of(group: str) -> list[str]:
    """Return the modules that the entry points of a group name, without importing them."""
    return [entry.module for entry in _entry_points(group)]


def _entry_points(group: str) -> "list[EntryPoint]":
    from importlib.metadata import entry_points  # here: it takes 20 ms

    return sorted(entry_points(group=group), key=lambda entry: entry.name)
