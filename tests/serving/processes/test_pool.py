"""Processes for jobs that may crash: only the job itself is affected."""

import ctypes
import math
import os
import signal
import subprocess
import sys
import threading
import time
import weakref
from concurrent.futures import CancelledError
from functools import partial
from pathlib import Path

import pytest

from serving.errors import DeadlineExceeded, InvalidRequest, Overloaded, TooLarge
from serving.processes import pool as processes
from serving.processes.pool import CRASH, BoundedPool, JobLimits, ProcessPool, mapped
from tests.support.servers import children, wait_until

WAIT_S = 30.0


def has(pool, jobs):
    """Whether a pool has running or waiting jobs."""
    with pool._changed:
        return bool(getattr(pool, jobs))


@pytest.fixture
def make():
    made: list[ProcessPool] = []

    def one(number=2, modules=("no_such_module",), **options):
        made.append(ProcessPool(number, modules, **options))
        return made[-1]

    yield one
    for pool in made:
        pool.close()


def outcome(future):
    return future.result(WAIT_S)


def is_alive(pid):
    try:
        return "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.parametrize(
    ("function", "args", "how"),
    [
        (os.abort, (), "SIGABRT"),
        (ctypes.string_at, (0,), "SIGSEGV"),
        (os._exit, (0,), "exit code 0"),
    ],
)
def test_crash_costs_its_job_alone(make, function, args, how):
    pool = make()
    other = pool.submit("other", time.sleep, 0.2)
    with pytest.raises(InvalidRequest, match=CRASH) as caught:
        outcome(pool.submit("one", function, *args))
    assert str(caught.value.__cause__) == how
    assert outcome(other) is None
    assert outcome(pool.submit("one", math.factorial, 5)) == 120


def test_processes_for_files_of_strangers_do_not_get_the_tokens(make, monkeypatch):
    monkeypatch.setenv("SERVING_TOKEN", "a-secret")
    monkeypatch.setenv("SERVING_WORD", "none")
    pool = make()
    assert outcome(pool.submit("one", os.getenv, "SERVING_WORD")) == "none"
    assert outcome(pool.submit("one", os.getenv, "SERVING_TOKEN")) is None


def test_errors_of_jobs_are_raised_here(make):
    pool = make()
    with pytest.raises(ValueError, match="invalid literal"):
        outcome(pool.submit("one", int, "x"))
    with pytest.raises(AttributeError):
        outcome(pool.submit("one", lambda: None))
    assert outcome(pool.submit("one", abs, -1)) == 1


def test_memory_is_bounded_and_given_back(make):
    pool = make(1)
    small = BoundedPool(pool, JobLimits(memory_bytes=64 << 20))
    with pytest.raises(TooLarge):
        outcome(small.submit("one", bytes, 80 << 20))
    before = outcome(small.submit("one", os.getpid))
    assert outcome(small.submit("one", keep, 40 << 20)) == before
    assert outcome(small.submit("one", os.getpid)) != before


def test_limit_of_memory_is_the_jobs_own(make):
    """Whatever limit the last one had, and whatever that has left behind."""
    pool = make(1, [__name__])  # what it imports would count as left behind
    small, large = JobLimits(memory_bytes=64 << 20), JobLimits(memory_bytes=256 << 20)
    before = outcome(pool.submit("one", keep, 20 << 20, limits=small))
    assert outcome(pool.submit("one", fill, 56 << 20, limits=small)) == before
    for limits in (large, processes.NO_LIMITS):
        assert outcome(pool.submit("one", fill, 128 << 20, limits=limits)) == before
        with pytest.raises(TooLarge):
            outcome(pool.submit("one", fill, 128 << 20, limits=small))


def test_job_that_has_no_room_is_too_large_at_once(make):
    """Its reader can't take what is left of it, and its writer does not wait for that."""
    pool = make(1)
    small = JobLimits(memory_bytes=64 << 20, seconds=WAIT_S)
    for size in (200 << 20, 65 << 20):
        with pytest.raises(TooLarge, match="it needs too much memory"):
            outcome(pool.submit("one", len, bytes(size), limits=small))
        assert outcome(pool.submit("one", len, bytes(1 << 20), limits=small)) == 1 << 20


def fill(number):
    bytes(number)
    return os.getpid()


KEPT: list[bytearray] = []


def keep(number):
    KEPT.append(bytearray(b"x") * number)
    return os.getpid()


def test_job_that_takes_too_long_is_ended(make):
    pool = make(1)
    before = outcome(pool.submit("one", os.getpid))
    with pytest.raises(DeadlineExceeded, match=r"it takes more than 0\.2 s"):
        outcome(pool.submit("one", time.sleep, 600, limits=JobLimits(seconds=0.2)))
    wait_until(lambda: not is_alive(before))
    assert outcome(pool.submit("one", os.getpid)) != before


