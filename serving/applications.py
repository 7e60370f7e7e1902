"""What applications add: commands, HTTP paths, gRPC services and more; docs/applications.md.

Each is a module that an entry point names, so this package knows none of them:

    [project.entry-points."digit_serving.commands"]
    score = "digit_scoring.command"
"""

import argparse
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from serving.errors import ConfigurationError

if TYPE_CHECKING:
    from importlib.metadata import EntryPoint

COMMANDS = "digit_serving.commands"
"""The group of entry points of modules that are a `Command`, by its name."""
HTTP = "digit_serving.http"
"""The same of an `HttpApplication` (`serving.http_api.http_application`), by any name."""
GRPC = "digit_serving.grpc"
"""The same of a `GrpcService` (`serving.protocols.grpc_service`), by any name."""
PICTURES = "digit_serving.pictures"
"""The same of a `PictureTreatment`, by the `resize` of a description that names it."""
MODELS = "digit_serving.models"
"""The group of entry points of repositories (a `Path` each), by the name of a model in it."""


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


class PictureTreatment(Protocol):
    """A way to make pictures fit to a classifier's input: a module with steps."""

    @property
    def SIZE(self) -> tuple[int, ...]:  # noqa: N802
        """Height and width of the images that it makes."""

    @property
    def CHANNELS(self) -> int:  # noqa: N802
        """1 for grey levels, 3 for red, green, blue."""

    @property
    def STEPS(self) -> str:  # noqa: N802
        """Its `Steps` (`serving.pictures.classifier`) as "module:name", imported where they run."""

    def modules(self) -> Sequence[str]:
        """Return the imports of processes that read pictures, before they are forked."""


class BundledModel(NamedTuple):
    """A model that is installed with an application."""

    name: str
    repository: Path
    """The folder that has a folder of the model."""


def bundled_model() -> BundledModel | None:
    """Return the model to serve where none is named; None if no application has one."""
    for name, repository in installed(MODELS).items():
        return BundledModel(name, repository)
    return None


@cache
def installed(group: str) -> Mapping[str, Any]:
    """Import what the entry points of a group name, by their names.

    An entry point is none whose package is not there, as in an image that leaves it out, or which
    needs another application's that is not there.

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
        except ModuleNotFoundError as err:
            if (err.name or "").partition(".")[0] in _packages():
                continue
            raise _unusable(entry.value, group, err) from err
        except Exception as err:  # a module of others raises anything
            raise _unusable(entry.value, group, err) from err
    return found


def _unusable(value: str, group: str, err: Exception) -> ConfigurationError:
    reason = " ".join(f"{type(err).__name__}: {err}".split())
    return ConfigurationError(f"{value}, of {group}, can't be used: {reason}")


def modules_of(group: str) -> list[str]:
    """Return the modules that the entry points of a group name, without importing them."""
    return [entry.module for entry in _entry_points(group)]


def _packages() -> set[str]:
    """Return the packages of all applications."""
    entries = [*map(_entry_points, (COMMANDS, HTTP, GRPC, PICTURES, MODELS))]
    return {entry.module.partition(".")[0] for group in entries for entry in group}


def _entry_points(group: str) -> "list[EntryPoint]":
    """List a group's entry points, by name."""
    from importlib import metadata  # here: 11 ms, which a probe (`health`) does not need

    return sorted(metadata.entry_points(group=group), key=lambda entry: entry.name)
