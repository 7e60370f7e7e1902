"""How this project is installed: its version, its extras, `make`; and lines of a terminal."""

import os
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TextIO

DISTRIBUTION = "digit-serving"

_ROOT = Path(__file__).parents[2]


def version() -> str:
    """Return the project's version: that of the checkout, else of the installed distribution."""
    import tomllib  # here: these imports take longer than a whole probe
    from importlib import metadata

    try:
        project = tomllib.loads((_ROOT / "pyproject.toml").read_text("utf-8"))["project"]
        if project["name"] == DISTRIBUTION:
            return str(project["version"])
    except (OSError, ValueError, KeyError):
        pass
    try:
        return metadata.version(DISTRIBUTION)
    except metadata.PackageNotFoundError:
        return "unknown"


def run(*steps: str) -> str:
    """Return the command for "train" and "export": `make` only in a checkout."""
    if in_checkout():
        return f"`make {' '.join(steps)}`"
    return " and ".join(f"`python -m training {step}`" for step in steps)


def in_checkout() -> bool:
    """Return whether the current directory is a checkout of this project."""
    return Path("Makefile").is_file() and Path("training/__main__.py").is_file()


def install(extra: str, *folders: str) -> str:
    """Return how to install an extra, and distributions in other folders of the checkout.

    The distribution is on no index, and anybody could register its name there: a command with that
    name would install a stranger's package.
    """
    words = " ".join((f"'.[{extra}]'", *folders))
    return f"pip install {words} in the checkout of {DISTRIBUTION}"


def require(*modules: str) -> None:
    """Raise ModuleNotFoundError for the first top-level module that is not installed.

    Called first, so that long work does not fail at its end, nor a server in its workers.
    """
    for module in modules:
        if find_spec(module) is None:
            raise ModuleNotFoundError(f"No module named {module!r}", name=module)


def advice(error: ModuleNotFoundError, extras: Mapping[str, str]) -> str:
    """Return the command that installs a missing extra, in one line.

    Args:
        error: an import's exception; raised again if no extra has the module, since then the
            installation is not at fault.
        extras: top-level module to the extra that installs it.
    """
    module = (error.name or "").partition(".")[0]
    if module not in extras:
        raise error
    return f"{module} is not installed: {install(extras[module])}"


@contextmanager
def silenced_stderr() -> Iterator[None]:
    """Drop native code's output to stderr; exceptions still come through."""
    if sys.stderr is None:  # it was closed when the process began
        yield
        return
    sys.stderr.flush()
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 2)
    try:
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


class Bar:
    """A line at the foot of a terminal; elsewhere nothing, or a line now and then."""

    INTERVAL_S, LINE_INTERVAL_S = 0.1, 10.0

    def __init__(self, total: int, stream: TextIO | None, line: str = "") -> None:
        """Draw nothing yet.

        Args:
            total: the number of pictures or rows.
            stream: usually stderr.
            line: a line for streams that are no terminals, such as "scored {} of {} rows".
        """
        self._is_terminal = stream is not None and stream.isatty() and total > 1
        self._stream = stream if self._is_terminal or line else None
        self._line = line
        self._total, self._done = total, 0
        self._start_s = self._next_s = time.monotonic()
        self._next_s += 0.0 if self._is_terminal else self.LINE_INTERVAL_S
        self._is_drawn = False
        self._lock = threading.Lock()

    def clear(self) -> None:
        """Remove the bar, so that a line can be printed."""
        with self._lock:
            if self._is_drawn:
                self._write("\r\x1b[K")
                self._is_drawn = False

    def advance(self, num: int = 1) -> None:
        """Count some pictures or rows, from any thread; draw or write after an interval."""
        with self._lock:
            self._done += num
            now_s = time.monotonic()
            if self._stream is None or now_s < self._next_s:
                return
            done, total, spent_s = self._done, self._total, now_s - self._start_s
            left = f"{spent_s / done * (total - done):.0f} s left"
            if self._is_terminal:
                self._next_s = now_s + self.INTERVAL_S
                bar = "#" * (30 * done // total)
                self._write(f"\r[{bar:.<30}] {done} of {total}, {left}\x1b[K")
                self._is_drawn = True
            else:
                self._next_s = now_s + self.LINE_INTERVAL_S
                self._write(f"{self._line.format(done, total)}, {done / spent_s:.0f}/s, {left}\n")

    def _write(self, text: str) -> None:
        assert self._stream is not None
        self._stream.write(text)
        self._stream.flush()


def escape(text: str) -> str:
    """Escape control characters, such as a newline or a terminal's sequences, and lone bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)
