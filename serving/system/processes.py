"""Processes for work that may crash, hang, or take all memory: strangers' pictures and JSON.

    this process ──▶ the zygote: one thread, has imported what jobs need ──fork──▶ workers
          └──────────── a socket to each worker: a job, its outcome ────────────────┘

A worker has one job at a time. One that crashes, is too slow or is given up costs that job alone,
and another one is there in some milliseconds. A job whose worker ends is begun once more, in a new
one: the job before, or who killed the process, may be at fault. All end with this process, also
after `kill -9`: the zygote's socket is closed then, and the kernel ends the workers with it.

Windows has no fork: there the jobs run on threads of this process, which a crash takes along.
"""

import os
import pickle
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import Any

from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serving.system.zygote import CAN_FORK, HEADER, PID

CRASH = "cannot be read: it crashes the process that reads it"
"""Why there is no outcome of a job that ends its process: a decoder's fault, or the kernel's."""
MAX_ANSWER_BYTES = 128 << 20
"""Of a job's pickled outcome."""
MAX_WAITING = 1000
"""Jobs that wait for a process, and how many of them may be one caller's."""
MAX_WAITING_OF_ONE = 100
_CHUNK = 1 << 20
_NO_PROCESS = "no process can be started for it"
_FORK_S = 20.0
"""A zygote that takes longer to start and to fork is replaced: it is frozen."""