def test_process_of_a_caller_that_left_finishes_its_job_and_stays(make, tmp_path):
    pool = make(1)
    before = outcome(pool.submit("", os.getpid))
    gate = tmp_path / "gate"
    running, waiting = pool.submit("", wait_for, gate), pool.submit("", os.abort)
    assert waiting.cancel()
    wait_until(lambda: has(pool, "_busy"))
    assert running.cancel()
    after = pool.submit("", os.getpid)
    gate.touch()
    assert outcome(after) == before


def wait_for(file):
    while not file.exists():
        time.sleep(0.01)


def test_job_that_nobody_waits_for_has_its_limit_of_time(make):
    pool = make(1)
    before = outcome(pool.submit("", os.getpid))
    running = pool.submit("", time.sleep, 600, limits=JobLimits(seconds=0.3))
    wait_until(lambda: has(pool, "_busy"))
    assert running.cancel()
    assert outcome(pool.submit("", os.getpid)) != before
    assert not is_alive(before)


def test_callers_who_wait_for_less_than_a_start_are_answered_in_the_end(make, monkeypatch):
    """Each gives up before a process has started; the start goes on, and only one is needed."""
    pool, gate, num_starts = make(1), threading.Event(), 0
    start = ProcessPool._start

    def slow_start(self):
        nonlocal num_starts
        num_starts += 1
        assert gate.wait(WAIT_S)
        return start(self)

    monkeypatch.setattr(ProcessPool, "_start", slow_start)
    for _ in range(5):
        job = pool.submit("", abs, -1)
        wait_until(lambda: num_starts == 1)
        assert job.cancel()
    gate.set()
    assert outcome(pool.submit("", abs, -1)) == 1
    assert num_starts == 1


def test_callers_take_turns(make, tmp_path):
    pool = make(1)
    order = tmp_path / "order"
    first = pool.submit("many", time.sleep, 0.3)
    jobs = [pool.submit("many", note, order, "m") for _ in range(5)]
    jobs += [pool.submit("few", note, order, "f") for _ in range(2)]
    for job in (first, *jobs):
        outcome(job)
    assert order.read_text() in ("mfmfmmm", "fmfmmmm")


def note(file, text):
    with file.open("a") as stream:
        stream.write(text)


def test_one_caller_leaves_a_process_to_the_others(make):
    pool = make(2)
    slow = [pool.submit("many", time.sleep, 600) for _ in range(5)]
    assert outcome(pool.submit("few", abs, -1)) == 1
    assert not any(job.done() for job in slow)


def test_too_many_waiting_are_refused(make):
    pool = make(2)
    submit = partial(pool.submit, "many", time.sleep, 600)
    submit()
    wait_until(lambda: not has(pool, "_waiting"))
    for _ in range(processes.MAX_WAITING_OF_ONE):
        submit()
    with pytest.raises(Overloaded):
        submit()
    assert outcome(pool.submit("few", abs, -1)) == 1


def test_job_that_is_given_up_while_it_waits_keeps_nothing(make):
    pool = make(2)
    running = pool.submit("many", time.sleep, 600)
    wait_until(lambda: not has(pool, "_waiting"))
    kept = Kept()
    memory = weakref.ref(kept)
    for _ in range(2 * processes.MAX_WAITING_OF_ONE):  # they would be too many
        pool.submit("many", print, kept).cancel()
    del kept
    assert memory() is None
    assert not running.done()


class Kept:
    """Objects that are seen to be freed."""


def test_process_that_is_stopped_is_replaced(make):
    pool = make(1)
    before = outcome(pool.submit("", os.getpid))
    os.kill(before, signal.SIGSTOP)
    with pytest.raises(DeadlineExceeded):
        outcome(pool.submit("", abs, -1, limits=JobLimits(seconds=0.5)))
    wait_until(lambda: not is_alive(before))
    assert outcome(pool.submit("", abs, -1)) == 1


def test_child_that_is_killed_long_before_its_next_job_is_replaced(make):
    pool = make(1)
    process = outcome(pool.submit("", os.getppid))
    for _ in range(3):
        before = children(process)
        os.kill(before[0], signal.SIGKILL)
        wait_until(lambda before=before: children(process) not in ([], before))
    assert outcome(pool.submit("", os.getppid)) == process


def test_child_that_is_killed_while_it_has_no_job_costs_none(make):
    """And no later job gets the outcome of another."""
    pool = make(1)
    for number in range(20):
        os.kill(outcome(pool.submit("", os.getpid)), signal.SIGKILL)
        jobs = [pool.submit("", abs, -each) for each in (number, number + 1)]
        assert [outcome(job) for job in jobs] == [number, number + 1]


