"""Processes for work that may crash, hang, or take all memory: untrusted pictures and JSON.

    callers ── jobs ──▶ queue, in turns ──▶ threads ◀── sockets ──▶ a process each ── fork ──▶ child

A thread starts a process with its first job, whose child does one job at a time. If the child
crashes, that costs its job alone, and the process, which has the imports, forks another in some
milliseconds. If the child is too slow, the thread replaces both. A job that is given up is done to
its end, for nobody: ending its process would cost the next job a start, and callers who wait for
less than that would never be answered. A job that crashes is begun once more: who killed the child
may be at fault. The processes share no lock: `pebble` 5.2 has one for all of its workers, so its
pool broke when one was killed at a bad moment, and its jobs had no limit of time while one was
stopped.
"""

import itertools
import pickle
import select
import socket
import threading
from collections import Counter, deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from functools import partial
from typing import Any, NamedTuple

from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serving.processes import jobs
from serving.processes.child import ONE_THREAD, Child, ChildCommand
from serving.processes.end import End, out_of_time

CRASH = "cannot be read: it crashes the process that reads it"
"""Why there is no outcome of a job that ends its process: a decoder's fault, or the kernel's."""
NO_PROCESS = "no process can be started for it"
MAX_WAITING, MAX_WAITING_OF_ONE = 1000, 100
"""Jobs that wait for a process, and how many of them may be one caller's."""
_START_S = 20.0
"""The longest start of a process, with its imports."""
_COMMAND = ChildCommand(
    jobs.__name__, flags=["-I"], variables=ONE_THREAD
)  # -I: no PYTHON variables


class JobLimits(NamedTuple):
    """The limits of a job."""

    memory_bytes: int = 0
    """The most that it may allocate; 0 for any."""
    seconds: float = 600.0
    """A process that has the job for longer is ended."""


NO_LIMITS = JobLimits()


class Crash(Exception):
    """Why a job crashes its process: how that has ended. The cause of its InvalidRequest."""


class _Interrupted(Exception):
    """There is news of a job that is not yet written."""


class _Writer:
    """Writes a job, until there is news: its reader has ended, or has no room for it."""

    def __init__(self, sock: socket.socket) -> None:
        self._socket, self._poll = sock, select.poll()
        self._poll.register(sock, select.POLLIN | select.POLLOUT)

    def write(self, data: Any) -> None:
        left, timeout_s = memoryview(data).cast("B"), self._socket.gettimeout() or 0.0
        while left:
            events = self._poll.poll(timeout_s * 1000)
            if not events:
                raise TimeoutError
            if events[0][1] & select.POLLIN:
                raise _Interrupted
            left = left[self._socket.send(left, socket.MSG_DONTWAIT) :]


class _Process:
    """A process of a pool; for one thread at a time."""

    def __init__(self, child: Child) -> None:
        self.child = child
        self._stream = child.channel.makefile("rb")
        """Outcomes; the channel has a limit of time."""
        self._numbers = itertools.count()
        """Numbers of jobs: an outcome has its job's, since a child may also crash while it has
        none."""

    def ask(
        self, limits: JobLimits, function: Callable[..., Any], args: tuple[Any, ...]
    ) -> tuple[bool, Any] | End:
        """Have a job done; return a good outcome or an error, or how it ended its process.

        Raises:
            TimeoutError: it takes too long.
            OSError, EOFError, pickle.UnpicklingError: the process has ended, or its child has ended
                before it had read the job: what is left of that would be read as the next job.
        """
        number, is_read = next(self._numbers), False
        self._forget_crashes()
        self.child.channel.settimeout(limits.seconds)
        writer = _Writer(self.child.channel)
        try:
            pickle.dump((number, limits.memory_bytes), writer, 5)
            pickle.dump((function, args), writer, 5)
        except _Interrupted:
            pass
        except (pickle.PicklingError, AttributeError, TypeError) as err:  # a function of no module
            self.child.kill()  # a part of it may have been written
            return False, err
        while True:
            found, content = pickle.load(self._stream)
            if found == jobs.CRASHED and not is_read:
                raise BrokenPipeError
            if found == jobs.CRASHED:
                end: End = content
                return end
            if found == number and content != jobs.READ:
                break
            is_read = is_read or found == number
        if not is_read:  # it has no room for the job, of which a part is left
            self.child.kill()
        try:
            is_good, outcome = pickle.loads(content)
        except Exception as err:  # an exception that takes other arguments, say
            return False, RuntimeError(f"{type(err).__name__}: {err}")
        return is_good, outcome

    def _forget_crashes(self) -> None:
        """Read what has come while there was no job: of children that were killed meanwhile."""
        self.child.channel.settimeout(0)
        while self._stream.peek(1):
            pickle.load(self._stream)

    def end(self) -> End:
        """End it, though it be stopped; return how it has ended."""
        self._stream.close()
        self.child.channel.close()
        return self.child.end()


