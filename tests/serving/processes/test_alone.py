"""Children and pools beside processes that are none: locks, descriptors, and jobs that end."""

import os
import pickle
import socket
import threading
from collections import deque
from concurrent.futures import Future
from types import SimpleNamespace
from typing import Any

import pytest

from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded
from serving.processes import child as children_module
from serving.processes import jobs
from serving.processes import pool as module
from serving.processes.child import Child, ChildCommand
from serving.processes.end import End
from serving.processes.lifeline import Lifeline
from serving.processes.pool import (
    NO_LIMITS,
    NO_PROCESS,
    BoundedPool,
    JobLimits,
    ProcessPool,
    _Job,
    mapped,
)
from tests.support.locks import KeptLock, waits

# Children


@pytest.fixture
def child(monkeypatch):
    """A child whose process is this one; what it would get is noted."""
    done: list[Any] = []

    def popen(command, **options):
        return SimpleNamespace(pid=os.getpid(), stdout=None, stderr=None, wait=lambda: -9)

    monkeypatch.setattr("subprocess.Popen", popen)
    monkeypatch.setattr(os, "kill", lambda *args: done.append(("kill", *args)))
    monkeypatch.setattr(os, "killpg", lambda *args: done.append(("killpg", *args)))
    found = Child(ChildCommand("a.module"))
    yield found, done
    found.release()
    found.channel.close()


def test_waiting_for_a_child_opens_nothing(child, monkeypatch):
    it, _ = child
    before = sorted(os.listdir("/proc/self/fd"))
    for _ in range(3):
        assert it.wait(0.0) is None
    assert sorted(os.listdir("/proc/self/fd")) == before

    def interrupt():
        raise KeyboardInterrupt

    monkeypatch.setattr(children_module.select, "poll", interrupt)  # type: ignore[attr-defined]
    with pytest.raises(KeyboardInterrupt):
        it.wait(0.0)
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_child_that_cannot_be_started_leaves_nothing_open(monkeypatch):
    def fail(command, **options):
        raise FileNotFoundError

    monkeypatch.setattr("subprocess.Popen", fail)
    before = sorted(os.listdir("/proc/self/fd"))
    with pytest.raises(FileNotFoundError):
        Child(ChildCommand("a.module"))
    assert sorted(os.listdir("/proc/self/fd")) == before


def test_id_of_a_child_is_used_while_nobody_else_can_have_it(child):
    """It is free once somebody has waited for its end."""
    it, done = child
    it._lock = lock = KeptLock()
    assert waits(lock, lambda: it.signal(15))
    assert waits(lock, lambda: it._ends_within(0.0))
    it.signal(15)
    assert done == [("kill", os.getpid(), 15)]


def test_lifeline_that_is_closed_again_closes_nobody_elses_file():
    line = Lifeline()
    os.close(line.reader)
    line.close()
    others = [os.open(os.devnull, os.O_RDONLY) for _ in range(2)]  # one has the number now
    line.close()
    for each in others:
        os.close(each)


@pytest.mark.parametrize("is_ours", [True, False])
def test_child_that_we_have_killed_has_not_lacked_memory(is_ours, child, monkeypatch):
    """Though the kernel has killed others meanwhile."""
    it, done = child
    monkeypatch.setattr(children_module, "num_killed_for_memory", lambda: it._num_killed + 1)
    monkeypatch.setattr(it, "_ends_within", lambda timeout_s: True)
    if is_ours:
        it.kill()
    assert it.wait() == End(-9, lacked_memory=not is_ours)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(it._lifeline._writer)  # of each child that has ended one would be left
    assert done == [("killpg", os.getpid(), 9)] * (1 + is_ours)
    it.kill()
    it.signal(15)
    assert len(done) == 1 + is_ours, "it has ended"


@pytest.mark.parametrize(("timeout_s", "timeout_ms"), [(None, None), (0.25, 250.0)])
@pytest.mark.parametrize("events", [[(1, 1)], []])
def test_end_is_waited_for_as_long_as_is_said(timeout_s, timeout_ms, events, child, monkeypatch):
    polls = []

    class Poll:
        def register(self, descriptor, kinds):
            assert kinds == 1

        def poll(self, timeout_ms):
            polls.append(timeout_ms)
            return events

    monkeypatch.setattr(children_module.select, "poll", Poll)  # type: ignore[attr-defined]
    it, _ = child
    assert it._ends_within(timeout_s) is bool(events)
    assert polls == [timeout_ms]


# Pools


