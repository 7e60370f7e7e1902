"""The command line beside its commands: options from the environment, and hints on how to go on."""

import argparse
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

from training.errors import UnusableInput

PROGRAM = "python -m training"
_DISTRIBUTION = "digit-serving"
_UP = "\033[A\033[K"
"""On a terminal: go to the line above, and clear it."""
_ON, _OFF = ("1", "true", "yes"), ("0", "false", "no")


class Parser(argparse.ArgumentParser):
    """Takes an option that the command line lacks from DIGITS_ and its name in capitals."""

    _variables: dict[str, str] = {}  # noqa: RUF012 - replaced, never changed
    """Variables in effect, by option."""

    def parse_known_args(  # type: ignore[override]
        self, args: Sequence[str] | None = None, namespace: argparse.Namespace | None = None
    ) -> tuple[argparse.Namespace, list[str]]:
        """Parse the command line with the variables' options in front of it."""
        words = list(sys.argv[1:] if args is None else args)
        named = {word.partition("=")[0] for word in words}
        if not named & {"-h", "--help"}:
            variables = {option: _variable(option) for option in self._option_string_actions}
            given = {option for option in variables if os.environ.get(variables[option])}
            self._variables = {option: variables[option] for option in given - named}
        return super().parse_known_args([*self._given(), *words], namespace)

    def _given(self) -> Iterable[str]:
        """Yield the variables as options."""
        for option, variable in self._variables.items():
            text = os.environ[variable]
            is_flag = self._option_string_actions[option].nargs == 0
            if not (is_flag and text.lower() in _OFF):
                yield option if is_flag and text.lower() in _ON else f"{option}={text}"

    def format_help(self) -> str:
        """Add a line on the environment below the options."""
        example = "--data-dir by DIGITS_DATA_DIR"
        return f"{super().format_help()}\nOptions can also be set by the environment: {example}.\n"

    def error(self, message: str) -> NoReturn:
        """End with one line, which names the variable that is at fault, if one is."""
        option = re.split(r"[:/]", message.removeprefix("argument "))[0]
        guilty = f" (set by {self._variables[option]})" if option in self._variables else ""
        self.exit(2, f"{self.prog}: {message}{guilty}; see --help\n")


def _variable(option: str) -> str:
    return f"DIGITS_{option.lstrip('-').upper().replace('-', '_')}"


def version() -> str:
    """Return the installed version."""
    try:
        return metadata.version(_DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def run(step: str) -> str:
    """Return the command for "train" or "export": `make` only in a checkout."""
    return f"`make {step}`" if _in_checkout() else f"`{PROGRAM} {step}`"


def serve(folder: Path) -> str:
    """Return the command that serves the model in a folder."""
    is_usual, in_checkout = folder == Path("models", "digits"), _in_checkout()
    if is_usual and in_checkout:
        return "`make serve`"
    program = ".venv/bin/digit-serving" if in_checkout else "digit-serving"
    options = "" if is_usual else f" --models {folder.parent} --model {folder.name}"
    return f"`{program} serve{options}`"


def _in_checkout() -> bool:
    return Path("Makefile").is_file() and Path("training/__main__.py").is_file()


def require(modules: Iterable[str]) -> None:
    """Raise UnusableInput for the first module of the extra `train` that is not installed."""
    for module in modules:
        if find_spec(module) is None:
            how = f"pip install '.[train]' in the checkout of {_DISTRIBUTION}"
            raise UnusableInput(f"{module} is not installed: {how}")


def import_tensorflow(cache: Path) -> None:
    """Import TensorFlow without the notes that it prints about itself.

    Args:
        cache: a folder where libraries keep files that they would put into the home.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    with _silenced_stderr():  # no setting covers its first lines
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop what native code writes to stderr; exceptions still come through."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


def show(line: str) -> None:
    """Rewrite one line on a terminal; elsewhere print the line."""
    print(f"{_UP if sys.stdout.isatty() else ''}{line}", flush=True)
