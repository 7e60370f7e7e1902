"""Hints on how to go on, and the import of TensorFlow."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from serving.commandline.installation import in_checkout

PROGRAM = "python -m training"
_UP = "\033[A\033[K"
"""On a terminal: go to the line above, and clear it."""


def serve(folder: Path) -> str:
    """Return the command that serves the model in a folder."""
    is_usual = folder == Path("models", "digits")
    if is_usual and in_checkout():
        return "`make serve`"
    program = ".venv/bin/digit-serving" if in_checkout() else "digit-serving"
    options = "" if is_usual else f" --models {folder.parent} --model {folder.name}"
    return f"`{program} serve{options}`"


def import_tensorflow(cache: Path) -> None:
    """Import TensorFlow without the notes that it prints about itself.

    Args:
        cache: a folder where libraries keep files that they would put into the home.
    """
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("TF_FORCE_GPU_ALLOW_GROWTH", "true")  # a GPU may have other users
    os.environ.setdefault("KERAS_HOME", str(cache / "keras"))
    os.environ.setdefault("MPLCONFIGDIR", str(cache / "matplotlib"))
    with _silenced_stderr():  # no setting covers its first lines
        import tensorflow as tf

        tf.config.list_physical_devices()


@contextmanager
def _silenced_stderr() -> Iterator[None]:
    """Drop native code's output to stderr; exceptions still come through."""
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