class Processes:
    """Calls functions in processes, which start with the first call and end when idle."""

    def __init__(
        self, number: int, modules: Iterable[str] = (), *, memory_bytes: int | None = None,
        job_s: float = 600.0, idle_s: float = 60.0,
    ) -> None:  # fmt: skip
        """Start nothing yet.

        Args:
            number: of processes; a caller that has a name gets all but one.
            modules: what jobs need; those that are not installed are left out.
            memory_bytes: what each process may allocate for its job; None for any.
            job_s: a process that has a job for longer is ended.
            idle_s: when all that have nothing to do end.
        """
        self._number = number
        self._share = max(1, number - 1)
        self._memory_bytes = memory_bytes or 0
        self._arguments = [str(self._memory_bytes), *modules]
        self._job_s, self._idle_s = job_s, idle_s
        self._threads = ThreadPoolExecutor(number)
        """Where there is no fork; idle ones cost nothing."""
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[_Job]] = {}
        """By caller; the one whose turn is next is the first."""
        self._num_waiting = 0
        self._is_closed = False
        self._thread: threading.Thread | None = None
        # The rest is used by the thread alone.
        self._workers: set[_Worker] = set()
        self._zygote: tuple[subprocess.Popen[bytes], socket.socket] | None = None

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function of a module in a process.

        Args:
            owner: the caller, such as its address: callers take turns; "" has no limits.
            function: of a module; what it raises is raised by the future.
            args: its arguments.

        Returns:
            Its outcome: cancelled, it is never begun, or its process is ended. InvalidRequest for a
            job that crashes its process; DeadlineExceeded for one that takes too long.

        Raises:
            Overloaded: too many wait, or there are no more threads or files.
        """
        if not CAN_FORK:
            return self._threads.submit(function, *args)
        job = _Job(owner, function, args)
        with self._lock:
            waiting = self._waiting.get(owner, ())
            is_full = len(waiting) >= MAX_WAITING_OF_ONE or self._num_waiting >= MAX_WAITING
            if (owner and is_full) or self._is_closed:
                raise Overloaded("too many pictures wait")
            if self._thread is None:
                self._start()
            self._waiting.setdefault(owner, deque()).append(job)
            self._num_waiting += 1
        job.future.add_done_callback(partial(self._forget_cancelled, owner))
        self._wake()
        return job.future

    def _start(self) -> None:
        try:
            self._ears, self._mouth = socket.socketpair()
            self._selector = selectors.DefaultSelector()
            thread = threading.Thread(target=self._run, name="processes", daemon=True)
            thread.start()
        except (OSError, RuntimeError) as err:
            raise Overloaded(_NO_PROCESS) from err
        self._thread = thread

    def mapped(
        self, function: Callable[..., Any], items: Iterable[Any], ahead: int
    ) -> Generator[Any, None, None]:
        """Yield a function's result for each item, in order; for one that crashes, why: a text.

        Args:
            function: of a module.
            items: its argument; `ahead` of them are read before their results are wanted.
            ahead: see above.
        """
        futures: deque[Future[Any]] = deque()
        try:
            for item in items:
                futures.append(self.submit("", function, item))
                if len(futures) > ahead:
                    yield _outcome(futures.popleft())
            while futures:
                yield _outcome(futures.popleft())
        finally:
            for future in futures:
                future.cancel()

    def close(self) -> None:
        """End the processes, and what they are doing."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            self._is_closed = True
            thread = self._thread
        if thread is not None:
            self._wake()
            thread.join()

    def _wake(self) -> None:
        with suppress(OSError):  # it is full, or closed
            self._mouth.send(b"\0", socket.MSG_DONTWAIT)

    def _forget_cancelled(self, owner: str, future: "Future[Any]") -> None:
        """Free what a job takes that is given up while it waits: its place, and its arguments."""
        if not future.cancelled():
            return
        with self._lock:
            jobs = self._waiting.get(owner, deque())
            kept = deque(job for job in jobs if job.future is not future)
            self._num_waiting -= len(jobs) - len(kept)
            if kept:
                self._waiting[owner] = kept
            else:
                self._waiting.pop(owner, None)
        self._wake()

    # The thread

    def _run(self) -> None:
        self._selector.register(self._ears, selectors.EVENT_READ)
        try:
            while not self._is_closed:
                self._turn(self._selector.select(self._patience_s()))
        finally:
            with self._lock:
                self._is_closed = True
            self._rest()
            for job in [job for jobs in self._waiting.values() for job in jobs]:
                job.future.cancel()
            for each in (self._selector, self._ears, self._mouth):
                each.close()

    def _turn(self, events: list[tuple[selectors.SelectorKey, int]]) -> None:
        for key, _ in events:
            if key.data is None:
                self._ears.recv(4096)
            elif key.data in self._workers:
                self._receive(key.data)
        self._end_given_up()
        while (job := self._next_job()) is not None:
            self._begin(job)
        if not events and all(worker.job is None for worker in self._workers):
            self._rest()

    def _patience_s(self) -> float | None:
        ends = [worker.end_s for worker in self._workers if worker.job is not None]
        if ends:
            return max(0.0, min(ends) - time.monotonic())
        return self._idle_s if self._zygote is not None else None

    def _next_job(self) -> "_Job | None":
        """Return the job whose turn is next, if a process may have it."""
        running = Counter(worker.job.owner for worker in self._workers if worker.job is not None)
        with self._lock:
            for owner in [*self._waiting]:
                if running.total() >= self._number:
                    return None
                if owner and running[owner] >= self._share:
                    continue
                jobs = self._waiting.pop(owner)
                job = jobs.popleft()
                self._num_waiting -= 1
                if jobs:
                    self._waiting[owner] = jobs
                return job
        return None

    def _begin(self, job: "_Job") -> None:
        if job.future.cancelled():
            return
        worker = next((each for each in self._workers if each.job is None), None)
        if worker is not None and job.has_crashed:
            self._end(worker)
            worker = None
        try:
            worker = worker or self._fork()
        except OSError:
            job.end(job.future.set_exception, Overloaded(_NO_PROCESS))
            return
        try:
            worker.begin(job, time.monotonic() + self._job_s)
        except OSError:
            self._crash(worker)
        except (pickle.PicklingError, AttributeError, TypeError) as err:
            self._end(worker)
            job.end(job.future.set_exception, err)

    def _crash(self, worker: "_Worker") -> None:
        """Begin the job of a worker that has ended once more, or end it."""
        job = worker.job
        self._end(worker)
        if job is None:
            return
        if job.has_crashed:
            job.end(job.future.set_exception, InvalidRequest(CRASH))
        else:
            job.has_crashed = True
            self._begin(job)

    def _fork(self) -> "_Worker":
        ours, its = socket.socketpair()
        with its:
            try:
                pid = self._ask_zygote(its)
            except OSError:  # it was killed, or is frozen
                self._end_zygote()
                pid = self._ask_zygote(its)
        if pid < 0:
            ours.close()
            raise OSError(_NO_PROCESS)
        ours.settimeout(self._job_s)
        worker = _Worker(ours, pid)
        self._workers.add(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _ask_zygote(self, its: socket.socket) -> int:
        """Return the number of a new worker that has the socket; -1 if there can be none."""
        if self._zygote is None:
            self._zygote = self._start_zygote()
        control = self._zygote[1]
        socket.send_fds(control, [b"\0"], [its.fileno()])
        answer = control.recv(PID.size)
        if not answer:
            raise ConnectionResetError
        pid: int = PID.unpack(answer)[0]
        return pid

    def _start_zygote(self) -> "tuple[subprocess.Popen[bytes], socket.socket]":
        ours, its = socket.socketpair()
        ours.settimeout(_FORK_S)
        code = f"import sys; sys.path = {sys.path!r}; import serving.system.zygote as z; z.main()"
        flags = ["-I", "-B"] if sys.dont_write_bytecode else ["-I"]  # -I forgets the environment's
        with its:
            process = subprocess.Popen(
                [sys.executable, *flags, "-c", code, str(its.fileno()), *self._arguments],
                stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
                pass_fds=[its.fileno()], start_new_session=True,
                env=os.environ | {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
            )  # fmt: skip
        return process, ours

    def _receive(self, worker: "_Worker") -> None:
        try:
            message = worker.receive()
        except (OSError, EOFError, ValueError):
            self._crash(worker)
            return
        if message is None:
            return
        job, worker.job = worker.job, None
        is_last, content = message
        if is_last:
            self._end(worker)
        if job is not None:
            job.end_with(content)

    def _end_given_up(self) -> None:
        """End the processes of jobs that nobody waits for, or that take too long."""
        now_s = time.monotonic()
        for worker in [each for each in self._workers if each.job is not None]:
            assert worker.job is not None
            future = worker.job.future
            if future.cancelled() or worker.end_s <= now_s:
                self._end(worker)
                error = DeadlineExceeded(f"it takes more than {self._job_s:g} s")
                worker.job.end(future.set_exception, error)

    def _end(self, worker: "_Worker") -> None:
        self._workers.discard(worker)
        self._selector.unregister(worker.socket)
        worker.end()

    def _rest(self) -> None:
        """End all processes."""
        for worker in [*self._workers]:
            self._end(worker)
            if worker.job is not None:
                worker.job.future.cancel()
        self._end_zygote()

    def _end_zygote(self) -> None:
        if self._zygote is not None:
            process, control = self._zygote
            control.close()
            process.kill()
            process.wait()
            self._zygote = None


class _Job:
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


class _Worker:
    """A process, and its job."""

    def __init__(self, sock: socket.socket, pid: int) -> None:
        self.socket, self._pid = sock, pid
        self.job: _Job | None = None
        self.end_s = 0.0
        """When it is ended, in monotonic seconds."""
        self._received = bytearray()

    def begin(self, job: _Job, end_s: float) -> None:
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


def _outcome(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except (InvalidRequest, DeadlineExceeded) as err:
        return str(err)
