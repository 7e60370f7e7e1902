"""The processes of a version: those that end are replaced, after a pause if that happens again.

number of failures   1   2    3    4   ...
pause before a start 0   1 s  2 s  4 s ... up to a minute; all is well again after 30 s of life
"""

import math
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from serving.batching.run import Owner
from serving.errors import ServingError
from serving.handlers.frames import Frame
from serving.tensors import Array

_STABLE_S, _FIRST_PAUSE_S, _MAX_PAUSE_S = 30.0, 1.0, 60.0
"""How long a process lives that is well; the pause before the next start after two that are not,
doubled with each further one, up to the last."""


class Process(Protocol):
    """A handler's process; see `HandlerProcess`."""

    @property
    def started_s(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    def attach(
        self, owner: Owner, on_frame: Callable[[Frame], None], on_end: Callable[[str], None]
    ) -> None: ...
    def send(self, head: dict[str, Any], arrays: Sequence[Array] = ()) -> None: ...
    def kill(self) -> None: ...
    def close(self) -> None: ...


class Launcher(Protocol):
    """Starts processes elsewhere than on the owner's thread."""

    def launch(
        self,
        post: Callable[[Callable[[], None]], None],
        done: Callable[[Process | ServingError], None],
    ) -> None:
        """Start one; `done` is called with it, or with the reason, through `post`."""


class ProcessSet:
    """Starts the processes of a version; of the owner's thread."""

    def __init__(
        self,
        launcher: Launcher,
        number: int,
        take: Callable[[Process], None],
        note_failed: Callable[[ServingError], None],
    ) -> None:
        """Start none yet.

        Args:
            launcher: starts one.
            number: how many there should be.
            take: called with one that is ready.
            note_failed: called with the reason why one could not start.
        """
        self._launcher, self._number = launcher, number
        self._take, self._note_failed = take, note_failed
        self._owner: Any = None
        self.num_alive = self.num_starts = 0
        self._num_starting = self._num_failures = 0
        self._pause_until_s = -math.inf
        """No process is started before, since others have ended soon."""
        self._is_closed = False

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self._owner = owner

    def add(self, process: Process) -> None:
        """Take a process that is ready."""
        self.num_alive += 1
        self.num_starts += 1
        self._take(process)

    @property
    def is_resting(self) -> bool:
        """Whether there is no process, and none is started for now."""
        return not self.num_alive and not self._num_starting and self.rest_s > -math.inf

    @property
    def rest_s(self) -> float:
        """Seconds until the next start; negative if there is no pause."""
        rest_s: float = self._pause_until_s - self._owner.clock()
        return rest_s

    def start_missing(self) -> None:
        """Start processes as long as there are too few, unless they end again and again."""
        if self._is_closed or self.rest_s > 0:
            return
        while self.num_alive + self._num_starting < self._number:
            self._num_starting += 1
            self._launcher.launch(self._owner.post, self._take_started)
            if self._num_failures:  # one at a time, until one is well
                break

    def _take_started(self, process: Process | ServingError) -> None:
        self._num_starting -= 1
        if isinstance(process, ServingError):
            self._note_failure()
            self._note_failed(process)
        elif self._is_closed:
            process.close()
        else:
            self.add(process)

    def note_answer(self, process: Process) -> None:
        """Note that a process has done some work."""
        if self._num_failures and self._is_stable(process):
            self._num_failures = 0

    def note_end(self, process: Process) -> None:
        """Note that a process has ended, or was ended; start another one, perhaps."""
        self.num_alive -= 1
        self.note_answer(process)
        self._note_failure()
        self.start_missing()

    def _is_stable(self, process: Process) -> bool:
        age_s: float = self._owner.clock() - process.started_s
        return age_s > _STABLE_S

    def _note_failure(self) -> None:
        """Pause before the next start, longer with each failure after the first."""
        self._num_failures += 1
        if self._num_failures > 1:
            pause_s = min(_MAX_PAUSE_S, _FIRST_PAUSE_S * 2 ** (self._num_failures - 2))
            self._pause_until_s = self._owner.clock() + pause_s

    def close(self) -> None:
        """Start no further process."""
        self._is_closed = True