class Process:
    """A process of a pool, whose answers are a list's."""

    def __init__(self, *answers):
        self.answers, self.asked, self.num_ends = [*answers], [], 0
        self.child = SimpleNamespace(kill=lambda: self.asked.append("killed"))

    def ask(self, limits, function, args):
        self.asked.append((limits, function, args))
        answer = self.answers.pop(0)
        if isinstance(answer, BaseException):
            raise answer
        return answer() if callable(answer) else answer

    def end(self):
        self.num_ends += 1
        return End(-11)


def job_of(*args):
    return _Job("", NO_LIMITS, (print, args), Future())


def done_by(pool, *answers, on_outcome=lambda future: None):
    """Do a job in such a process; return its outcome, the process, and the one that is left."""
    process, job = Process(*answers), job_of(1)
    job.future.add_done_callback(on_outcome)
    left = pool._do(job, process)
    with pool._changed:
        assert pool._busy == {}, "it has no job any more"
    return job.future, process, left


def test_outcome_of_a_job_is_good_or_an_error():
    for outcome in ((True, 5), (False, ValueError("no"))):
        future, process, left = done_by(ProcessPool(1), outcome)
        assert left is process
        assert process.asked == [(NO_LIMITS, print, (1,))]
        assert (future.exception() or future.result()) is outcome[1]
    failed = job_of()
    failed.end(error := KeyError("x"))
    assert failed.future.exception() is error


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (TimeoutError(), DeadlineExceeded, "^it takes more than 600 s$"),
        (MemoryError("much"), MemoryError, "^much$"),
    ],
)
def test_process_that_is_not_asked_to_its_end_is_ended(error, kind, text):
    future, process, left = done_by(ProcessPool(1), error)
    assert (left, process.num_ends) == (None, 1)
    with pytest.raises(kind, match=text):
        future.result()


def test_job_has_the_error_by_which_its_process_could_not_be_made(monkeypatch):
    def fail(self):
        raise error

    error = MemoryError("much")
    monkeypatch.setattr(ProcessPool, "_start", fail)
    job = job_of()
    assert ProcessPool(1)._do(job, None) is None
    assert job.future.exception() is error


def test_process_that_has_a_part_of_a_job_is_ended():
    ours, its = socket.socketpair()
    with ours, its:
        child: Any = SimpleNamespace(channel=ours, kill=lambda: killed.append(1))
        killed: list[int] = []
        process = module._Process(child)
        is_good, error = process.ask(NO_LIMITS, lambda: 1, ())
        process._stream.close()
    assert not is_good
    assert isinstance(error, pickle.PicklingError | AttributeError)
    assert killed == [1]


def test_child_that_was_killed_while_it_had_no_job_costs_none():
    ours, its = socket.socketpair()
    with ours, its:
        its.sendall(pickle.dumps((jobs.CRASHED, End(-9))))
        child: Any = SimpleNamespace(channel=ours)
        process = module._Process(child)

        def do():
            with its.makefile("rb") as stream:
                number, _ = pickle.load(stream)
                function, args = pickle.load(stream)
            outcome = pickle.dumps((True, function(*args)))
            its.sendall(pickle.dumps((number, jobs.READ)) + pickle.dumps((number, outcome)))

        thread = threading.Thread(target=do)
        thread.start()
        try:
            assert process.ask(JobLimits(seconds=20.0), abs, (-5,)) == (True, 5)
        finally:
            thread.join()
            process._stream.close()


def test_child_that_ends_before_it_has_read_its_job_leaves_a_part_of_it():
    """The next child would read that as a job: so its parent is ended, too."""
    ours, its = socket.socketpair()
    with ours, its:
        child: Any = SimpleNamespace(channel=ours, end=lambda: End(-9))
        process = module._Process(child)

        def crash():
            its.recv(1)
            its.sendall(pickle.dumps((jobs.CRASHED, End(-9))))

        thread = threading.Thread(target=crash)
        thread.start()
        try:
            with pytest.raises(BrokenPipeError):
                process.ask(JobLimits(seconds=20.0), len, (bytes(8 << 20),))
        finally:
            thread.join()
        assert process.end() == End(-9)
        assert process._stream.closed
        assert ours.fileno() == -1


def test_job_whose_thread_can_not_be_started_is_refused(monkeypatch):
    def fail(thread):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(threading.Thread, "start", fail)
    pool = ProcessPool(1)
    with pytest.raises(Overloaded, match=f"^{NO_PROCESS}$"):
        pool.submit("one", print)
    with pool._changed:
        assert (pool._waiting, pool._threads) == ({}, set())


