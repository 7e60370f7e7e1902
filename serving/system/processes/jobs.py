"""A worker and its zygote as the process sees them that has the jobs."""

import os
import pickle
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from serving.system.processes.zygote import HEADER, PID

MAX_ANSWER_BYTES = 128 << 20
"""Of a job's pickled outcome."""
NO_PROCESS = "no process can be started for it"
_CHUNK = 1 << 20
_FORK_S = 20.0
"""A zygote that takes longer to start and to fork is replaced: it is frozen."""


class Zygote:
    """The process that forks workers; started with the first, and replaced if it fails."""

    def __init__(self, arguments: Sequence[str]) -> None:
        """Start nothing yet; `arguments` are those of `zygote.main`, behind its socket."""
        self._arguments = arguments
        self._process: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    @property
    def is_alive(self) -> bool:
        """Whether it was started, and not ended."""
        return self._process is not None

    def fork(self, its: socket.socket) -> int:
        """Return the number of a new worker, which has the socket.

        Raises:
            OSError: there can be none.
        """
        try:
            pid = self._ask(its)
        except OSError:  # it was killed, or is frozen
            self.end()
            pid = self._ask(its)
        if pid < 0:
            raise OSError(NO_PROCESS)
        return pid

    def _ask(self, its: socket.socket) -> int:
        if self._process is None:
            self._process = self._start()
        control = self._process[1]
        socket.send_fds(control, [b"\0"], [its.fileno()])
        answer = control.recv(PID.size)
        if not answer:
            raise ConnectionResetError
        pid: int = PID.unpack(answer)[0]
        return pid

    def _start(self) -> tuple[subprocess.Popen[bytes], socket.socket]:
        ours, its = socket.socketpair()
        ours.settimeout(_FORK_S)
        module = "serving.system.processes.zygote"
        code = f"import sys; sys.path = {sys.path!r}; import {module} as z; z.main()"
        flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]  # -I forgets the environment's
        with its:
            process = subprocess.Popen(
                [sys.executable, *flags, "-c", code, str(its.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[its.fileno()], start_new_session=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return process, ours

    def end(self) -> None:
        """Kill it; the kernel ends its workers with it."""
        if self._process is not None:
            process, control = self._process
            control.close()
            process.kill()
            process.wait()
            self._process = None


class Job:
    """A call, and its outcome."""

    def __init__(self, owner: str, function: Callable[..., Any], args: tuple[Any, ...]) -> None:
        self.owner = owner
        self.call = function, args
        self.future: Future[Any] = Future()
        self.has_crashed = False
        """Whether a worker ended with it."""

    def end_with(self, content: bytearray) -> None:
        """Take a worker's outcome."""
        try:
            is_good, outcome = pickle.loads(content)
        except Exception as err:  # an exception that takes other arguments, say
            is_good, outcome = False, RuntimeError(f"{type(err).__name__}: {err}")
        self.end(self.future.set_result if is_good else self.future.set_exception, outcome)

    def end(self, end: Callable[[Any], None], outcome: Any) -> None:
        """Set the outcome, unless it was given up."""
        if self.future.set_running_or_notify_cancel():
            end(outcome)


class Worker:
    """A process, and its job."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.socket, self._pid = sock, pid
        self.job: Job | None = None
        self.end_s = 0.0
        """When it is ended, in monotonic seconds."""
        self._received = bytearray()

    def begin(self, job: Job, end_s: float) -> None:
        """Send it a job; it reads until it has it, or ends."""
        self.job, self.end_s = job, end_s
        with self.socket.makefile("wb") as stream:
            pickle.dump(job.call, stream, protocol=5)

    def receive(self) -> tuple[bool, bytearray] | None:
        """Return whether it ends, and its outcome; None if it has not come whole."""
        data = self.socket.recv(_CHUNK)
        if not data:
            raise EOFError
        self._received += data
        if len(self._received) < HEADER.size:
            return None
        is_last, size = HEADER.unpack_from(self._received)
        if size > MAX_ANSWER_BYTES:
            raise ValueError(size)
        if len(self._received) < HEADER.size + size:
            return None
        content, self._received = self._received[HEADER.size :], bytearray()
        return is_last, content

    def end(self) -> None:
        """Kill it; only while its socket is open it is this process that has the number."""
        with suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)
        self.socket.close()
