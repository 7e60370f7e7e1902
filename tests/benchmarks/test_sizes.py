"""Which cells of `bench model` are measured, and for how long."""

import threading
from dataclasses import replace

import numpy as np
import pytest

from benchmarks import in_process, sizes
from benchmarks.cli import parser, suite_of
from benchmarks.loops import Trace
from benchmarks.runner import MODEL

SUITE = replace(MODEL, callers=((1, 0), (64, 0)), loop_batches=(1, 8))


class Load:
    """Takes a second for each row, and a GiB for each row of the largest run."""

    pid = 1

    def __init__(self, row_s):
        self.row_s, self.most_rows = row_s, 0

    def __call__(self, *_):
        return self

    def __enter__(self):
        return self

    def __exit__(self, *_):
        """Do nothing."""

    def closed(self, demand):
        self.most_rows = max(self.most_rows, demand.batch)
        return Trace(
            generator="threads", latencies_s=np.array([demand.batch * self.row_s]),
            duration_s=1.0, num_errors=0, busy=1.0,
        )  # fmt: skip


@pytest.mark.parametrize(
    ("row_s", "most_gib", "too_much"),
    [
        (0.001, 10_000, set()),
        (0.001, 100, {(64, 8)}),  # 63 further runs of 7 GiB
        (0.1, 10_000, {(64, 8)}),  # 51 s for an answer to each
        (1.0, 1, {(64, 1), (64, 8)}),
        (99.0, 1, {(1, 8), (64, 1), (64, 8)}),  # one is left
    ],
)
def test_cells_fit_the_memory_and_the_models_time(row_s, most_gib, too_much, monkeypatch):
    load = Load(row_s)
    monkeypatch.setattr(sizes, "InProcessLoad", load)
    monkeypatch.setattr(sizes, "memory_bytes", lambda pid: load.most_rows << 30)
    found = sizes.fitting(SUITE, None, None, [0], most_gib << 30)
    assert found["too_much"] == too_much
    suite = replace(SUITE, **found)
    assert {(cell.callers, cell.batch) for cell in suite.cells()}.isdisjoint(too_much)
    for cell in suite.cells():
        assert suite.seconds_of(cell) >= 3 * cell.callers * cell.batch * row_s


def test_batches_are_those_of_all_scenarios():
    words = ["run", "--batches", "2,3", "--scenarios", "SingleStream,ClosedLoop,Offline"]
    cells = suite_of(parser().parse_args(words)).cells()
    found = {(cell.scenario, cell.batch) for cell in cells}
    assert found == {
        (name, n) for name in ("SingleStream", "ClosedLoop", "Offline") for n in (2, 3)
    }


def test_waiting_of_bare_threads_counts_from_the_common_start(monkeypatch):
    """One that gets a core late has waited since all began."""
    clock = iter(range(1000))
    lock = threading.Lock()

    def now():
        with lock:
            return float(next(clock))

    class Session:
        def run(self, outputs, feeds):
            """Answer at once."""

    monkeypatch.setattr(in_process, "perf_counter", now)
    monkeypatch.setattr(in_process, "_session", Session())
    trace = in_process._run({}, 4, 0.5)
    # The start is the clock's second look; the four first answers are the next ones.
    assert sorted(trace.latencies_s.tolist())[:4] == [1.0, 2.0, 3.0, 4.0]