class KillsItsReader:
    """Ends the process that unpickles it."""

    def __reduce__(self):
        return os._exit, (1,)


def test_child_that_is_killed_while_it_reads_a_job_leaves_nothing_of_it(make):
    pool = make(1)
    with pytest.raises(InvalidRequest, match=CRASH):
        outcome(pool.submit("one", len, [KillsItsReader(), bytes(1 << 20)]))
    assert [outcome(pool.submit("one", abs, -number)) for number in range(3)] == [0, 1, 2]


def test_closing_ends_a_stopped_process(make):
    pool = make(1)
    process = outcome(pool.submit("", os.getpid))
    os.kill(process, signal.SIGSTOP)
    pool.close()
    wait_until(lambda: not is_alive(process))


def test_job_whose_process_is_killed_is_begun_again(make, tmp_path):
    pool = make(1)
    assert outcome(pool.submit("", abort_at_first, tmp_path / "begun")) == "again"


def abort_at_first(file):
    if not file.exists():
        file.touch()
        os.abort()
    return "again"


def test_no_more_processes_is_no_fault_of_the_jobs(make, monkeypatch):
    pool = make(2)
    running = pool.submit("one", time.sleep, 1)
    wait_until(lambda: has(pool, "_busy"))
    monkeypatch.setattr("subprocess.Popen", fail)
    with pytest.raises(Overloaded, match="no process"):
        outcome(pool.submit("two", abs, -1))
    assert outcome(running) is None


@pytest.mark.parametrize("place", ["subprocess.Popen", "pickle.dump"])
def test_any_error_around_a_process_ends_its_job_alone(make, monkeypatch, place):
    def fail(*_, **__):
        raise MemoryError(place)

    pool = make(1)
    with monkeypatch.context() as patch:
        patch.setattr(place, fail)
        with pytest.raises(MemoryError, match=place):
            outcome(pool.submit("", math.factorial, 5))
    assert outcome(pool.submit("", math.factorial, 5)) == 120


def fail(*_, **__):
    raise BlockingIOError


def test_no_more_threads_is_said_and_the_next_job_is_done(make, monkeypatch):
    pool = make(1)
    with monkeypatch.context() as patch:
        patch.setattr("threading.Thread.start", start_nothing)
        with pytest.raises(Overloaded, match="no process"):
            pool.submit("", abs, -1)
    assert outcome(pool.submit("", abs, -1)) == 1


def start_nothing(_):
    raise RuntimeError("can't start new thread")


def test_results_come_in_order_and_a_crash_is_a_text(make):
    numbers = iter(range(100))
    results = mapped(make(2), crash_at_three, numbers, 4)
    assert [next(results) for _ in range(5)] == [0, 1, 2, CRASH, 4]
    assert next(numbers) < 12
    results.close()


def crash_at_three(number):
    return os.abort() if number == 3 else number


def test_all_end_when_idle_and_start_again(make):
    pool = make(1, idle_s=0.1)
    process = outcome(pool.submit("", os.getpid))
    wait_until(lambda: not is_alive(process))
    assert outcome(pool.submit("", abs, -1)) == 1


def test_closing_ends_what_runs(make):
    pool = make(1)
    jobs = [pool.submit("", time.sleep, 600) for _ in range(2)]
    pool.close()
    for job in jobs:
        with pytest.raises(CancelledError):
            outcome(job)
    with pytest.raises(Overloaded):
        pool.submit("", abs, -1)


def test_processes_have_no_files_of_this_one(make, tmp_path):
    with (tmp_path / "ours").open("w") as ours:
        os.set_inheritable(ours.fileno(), True)
        files = outcome(make(1).submit("", files_open))
    assert not [name for name in files.values() if "ours" in name]
    assert {files.get(number) for number in (0, 1, 2)} == {"/dev/null"}


def files_open():
    found = {}
    for entry in Path("/proc/self/fd").iterdir():
        if entry.is_symlink():
            found[int(entry.name)] = os.readlink(entry)
    return found


PARENT = """
import os, sys, time
from serving.processes.pool import ProcessPool
pool = ProcessPool(2)
print(pool.submit("", os.getpid).result(), flush=True)
pool.submit("", time.sleep, 600)
pool.submit("", time.sleep, 600).result()
"""


def test_all_end_with_a_parent_that_is_killed():
    command = [sys.executable, "-c", PARENT]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as parent:
        pids = [int(pid) for pid in parent.stdout.readline().split()]
        time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
        assert parent.stdout.read() == ""  # nobody holds it
    for pid in pids:
        wait_until(partial(lambda pid: not is_alive(pid), pid))
