"""Scenarios on targets in this process, and on generators that are late."""

import math

import numpy as np
import pytest

from benchmarks.load.trace import Trace, arrivals
from benchmarks.report.tables import server_rate
from benchmarks.run import scenarios
from benchmarks.run.result_file import Cell
from benchmarks.run.scenarios import Rules
from benchmarks.targets.target import Running, Spec

NULL = Spec(target="null")
RULES = Rules(seconds=0.1)


@pytest.mark.parametrize("scenario", ["SingleStream", "ClosedLoop", "Offline"])
def test_closed_scenarios_are_one_run_of_so_many_callers_and_rows(scenario):
    load = Exact(1000)
    cell = Cell(spec=NULL, scenario=scenario, callers=2, batch=8, connections=1)
    (sample,) = scenarios.run(cell, running(load), RULES, 3)
    assert load.asked == [(2, 8, 0.1, 1)]
    assert (sample.scenario, sample.round, sample.callers, sample.batch) == (scenario, 3, 2, 8)
    assert sample.num_calls == sample.latency.total == 1000


def running(load):
    return Running(load=load, startup_s=0.0, parallel_calls=1)


def test_failed_calls_make_a_closed_loop_invalid():
    assert scenarios.why_invalid(trace(num_errors=3), 0.5, RULES) == "3 calls failed"


def trace(**fields):
    usual = {
        "generator": "python", "latencies_s": np.full(100, 0.001), "duration_s": 1.0,
        "num_errors": 0, "lag_s": np.empty(0), "busy": 0.5,
    }  # fmt: skip
    return Trace(**usual | fields)


@pytest.mark.parametrize(
    ("fields", "target_busy", "reason"),
    [
        ({"busy": 1.0}, 0.5, "the generator was the limit"),
        ({"busy": 1.0}, 1.0, ""),
        ({"lag_s": np.full(100, 0.005)}, 0.5, ""),
        ({"lag_s": np.full(100, 0.005), "latencies_s": np.full(100, 0.02)}, 0.5, "sent late"),
        ({"lag_s": np.full(100, 1e-5), "latencies_s": np.full(100, 0.02)}, 0.5, ""),
        ({"latencies_s": np.empty(0)}, 0.5, "no call was answered"),
    ],
)
def test_saturated_generator_makes_a_run_invalid(fields, target_busy, reason):
    found = scenarios.why_invalid(trace(**fields), target_busy, RULES)
    assert reason in found
    assert bool(found) == bool(reason)


class Exact:
    """A load whose target keeps to the objective up to an exact rate."""

    def __init__(self, limit_per_s, is_late=False):
        self._limit, self._is_late = limit_per_s, is_late
        self.asked: list[tuple[int, int, float, int]] = []

    def closed(self, callers, batch, seconds, connections=0):
        self.asked.append((callers, batch, seconds, connections))
        return trace(latencies_s=np.full(round(self._limit), 0.001))

    def open(self, offsets_s, batch, timeout_s=math.inf):
        rate = len(offsets_s) / offsets_s[-1]
        if timeout_s < math.inf:
            num_due, in_time = len(offsets_s), min(round(self._limit), round(rate))
            ends = {"due": num_due, "sent": num_due, "in time": in_time, "late": num_due - in_time}
            return trace(latencies_s=np.full(in_time, 0.001), outcomes=ends)
        is_slow = rate > self._limit
        return trace(
            latencies_s=np.full(len(offsets_s), 0.5 if is_slow else 0.001),
            lag_s=np.full(len(offsets_s), 0.4 if is_slow and self._is_late else 0.0),
        )


def test_overload_offers_multiples_of_what_a_closed_loop_reached():
    samples = search(Exact(1000), "Overload")
    assert [sample.overload for sample in samples] == [1.0, 1.5, 2.0, 3.0]
    assert [sample.offered_per_s for sample in samples] == [1000, 1500, 2000, 3000]
    assert [sample.outcomes["late"] for sample in samples] == [0, 500, 1000, 2000]
    assert [sample.holds(0.01) for sample in samples] == [True, False, False, False]


@pytest.mark.parametrize(("busy", "reason"), [(1.0, "the generator sent less"), (0.5, "")])
def test_overload_that_was_not_offered_is_invalid(busy, reason):
    short = trace(busy=busy, outcomes={"due": 100, "sent": 90})
    assert scenarios.why_invalid(short, 0.5, RULES) == reason


def search(load, scenario="Server"):
    rules = Rules(seconds=1.0, arrivals="constant")
    return list(scenarios.run(Cell(spec=NULL, scenario=scenario), running(load), rules, 0))


def test_search_finds_the_highest_rate():
    assert server_rate(search(Exact(1000)), 0.01) == pytest.approx(1000, rel=0.04)


def test_search_ended_by_a_late_generator_has_no_result():
    assert server_rate(search(Exact(1000, is_late=True)), 0.01) is None


def test_poisson_arrivals_have_exponential_gaps():
    gaps = np.diff(arrivals("poisson", rate=1000, seconds=20, seed=3))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
    even = np.diff(arrivals("constant", rate=1000, seconds=1, seed=0))
    np.testing.assert_allclose(even, 1e-3)