class _Job(NamedTuple):
    owner: str
    limits: JobLimits
    call: tuple[Callable[..., Any], tuple[Any, ...]]
    future: "Future[Any]"

    def end(self, outcome: Any, *, is_good: bool = False) -> None:
        """Set the outcome, unless the job was given up."""
        if self.future.set_running_or_notify_cancel():
            (self.future.set_result if is_good else self.future.set_exception)(outcome)


class ProcessPool:
    """Calls functions in processes, which start as they are needed and end when idle."""

    def __init__(self, number: int, modules: Iterable[str] = (), *, idle_s: float = 60.0) -> None:
        """Start nothing yet.

        Args:
            number: of processes; a caller that has a name gets all but one.
            modules: imports of the jobs; those that are not installed are left out.
            idle_s: when one that has nothing to do ends.
        """
        self._number, self._share = number, max(1, number - 1)
        self._modules, self._idle_s = [*modules], idle_s
        self._changed = threading.Condition()
        """Its lock guards all that follows."""
        self._waiting: dict[str, deque[_Job]] = {}
        """By caller; the one whose turn is next is the first."""
        self._running = Counter[str]()
        """Jobs by caller."""
        self._busy: dict[Future[Any], _Process] = {}
        """The processes that have a job, by its outcome."""
        self._threads: set[threading.Thread] = set()
        self._is_closed = False

    def prepare(self, modules: Iterable[str]) -> None:
        """Have processes that start later import modules, too."""
        self._modules += [each for each in modules if each not in self._modules]

    def submit(
        self, owner: str, function: Callable[..., Any], *args: Any, limits: JobLimits = NO_LIMITS
    ) -> "Future[Any]":
        """Call a function of a module in a process, with arguments.

        Args:
            owner: the caller, such as its address: callers take turns; "" has no limits.
            function: its exceptions are raised by the future.
            args: its arguments.
            limits: what it may use.

        Returns:
            Its outcome: cancelled, it is never begun, or its outcome is dropped. InvalidRequest for
            a job that crashes its process; DeadlineExceeded for one that takes too long.

        Raises:
            Overloaded: too many wait, or there are no more threads.
        """
        job = _Job(owner, limits, (function, args), Future())
        with self._changed:
            num_waiting = sum(map(len, self._waiting.values()))
            is_full = len(self._waiting.get(owner, ())) >= MAX_WAITING_OF_ONE
            if (owner and (is_full or num_waiting >= MAX_WAITING)) or self._is_closed:
                raise Overloaded("too many requests wait for a process")
            num_free = len(self._threads) - self._running.total()
            if num_waiting >= num_free and len(self._threads) < self._number:
                thread = threading.Thread(target=self._run, name="processes", daemon=True)
                try:
                    thread.start()
                except RuntimeError as err:
                    raise Overloaded(NO_PROCESS) from err
                self._threads.add(thread)
            self._waiting.setdefault(owner, deque()).append(job)
            self._changed.notify()
        job.future.add_done_callback(partial(self._forget_cancelled, owner))
        return job.future

    def close(self) -> None:
        """End the processes and their jobs."""
        with self._changed:
            self._is_closed = True
            waiting = [job.future for jobs in self._waiting.values() for job in jobs]
            futures, threads = [*waiting, *self._busy], [*self._threads]
            for process in self._busy.values():
                process.child.kill()
            self._changed.notify_all()
        for future in futures:
            future.cancel()
        for thread in threads:
            thread.join()

    def _forget_cancelled(self, owner: str, future: "Future[Any]") -> None:
        """Free the place and the arguments of a job that is given up while it waits."""
        if not future.cancelled():
            return
        with self._changed:
            jobs = self._waiting.pop(owner, deque())
            if kept := deque(job for job in jobs if job.future is not future):
                self._waiting[owner] = kept  # and have their turn last

    def _run(self) -> None:
        process: _Process | None = None
        while (job := self._next_job()) is not None:
            process = self._do(job, process)
            with self._changed:
                self._running[job.owner] -= 1
                self._changed.notify()  # another one of this caller may begin
        if process is not None:
            process.end()

    def _next_job(self) -> _Job | None:
        """Wait for a job; return None once the thread is to end."""
        with self._changed:
            is_idle = False
            while not self._is_closed:
                for owner in [*self._waiting]:
                    if owner and self._running[owner] >= self._share:
                        continue
                    jobs = self._waiting.pop(owner)
                    job = jobs.popleft()
                    if jobs:
                        self._waiting[owner] = jobs  # and has its next turn last
                    self._running[owner] += 1
                    return job
                if is_idle:
                    break
                is_idle = not self._changed.wait(self._idle_s)
            self._threads.discard(threading.current_thread())
            return None

    def _do(self, job: _Job, process: _Process | None) -> _Process | None:
        """Do a job in a process, or a new one; return the process, if it can do others."""
        end: End | None = None
        for _ in range(2):
            try:
                process = process or self._start()
            except OSError:
                job.end(Overloaded(NO_PROCESS))
                return None
            except BaseException as err:  # else this thread ends, and its caller waits for ever
                job.end(err)
                return None
            if job.future.cancelled() and not self._is_closed:  # while the process started
                return process
            outcome, is_over = self._ask(process, job)
            if is_over:
                end = process.end()
                process = None
            if isinstance(outcome, End):
                end = outcome
            elif outcome is not None:
                job.end(outcome[1], is_good=outcome[0])
                return process
            if job.future.cancelled() or self._is_closed:
                job.future.cancel()
                return process
        error = InvalidRequest(CRASH)
        error.__cause__ = Crash(str(end))
        job.end(error)
        return process

    def _ask(self, process: _Process, job: _Job) -> tuple[tuple[bool, Any] | End | None, bool]:
        """Return a job's outcome, or how it has ended; and whether the process is over."""
        with self._changed:
            if self._is_closed:
                return None, True
            self._busy[job.future] = process
        try:
            return process.ask(job.limits, *job.call), False
        except TimeoutError:
            return (False, DeadlineExceeded(f"it {out_of_time(job.limits.seconds)}")), True
        except (OSError, EOFError, pickle.UnpicklingError):
            return None, True
        except BaseException as err:  # such as MemoryError: as in `_do`
            return (False, err), True
        finally:
            with self._changed:
                del self._busy[job.future]

    def _start(self) -> _Process:
        started = _Process(Child(_COMMAND, self._modules))
        try:
            started.child.channel.settimeout(_START_S)
            if not started.child.channel.recv(1):
                raise BrokenPipeError
        except OSError:
            started.end()
            raise
        return started


class BoundedPool:
    """A pool for jobs that have the same limits; others use it, too."""

    def __init__(self, pool: ProcessPool, limits: JobLimits) -> None:
        self._pool, self._limits = pool, limits

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function; see `ProcessPool.submit`."""
        return self._pool.submit(owner, function, *args, limits=self._limits)

    def close(self) -> None:
        """Leave the pool to the others."""


def mapped(
    pool: ProcessPool, function: Callable[..., Any], items: Iterable[Any], ahead: int
) -> Generator[Any, None, None]:
    """Yield a function's result for each item, in order; for one that crashes, why: a text.

    Args:
        pool: makes the results.
        function: of a module.
        items: its argument; `ahead` of them are read before their results are wanted.
        ahead: see above.
    """
    futures: deque[Future[Any]] = deque()

    def result() -> Any:
        try:
            return futures.popleft().result()
        except (InvalidRequest, DeadlineExceeded) as err:
            return str(err)

    try:
        for item in items:
            futures.append(pool.submit("", function, item))
            if len(futures) > ahead:
                yield result()
        while futures:
            yield result()
    finally:
        for future in futures:
            future.cancel()
