"""Files that are read again when they change."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Generic, TypeVar

from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)
Content = TypeVar("Content")
_State = tuple[tuple[int, int, int] | None, ...]


class WatchedFiles(Generic[Content]):
    """The content of some files, reloaded when one of them changes."""

    def __init__(self, paths: tuple[Path, ...], read: Callable[[], Content]) -> None:
        """Read the files.

        Args:
            paths: the files to watch.
            read: reads and checks them; raises ConfigurationError.

        Raises:
            ConfigurationError: a file can't be used; the text names it.
        """
        self._paths = paths
        self._read = read
        self._state = self._look()
        self._content = read()

    def get(self) -> Content:
        """Return the newest usable content; costs one `stat` for each file."""
        state = self._look()
        if state != self._state:
            self._state = state  # before reading: a change meanwhile is noticed next time
            try:
                self._content = self._read()
                _log.info("reloaded %s", ", ".join(map(str, self._paths)))
            except ConfigurationError as err:
                _log.warning("not reloaded, the previous content stays in use: %s", err)
        return self._content

    def _look(self) -> _State:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def read_bytes(path: Path) -> bytes:
    """Read a file that an option names.

    Raises:
        ConfigurationError: it can't be read; the text names it and the reason.
    """
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigurationError(f"can't read {path}: {err.strerror}") from err
