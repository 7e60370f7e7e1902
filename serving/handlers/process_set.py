"""The processes of a version: one that ends is replaced at once, unless calls end many.

three first calls in a row ended theirs,            pauses before the next starts: `HANDLER_ENDS`
or more than 10 of the last 200 calls did

starts that fail                                    pauses: `HANDLER_STARTS`
"""

import math
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from serving.batching.run import Owner
from serving.errors import ServingError
from serving.handlers.frames import Frame
from serving.processes.back_off import HANDLER_ENDS, HANDLER_STARTS, BackOff
from serving.tensors import Array

_MAX_FIRST_ENDS = 2
"""Processes in a row that may end before they have answered a call, without a pause."""
_NUM_REMEMBERED, _MAX_ENDS = 200, 10
"""Calls that are remembered, and how many of them may have ended their process, without a pause."""


class Process(Protocol):
    """A handler's process; see `HandlerProcess`."""

    @property
    def start_s(self) -> float: ...
    @property
    def memory_bytes(self) -> int: ...
    def attach(
        self, owner: Owner, on_frame: Callable[[Frame], None], on_end: Callable[[str], None]
    ) -> None: ...
    def send(self, fields: dict[str, Any], arrays: Sequence[Array] = ()) -> None: ...
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
        self._num_starting = 0
        self._starts, self._ends = BackOff(HANDLER_STARTS), BackOff(HANDLER_ENDS)
        self._fresh: set[Process] = set()
        """Processes that have answered no call."""
        self._num_first_ends = 0
        """Processes in a row that have answered no call."""
        self._recent: deque[bool] = deque(maxlen=_NUM_REMEMBERED)
        """The last calls: whether each has ended its process."""
        self._pause_until_s = -math.inf
        """No process is started before."""
        self._is_closed = False

    def attach(self, owner: Owner) -> None:
        """Set the thread that all else is called on."""
        self._owner = owner

    def add(self, process: Process) -> None:
        """Take a process that is ready."""
        self.num_alive += 1
        self.num_starts += 1
        self._starts.reset()
        self._fresh.add(process)
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
        """Start processes as long as there are too few, but after a pause and one by one."""
        if self._is_closed or self.rest_s > 0:
            return
        is_careful = self._ends.num_failures or self._starts.num_failures
        while self.num_alive + self._num_starting < self._number:
            if is_careful and self._num_starting:
                break
            self._num_starting += 1
            self._launcher.launch(self._owner.post, self._take_started)

    def _take_started(self, process: Process | ServingError) -> None:
        self._num_starting -= 1
        if isinstance(process, ServingError):
            self._pause(self._starts.fail())
            self._note_failed(process)
        elif self._is_closed:
            process.close()
        else:
            self.add(process)

    def note_answer(self, process: Process, num_calls: int) -> None:
        """Note that a process has done the work of some calls, whether it failed on them or not."""
        self._recent.extend([False] * num_calls)
        if process in self._fresh:
            self._fresh.remove(process)
            self._num_first_ends = 0

    def note_end(self, process: Process, num_calls: int) -> None:
        """Note that a process has ended, or was ended; start another one, at once or after a pause.

        Args:
            process: the process.
            num_calls: those that it was at work on. Of several it is not known which has ended it;
                each is run again, alone.
        """
        self.num_alive -= 1
        if num_calls == 1:
            self._recent.append(True)
        if process in self._fresh:
            self._fresh.remove(process)
            self._num_first_ends += 1
        if self._num_first_ends > _MAX_FIRST_ENDS or sum(self._recent) > _MAX_ENDS:
            self._pause(self._ends.fail() * process.start_s)
        else:
            self._ends.reset()
        self.start_missing()

    def _pause(self, seconds: float) -> None:
        self._pause_until_s = self._owner.clock() + seconds

    def close(self) -> None:
        """Start no further process."""
        self._is_closed = True
