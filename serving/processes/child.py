"""A child process, seen by the process that starts it.

    STARTED ── it ends, or `kill` ──▶ ENDED ── `wait`: the rest of its group is ended ──▶ GONE

Each leads a group of its own, with all that it forks, and a session, so that a terminal's signals
are not for it. A process that leaves the group (`setsid`) is its own master. When this process
ends, by any signal, the whole group does.
"""

import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from types import MappingProxyType
from typing import Any, NamedTuple

from serving.processes.end import End
from serving.processes.group import ProcessGroup
from serving.processes.lifeline import Lifeline
from serving.processes.program import LENGTH, run
from serving.system.usage import num_killed_for_memory

SECRETS = frozenset({"SERVING_TOKEN"})
"""Variables of the environment that no child gets: who needs one has it in the first words."""
ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}
_POLL_S = 0.05


class Streams(NamedTuple):
    """The standard streams of a child, as `subprocess` has them; None is this process's own."""

    input: int | None = subprocess.DEVNULL
    output: int | None = subprocess.DEVNULL
    errors: int | None = subprocess.DEVNULL


class ChildCommand(NamedTuple):
    """What a child runs, and how."""

    module: str
    """Its `main` is called with the channel and the first words."""
    streams: Streams = Streams()
    flags: Sequence[str] = ()
    """Of the interpreter."""
    variables: Mapping[str, str] = MappingProxyType({})
    """Variables of the environment beside, or instead of, this process's."""
    end_signal: int = signal.SIGKILL
    """What it gets when this process ends: SIGKILL is for its group, another signal for itself."""


def environment() -> dict[str, str]:
    """Return what children get: this process's variables without secrets, one thread for BLAS."""
    own = {name: value for name, value in os.environ.items() if name not in SECRETS}
    return {**ONE_THREAD, **own}


class Child:
    """A process and its group; for any thread."""

    def __init__(
        self,
        command: ChildCommand,
        words: Any = None,
        *,
        arguments: Sequence[str] = (),
        files: Sequence[int] = (),
    ) -> None:
        """Start it; it runs with the modules of this process.

        Args:
            command: what it runs.
            words: its first words: what `main` gets, pickled.
            arguments: those of its command line.
            files: descriptors that it gets, by the same numbers.

        Raises:
            OSError: it can't be started.
        """
        self._lock, self._is_killed = threading.Lock(), False
        self._end: End | None = None
        self._num_killed = num_killed_for_memory()
        self._lifeline = Lifeline()
        self.channel, its = socket.socketpair()
        """A socket to the child; its user closes it."""
        given = [self._lifeline.reader, its.fileno()]
        flags = [*command.flags, "-B"] if sys.dont_write_bytecode else command.flags
        code = (
            f"import sys; sys.path = {sys.path!r}; from {run.__module__} import run; "
            f"run({command.module!r})"
        )
        numbers = map(str, (int(command.end_signal), *given))
        try:
            self._popen = subprocess.Popen(
                [sys.executable, *flags, "-c", code, *numbers, *arguments],
                stdin=command.streams.input,
                stdout=command.streams.output,
                stderr=command.streams.errors,
                pass_fds=[*given, *files],
                start_new_session=True,
                env={**environment(), **command.variables},
            )
        except BaseException:
            self.channel.close()
            self._lifeline.close()
            raise
        finally:
            its.close()
            os.close(self._lifeline.reader)
        self.pid = self._popen.pid
        self.output: Any = self._popen.stdout
        self.errors: Any = self._popen.stderr
        """Binary files, where `Streams` has pipes."""
        self._group = ProcessGroup(self.pid)
        content = pickle.dumps(words)
        with suppress(OSError):  # it has ended at once
            self.channel.sendall(LENGTH.pack(len(content)) + content)

    def release(self) -> None:
        """Have it get the signal that it gets at the end of this process."""
        self._lifeline.close()

    def signal(self, number: int) -> None:
        """Send it a signal, if it has not ended."""
        with self._lock:
            if self._end is None:
                os.kill(self.pid, number)

    def kill(self) -> None:
        """End the group now, though it be stopped; `wait` comes next."""
        with self._lock:
            if self._end is None:
                self._is_killed = True
                self._kill_group()

    def _kill_group(self) -> None:
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.pid, signal.SIGKILL)

    def wait(self, timeout_s: float | None = None) -> End | None:
        """Wait for its end, and end those of its group that it has left behind.

        Args:
            timeout_s: how long; None for ever.

        Returns:
            How it has ended; None if it has not.
        """
        if not self._ends_within(timeout_s):
            return None
        with self._lock:
            if self._end is None:
                self._kill_group()  # while nobody else can have its id
                code = self._popen.wait()
                lacked_memory = num_killed_for_memory() > self._num_killed and not self._is_killed
                self._end = End(code, lacked_memory)
                self._lifeline.close()
        return self._end

    def end(self, timeout_s: float = 0.0) -> End:
        """Wait for its end; then kill it."""
        if (end := self.wait(timeout_s)) is None:
            self.kill()
            end = self.wait()
            assert end is not None
        return end

    def _ends_within(self, timeout_s: float | None) -> bool:
        """Wait for its end, and leave its exit code to `wait`: until then its id is its own."""
        with self._lock:
            if self._end is not None:
                return True
            try:
                descriptor = os.pidfd_open(self.pid)
            except OSError:  # Linux before 5.3, or a sandbox
                descriptor = -1
        if descriptor < 0:
            return self._is_seen_to_end(timeout_s)
        try:
            poll = select.poll()
            poll.register(descriptor, select.POLLIN)
            return bool(poll.poll(None if timeout_s is None else timeout_s * 1000))
        finally:
            os.close(descriptor)

    def _is_seen_to_end(self, timeout_s: float | None) -> bool:
        until_s = None if timeout_s is None else time.monotonic() + timeout_s
        while os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOWAIT | os.WNOHANG) is None:
            if until_s is not None and time.monotonic() >= until_s:
                return False
            time.sleep(_POLL_S)
        return True

    def memory_bytes(self) -> int:
        """Return the resident memory of the group; for one thread at a time."""
        return self._group.memory_bytes()