def test_hundred_jobs_of_a_caller_wait_and_a_thousand_of_all(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    pool = ProcessPool(1)
    for owner in map(str, range(10)):
        for _ in range(100):
            pool.submit(owner, print)
        with pytest.raises(Overloaded, match=r"^too many requests wait for a process$"):
            pool.submit(owner, print)
    with pytest.raises(Overloaded):
        pool.submit("another one", print)
    pool.submit("", print)  # who has no name has no limit


def test_caller_whose_job_is_done_keeps_its_turn():
    pool, done = ProcessPool(1), Future[Any]()
    with pool._changed:
        pool._waiting = {each: deque([job_of()]) for each in ("one", "two")}
    done.set_result(5)
    pool._forget_cancelled("one", done)
    with pool._changed:
        assert [*pool._waiting] == ["one", "two"]


def test_job_that_crashes_twice_is_over():
    causes = []

    def note(future):
        causes.append(str(future.exception().__cause__))

    future, process, left = done_by(ProcessPool(1), End(-6), End(-6), on_outcome=note)
    assert (left is process, len(process.asked)) == (True, 2)
    with pytest.raises(InvalidRequest):
        future.result()
    assert causes == ["SIGABRT"], "it is known as soon as the outcome is"


def test_job_that_is_done_has_its_outcome_though_the_pool_is_closed_meanwhile():
    pool = ProcessPool(1)

    def answer():
        with pool._changed:
            pool._is_closed = True
        return True, 5

    future, _, _ = done_by(pool, answer)
    assert future.result(0) == 5


def test_pool_that_is_closed_does_no_job():
    pool = ProcessPool(1)
    pool.close()
    future, process, _ = done_by(pool)
    assert (future.cancelled(), process.asked) == (True, [])
    with pytest.raises(Overloaded, match=r"^too many requests wait for a process$"):
        pool.submit("", print)


def waiting_for(pool, monkeypatch, *arrive):
    """Have a thread wait for jobs without any time; return for how long, and what it gets."""
    pauses, left = [], [*arrive]

    def wait(timeout_s):
        pauses.append(timeout_s)
        if left:
            pool._waiting[""] = deque([left.pop(0)])
        return False

    monkeypatch.setattr(pool._changed, "wait", wait)
    return pauses, pool._next_job()


@pytest.mark.parametrize(("options", "idle_s"), [({}, 60.0), ({"idle_s": 5.0}, 5.0)])
def test_process_without_a_job_ends_after_a_minute(options, idle_s, monkeypatch):
    assert waiting_for(ProcessPool(1, **options), monkeypatch) == ([idle_s], None)


def test_job_that_comes_as_the_time_ends_is_done(monkeypatch):
    """Its caller has seen a thread that waits, and has started no other one."""
    job = job_of()
    pool = ProcessPool(1)
    assert waiting_for(pool, monkeypatch, job) == ([60.0], job)
    with pool._changed:
        assert pool._running == {"": 1}


class Starting:
    """A child that is started, and says that it is ready, or ends."""

    def __init__(self, said):
        self.done: list[Any] = []
        note, self.channel = self.done.append, self
        self.settimeout = lambda seconds: note(("timeout", seconds))
        self.recv = lambda size: note("received") or said
        self.makefile = lambda mode: SimpleNamespace(close=lambda: None)
        self.close = lambda: note("closed")

    def end(self):
        self.done.append("ended")
        return End(1)


@pytest.mark.parametrize(("said", "rest"), [(b"\0", []), (b"", ["closed", "ended"])])
def test_process_has_twenty_seconds_to_start(said, rest, monkeypatch):
    child: Any = Starting(said)
    given: list[Any] = []

    def start(*args):
        given.append(args)
        return child

    monkeypatch.setattr(module, "Child", start)
    pool = ProcessPool(1, ["a"])
    pool.prepare(["b", "a"])
    if said:
        assert pool._start().child is child
    else:
        job = job_of()
        assert pool._do(job, None) is None
        with pytest.raises(Overloaded, match=f"^{NO_PROCESS}$"):
            job.future.result()
    assert child.done == [("timeout", 20.0), "received", *rest]
    ((command, modules),) = given
    assert (command.module, command.flags, modules) == (
        "serving.processes.jobs",
        ["-I"],
        ["a", "b"],
    )
    assert command.variables == {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"}


def test_thread_of_a_pool_ends_with_the_program(monkeypatch):
    made: list[Any] = []
    monkeypatch.setattr(threading.Thread, "start", lambda thread: made.append(thread))
    pool = ProcessPool(1)
    pool.submit("", print)
    assert [(each.name, each.daemon) for each in made] == [("processes", True)]
    with pool._changed:
        pool._is_closed = True
    made[0].run()
    with pool._changed:
        assert pool._waiting, "it has looked, and nothing is begun any more"


class Futures:
    """A pool that does its first job, and ends the second one by an error, if there is one."""

    def __init__(self, error):
        self.made: list[Future[Any]] = []
        self.error = error

    def submit(self, owner, function, item):
        self.made.append(future := Future())
        if item == 0:
            future.set_result("first")
        elif item == 1 and self.error is not None:
            future.set_exception(self.error)
        return future


@pytest.mark.parametrize("end", ["closed", "an error"])
def test_jobs_that_nobody_waits_for_are_given_up(end):
    pool: Any = Futures(KeyError("x") if end == "an error" else None)
    results = mapped(pool, print, iter(range(9)), 2)
    assert next(results) == "first"
    if end == "closed":
        results.close()
    else:
        with pytest.raises(KeyError):
            next(results)
    pending = [each for each in pool.made if not each.done() or each.cancelled()]
    assert pending
    assert all(each.cancelled() for each in pending)


def test_end_is_looked_for_where_there_are_no_descriptors_of_processes(child, monkeypatch):
    """Linux before 5.3, or a sandbox."""

    def refuse(pid):
        raise OSError

    it, _ = child
    now, looks = SimpleNamespace(s=100.0), []

    def sleep(seconds):
        now.s += seconds
        looks.append(seconds)

    clock = SimpleNamespace(monotonic=lambda: now.s, sleep=sleep)
    monkeypatch.setattr(os, "pidfd_open", refuse)
    monkeypatch.setattr(children_module, "time", clock)
    monkeypatch.setattr(os, "waitid", lambda *_: "ended" if len(looks) >= 4 else None)
    assert it._ends_within(0.0) is False
    assert looks == []
    assert it._ends_within(0.09) is False
    assert looks == [0.05, 0.05]
    assert it._ends_within(None) is True
    assert looks == [0.05] * 4


@pytest.mark.parametrize(
    ("events", "error"), [([], TimeoutError), ([(0, 1)], module._Interrupted), ([(0, 4)], None)]
)
def test_job_is_written_within_its_time(events, error, monkeypatch):
    polls, sent = [], []

    class Poll:
        def register(self, given, kinds):
            registered.append((given, kinds))

        def poll(self, timeout_ms):
            polls.append(timeout_ms)
            return events

    def send(data, flags):
        sent.append(bytes(data[:2]))
        return 2

    monkeypatch.setattr(module.select, "poll", Poll)  # type: ignore[attr-defined]
    sock: Any = SimpleNamespace(gettimeout=lambda: 2.5, send=send)
    registered: list[Any] = []
    writer = module._Writer(sock)
    assert registered == [(sock, 1 | 4)]
    if error is None:
        writer.write(b"abc")
        assert (polls, sent) == ([2500.0, 2500.0], [b"ab", b"c"])
    else:
        with pytest.raises(error):
            writer.write(b"abc")
        assert (polls, sent) == ([2500.0], [])


def test_job_that_is_given_up_while_it_waits_is_forgotten(monkeypatch):
    monkeypatch.setattr(threading.Thread, "start", lambda thread: None)
    pool = ProcessPool(1)
    first, second = pool.submit("one", print), pool.submit("one", print)
    assert first.cancel()
    with pool._changed:
        assert [job.future for job in pool._waiting["one"]] == [second]
    assert second.cancel()
    with pool._changed:
        assert pool._waiting == {}


def test_caller_has_a_job_less_once_it_is_done(monkeypatch):
    pool, process, seen = ProcessPool(1), Process(), []

    def do(job, given):
        with pool._changed:
            seen.append((given, dict(pool._running)))
            pool._is_closed = len(seen) == 2
        return process

    monkeypatch.setattr(pool, "_do", do)
    with pool._changed:
        pool._waiting["one"] = deque([job_of()._replace(owner="one") for _ in range(2)])
    pool._run()
    assert seen == [(None, {"one": 1}), (process, {"one": 1})]
    assert process.num_ends == 1
    with pool._changed:
        assert +pool._running == {}


def test_limits_of_a_bounded_pool_are_for_each_of_its_jobs():
    given: list[Any] = []
    pool: Any = SimpleNamespace(submit=lambda *job, **options: given.append((job, options)))
    for limits in (JobLimits(), JobLimits(5, 2.0)):
        BoundedPool(pool, limits).submit("one", print, 1)
    job = ("one", print, 1)
    assert given == [(job, {"limits": (0, 600.0)}), (job, {"limits": (5, 2.0)})]


def test_kernel_is_not_blamed_where_nothing_is_known():
    assert (str(End(-9)), End(-9)) == ("SIGKILL", (-9, False))
