"""Processes for work that may crash, hang, or take all memory: strangers' pictures and JSON.

    this process ──▶ the zygote: one thread, with the jobs' imports ──fork──▶ workers
          └──────────── a socket to each worker: a job, its outcome ────────────────┘

A worker has one job at a time. One that crashes, is too slow or is given up costs that job alone,
and another one is there in some milliseconds. A job whose worker ends is begun once more, in a new
one: the job before, or who killed the process, may be at fault. All end with this process, also
after `kill -9`: the zygote's socket is closed then, and the kernel ends the workers with it.
"""

import pickle
import selectors
import socket
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from typing import Any

from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serving.system.processes.jobs import NO_PROCESS, Job, Worker, Zygote

CRASH = "cannot be read: it crashes the process that reads it"
"""Why there is no outcome of a job that ends its process: a decoder's fault, or the kernel's."""
MAX_WAITING, MAX_WAITING_OF_ONE = 1000, 100
"""Jobs that wait for a process, and how many of them may be one caller's."""


class Processes:
    """Calls functions in processes, which start with the first call and end when idle."""

    def __init__(
        self, number: int, modules: Iterable[str] = (), *, memory_bytes: int | None = None,
        job_s: float = 600.0, idle_s: float = 60.0,
    ) -> None:  # fmt: skip
        """Start nothing yet.

        Args:
            number: of processes; a caller that has a name gets all but one.
            modules: imports of the jobs; those that are not installed are left out.
            memory_bytes: the most that a process may allocate for its job; None for any.
            job_s: a process that has a job for longer is ended.
            idle_s: when all that have nothing to do end.
        """
        self._number, self._share = number, max(1, number - 1)
        self._job_s, self._idle_s = job_s, idle_s
        self._lock = threading.Lock()
        self._waiting: dict[str, deque[Job]] = {}
        """By caller; the one whose turn is next is the first."""
        self._is_closed = False
        self._thread: threading.Thread | None = None
        self._workers: set[Worker] = set()  # it and the next are the thread's
        self._zygote = Zygote([str(memory_bytes or 0), *modules])

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function of a module in a process, with arguments.

        Args:
            owner: the caller, such as its address: callers take turns; "" has no limits.
            function: its exceptions are raised by the future.
            args: its arguments.

        Returns:
            Its outcome: cancelled, it is never begun, or its process is ended. InvalidRequest for a
            job that crashes its process; DeadlineExceeded for one that takes too long.

        Raises:
            Overloaded: too many wait, or there are no more threads or files.
        """
        job = Job(owner, function, args)
        with self._lock:
            waiting = self._waiting.get(owner, ())
            num_waiting = sum(map(len, self._waiting.values()))
            is_full = len(waiting) >= MAX_WAITING_OF_ONE or num_waiting >= MAX_WAITING
            if (owner and is_full) or self._is_closed:
                raise Overloaded("too many pictures wait")
            if self._thread is None:
                self._start()
            self._waiting.setdefault(owner, deque()).append(job)
        job.future.add_done_callback(partial(self._forget_cancelled, owner))
        self._wake()
        return job.future

    def _start(self) -> None:
        thread = threading.Thread(target=self._run, name="processes", daemon=True)
        try:
            self._ears, self._mouth = socket.socketpair()
            self._selector = selectors.DefaultSelector()
            thread.start()
        except (OSError, RuntimeError) as err:
            raise Overloaded(NO_PROCESS) from err
        self._thread = thread

    def close(self) -> None:
        """End the processes and their jobs."""
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
        """Free the place and the arguments of a job that is given up while it waits."""
        if not future.cancelled():
            return
        with self._lock:
            jobs = self._waiting.pop(owner, deque())
            kept = deque(job for job in jobs if job.future is not future)
            if kept:
                self._waiting[owner] = kept  # and have their turn last
        self._wake()

    def _run(self) -> None:
        """Do all that follows, on a thread of its own."""
        self._selector.register(self._ears, selectors.EVENT_READ)
        try:
            while not self._is_closed:
                self._turn(self._selector.select(self._timeout_s()))
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

    def _timeout_s(self) -> float | None:
        ends = [worker.end_s for worker in self._workers if worker.job is not None]
        if ends:
            return max(0.0, min(ends) - time.monotonic())
        return self._idle_s if self._zygote.is_alive else None

    def _next_job(self) -> Job | None:
        """Return the job whose turn is next, if a process may have it."""
        running = Counter(worker.job.owner for worker in self._workers if worker.job is not None)
        with self._lock:
            for owner in [*self._waiting]:
                if running.total() >= self._number:
                    return None
                if owner and running[owner] >= self._share:
                    continue
                jobs = self._waiting.pop(owner)
                if len(jobs) > 1:
                    self._waiting[owner] = jobs  # and has its next turn last
                return jobs.popleft()
        return None

    def _begin(self, job: Job) -> None:
        if job.future.cancelled():
            return
        worker = next((each for each in self._workers if each.job is None), None)
        if worker is not None and job.has_crashed:
            self._end(worker)
            worker = None
        try:
            worker = worker or self._fork()
        except OSError:
            job.end(job.future.set_exception, Overloaded(NO_PROCESS))
            return
        try:
            worker.begin(job, time.monotonic() + self._job_s)
        except OSError:
            self._crash(worker)
        except (pickle.PicklingError, AttributeError, TypeError) as err:
            self._end(worker)
            job.end(job.future.set_exception, err)

    def _crash(self, worker: Worker) -> None:
        """Begin the job of a worker that has ended once more, or end it."""
        job = worker.job
        self._end(worker)
        if job is not None and job.has_crashed:
            job.end(job.future.set_exception, InvalidRequest(CRASH))
        elif job is not None:
            job.has_crashed = True
            self._begin(job)

    def _fork(self) -> Worker:
        ours, its = socket.socketpair()
        try:
            pid = self._zygote.fork(its)
        except OSError:
            ours.close()
            raise
        finally:
            its.close()
        ours.settimeout(self._job_s)
        worker = Worker(ours, pid)
        self._workers.add(worker)
        self._selector.register(ours, selectors.EVENT_READ, worker)
        return worker

    def _receive(self, worker: Worker) -> None:
        try:
            message = worker.receive()
        except (OSError, EOFError, ValueError):
            self._crash(worker)
            return
        if message is not None:
            job, worker.job = worker.job, None
            is_last, content = message
            if is_last:
                self._end(worker)
            if job is not None:
                job.end_with(content)

    def _end_given_up(self) -> None:
        """End the processes of jobs that nobody waits for, or that take too long."""
        now_s = time.monotonic()
        for worker in [*self._workers]:
            job = worker.job
            if job is not None and (job.future.cancelled() or worker.end_s <= now_s):
                self._end(worker)
                error = DeadlineExceeded(f"it takes more than {self._job_s:g} s")
                job.end(job.future.set_exception, error)

    def _end(self, worker: Worker) -> None:
        self._workers.discard(worker)
        self._selector.unregister(worker.socket)
        worker.end()

    def _rest(self) -> None:
        """End all processes."""
        for worker in [*self._workers]:
            self._end(worker)
            if worker.job is not None:
                worker.job.future.cancel()
        self._zygote.end()
