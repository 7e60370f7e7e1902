"""Rows that are divided among cores, on threads that the test holds where it likes."""

import os
import threading
from _thread import get_ident, start_new_thread

import numpy as np
import pytest

from serving.batching import parallel
from serving.batching.parallel import run_parallel, run_whole
from serving.errors import ModelError, Unavailable
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import wait_until


class Doubling:
    """Answers each row twice as large, and its number; notes the parts that it ran."""

    def __init__(self, num_at_once=1):
        self.parts: list[tuple[int, int]] = []
        self.threads: set[int] = set()
        self.most_busy = 0
        self._meet = threading.Barrier(num_at_once, timeout=TIMEOUT_S)

    def __call__(self, feeds):
        self._meet.wait()
        self.most_busy = max(self.most_busy, len(parallel._busy))
        self._meet.wait()
        first, rows = int(feeds["a"][0]), len(feeds["a"])
        self.parts.append((first, rows))
        self.threads.add(get_ident())
        assert (feeds["b"][:, 1] == feeds["a"]).all()
        return [feeds["a"] * 2, feeds["b"]]


def divided(run, num_rows, most=100, enough=10, threads=1, *, is_cancelled=lambda: False):
    rows = np.arange(num_rows)
    feeds = {"a": rows, "b": np.stack([rows, rows], 1)}
    doubled, same = run_parallel(run, feeds, most, enough, threads, is_cancelled)
    assert doubled.tolist() == [2 * each for each in range(num_rows)]
    assert same[:, 0].tolist() == [*range(num_rows)]


@pytest.mark.parametrize(
    ("num_rows", "most", "enough", "threads", "parts"),
    [
        (1, 100, 10, 4, [1]), (10, 100, 10, 4, [10]),
        (11, 100, 10, 4, [6, 5]), (20, 100, 10, 4, [10, 10]), (21, 100, 10, 4, [7, 7, 7]),
        (40, 100, 10, 4, [10] * 4), (41, 100, 10, 4, [11, 11, 11, 8]), (41, 100, 10, 2, [21, 20]),
        (100, 100, 10, 1, [100]), (101, 100, 10, 1, [100, 1]), (5, 2, 10, 4, [2, 2, 1]),
        (80, 10, 40, 2, [10] * 8),
    ],
)  # fmt: skip
def test_parts_are_as_large_as_cores_and_limits_allow(
    num_rows, most, enough, threads, parts, monkeypatch
):
    run, started = Doubling(), []

    def start(*work):
        started.append(work)
        start_new_thread(*work)

    monkeypatch.setattr(parallel, "start_new_thread", start)
    divided(run, num_rows, most, enough, threads)
    assert [rows for _, rows in sorted(run.parts)] == parts
    assert len(started) == min(threads, -(-num_rows // enough), len(parts)) - 1
    assert not parallel._busy


def test_rows_of_one_run_are_not_copied():
    feeds, outputs = {"a": np.arange(3)}, [np.arange(3)]

    def run(found):
        assert found is feeds
        return outputs

    assert run_parallel(run, feeds, 3, 3, 4, lambda: True) is outputs


def test_each_core_has_a_part_at_once():
    run = Doubling(num_at_once=3)
    divided(run, 30, threads=3)
    assert len(run.threads) == 3
    assert run.most_busy == 3, "other calls find none of these free"
    assert get_ident() in run.threads


@pytest.mark.parametrize(("threads", "num_parts"), [(1, 1), (2, 1), (3, 2), (5, 4)])
def test_cores_that_other_calls_use_are_not_free(threads, num_parts, monkeypatch):
    monkeypatch.setattr(parallel, "_busy", {-1})
    run = Doubling()
    divided(run, 40, threads=threads)
    assert len(run.parts) == num_parts
    assert parallel._busy == {-1}


def test_cancelled_call_begins_no_further_run():
    run = Doubling()
    with pytest.raises(Unavailable, match="the call was cancelled"):
        divided(run, 50, most=10, is_cancelled=lambda: len(run.parts) == 2)
    assert len(run.parts) == 2
    assert not parallel._busy


def test_failure_ends_the_call_and_not_its_thread():
    def fail(feeds):
        raise ModelError("it failed")

    for num_rows in (5, 500):
        with pytest.raises(ModelError, match="it failed"):
            divided(fail, num_rows, threads=4)
        assert not parallel._busy
    divided(Doubling(), 50, threads=4)


def test_part_on_which_a_helper_failed_is_run_by_the_caller():
    """A helper's failure may be the lack of memory for its thread."""
    caller, failed = get_ident(), threading.Event()
    doubling = Doubling()

    def run(feeds):
        if get_ident() != caller:
            failed.set()
            raise MemoryError
        assert failed.wait(TIMEOUT_S)
        return doubling(feeds)

    divided(run, 40, threads=2)
    assert doubling.threads == {caller}
    assert not parallel._busy


def test_caller_runs_all_parts_where_there_are_no_threads(monkeypatch):
    def refuse(*_):
        raise RuntimeError("can't start new thread")

    monkeypatch.setattr(parallel, "start_new_thread", refuse)
    run = Doubling()
    divided(run, 40, threads=4)
    assert run.threads == {get_ident()}
    assert len(run.parts) == 4


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of forks of several threads
def test_threads_that_were_busy_before_a_fork_take_no_core_in_the_child():
    threads = [1 << 60, 1 << 61]
    parallel._busy.update(threads)
    try:
        child = os.fork()
        if child == 0:
            os._exit(len(parallel._busy))
    finally:
        parallel._busy.difference_update(threads)
    assert os.waitpid(child, 0)[1] == 0


def test_run_that_fails_leaves_no_slice_to_helpers_and_no_thread_busy():
    """Helpers would run rows that nobody waits for, beside the next call's."""
    begun, helps, has_failed = [], threading.Event(), threading.Event()

    def failing(feeds):
        begun.append(int(feeds["a"][0]))
        if get_ident() == caller:
            assert helps.wait(TIMEOUT_S)
            raise ModelError("it failed")
        helps.set()
        assert has_failed.wait(TIMEOUT_S)
        return [feeds["a"], feeds["b"]]

    caller = get_ident()
    with pytest.raises(ModelError, match="it failed"):
        divided(failing, 100, most=10, enough=50, threads=2)
    has_failed.set()
    wait_until(lambda: not parallel._busy)
    assert len(begun) == 2


def test_call_that_can_not_be_divided_and_fails_leaves_all_cores_to_the_next():
    def failing(feeds):
        raise ModelError("it failed")

    def fail():
        with pytest.raises(ModelError, match="it failed"):
            run_whole(failing, {}, None)

    other = threading.Thread(target=fail)
    other.start()
    other.join()
    assert run_whole(failing, {}, lambda feeds: []) == []


def test_call_beside_which_no_other_one_runs_has_all_cores(monkeypatch):
    """If its rows fit one run; it counts among the calls that run."""
    feeds = {"a": np.arange(5)}

    def alone(given):
        assert given is feeds
        assert parallel._busy == {get_ident()}
        return [given["a"] + 100]

    def ran(most, run=lambda given: [given["a"]]):
        return run_parallel(run, feeds, most, 5, 2, lambda: False, alone)[0].tolist()

    assert ran(5) == [100, 101, 102, 103, 104]
    assert ran(4) == [*range(5)]
    assert not parallel._busy
    monkeypatch.setattr(parallel, "_busy", {-1})
    assert ran(5) == [*range(5)]
    assert run_whole(lambda given: [given["a"]], feeds, alone)[0].tolist() == [*range(5)]
    assert parallel._busy == {-1}
