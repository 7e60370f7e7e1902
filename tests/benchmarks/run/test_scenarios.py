"""Scenarios on targets in this process, and on generators that are late."""

import asyncio
import math
import os
import threading
from collections.abc import Iterator
from contextlib import closing

import numpy as np
import pytest

from benchmarks.load.callers import Call, TaskLoad, ThreadLoad
from benchmarks.load.trace import Load, Seconds, Trace, arrivals
from benchmarks.report.figures import server_rate
from benchmarks.run import scenarios
from benchmarks.run.cell import Cell
from benchmarks.run.result_file import Sample
from benchmarks.run.scenarios import Rules
from benchmarks.targets.target import Running, Spec

NULL = Spec(target="null")
IMAGES = np.zeros((4096, 784), np.uint8)
RULES = Rules(seconds=0.1)


@pytest.fixture(autouse=True)
def _no_leftover_threads() -> Iterator[None]:
    before = set(threading.enumerate())  # one of an earlier test may end meanwhile
    yield
    assert not set(threading.enumerate()) - before


def here(call: Call) -> Running:
    """A target in this very process."""
    load = ThreadLoad(call, IMAGES)
    return Running(load=load, startup_s=0.0, parallel_calls=1, pid=os.getpid())


@pytest.mark.parametrize("scenario", ["SingleStream", "MultiStream", "ClosedLoop", "Offline"])
def test_closed_scenarios_run_on_the_null_target(scenario: str) -> None:
    sizes: list[int] = []
    cell = Cell(spec=NULL, scenario=scenario, callers=2, batch=8)
    samples = list(scenarios.run(cell, here(lambda images: sizes.append(len(images))), RULES, 0))
    assert {sample.scenario for sample in samples} == {scenario}
    assert set(sizes) == {8}
    assert sum(sample.num_calls for sample in samples) <= len(sizes)
    assert all(sample.num_calls == sample.latency.total > 0 for sample in samples)


@pytest.mark.parametrize("scenario", ["Server", "Overload"])
def test_open_scenarios_need_a_server(scenario: str) -> None:
    cell = Cell(spec=NULL, scenario=scenario)
    with pytest.raises(OSError, match="need a server"):
        list(scenarios.run(cell, here(lambda images: None), RULES, 0))


def test_failed_calls_make_a_closed_loop_invalid() -> None:
    calls = iter(range(10**9))

    def fails_later(images: object) -> None:
        if next(calls) > 3:
            raise RuntimeError("no")

    cell = Cell(spec=NULL, scenario="SingleStream")
    (sample,) = scenarios.run(cell, here(fails_later), RULES, 0)
    assert sample.num_errors == sample.num_calls - 3
    assert sample.invalid == f"{sample.num_errors} calls failed"


def test_tasks_are_in_flight_together_and_their_failures_count() -> None:
    calls, in_flight = iter(range(10**9)), [0]

    async def call(images: object) -> None:
        in_flight.append(in_flight[-1] + 1)
        await asyncio.sleep(0.001)
        in_flight.append(in_flight[-1] - 1)
        if next(calls) > 8:
            raise RuntimeError("no")

    with closing(TaskLoad(call, IMAGES)) as load:
        found = load.closed(5, 2, 0.05)
    assert max(in_flight) == 5
    assert found.num_errors == len(found.latencies_s) - 8  # the first call is not timed
    assert found.latencies_s.min() >= 0.001


def trace(**fields: object) -> Trace:
    usual = {
        "generator": "python", "latencies_s": np.full(100, 0.001), "duration_s": 1.0,
        "num_errors": 0, "lag_s": np.empty(0), "busy": 0.5,
    }  # fmt: skip
    return Trace(**usual | fields)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("fields", "target_busy", "reason"),
    [
        ({"busy": 1.0}, 0.5, "the generator was the limit"),
        ({"busy": 1.0}, 1.0, ""),
        ({"busy": 1.0, "generator": "threads"}, 0.5, ""),
        ({"busy": 1.0, "generator": "tasks"}, 0.5, ""),
        ({"lag_s": np.full(100, 0.005)}, 0.5, ""),
        ({"lag_s": np.full(100, 0.005), "latencies_s": np.full(100, 0.02)}, 0.5, "sent late"),
        ({"lag_s": np.full(100, 1e-5), "latencies_s": np.full(100, 0.02)}, 0.5, ""),
        ({"latencies_s": np.empty(0)}, 0.5, "no call was answered"),
    ],
)
def test_saturated_generator_makes_a_run_invalid(
    fields: dict[str, object], target_busy: float, reason: str
) -> None:
    found = scenarios.why_invalid(trace(**fields), target_busy, RULES)
    assert reason in found
    assert bool(found) == bool(reason)


class Exact(Load):
    """A load whose target keeps to the objective up to an exact rate."""

    def __init__(self, limit_per_s: float, is_late: bool = False) -> None:
        self._limit, self._is_late = limit_per_s, is_late

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        return trace(latencies_s=np.full(round(self._limit), 0.001))

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
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


def test_overload_offers_multiples_of_what_a_closed_loop_reached() -> None:
    samples = search(Exact(1000), "Overload")
    assert [sample.overload for sample in samples] == [1.0, 1.5, 2.0, 3.0]
    assert [sample.offered_per_s for sample in samples] == [1000, 1500, 2000, 3000]
    assert [sample.outcomes["late"] for sample in samples] == [0, 500, 1000, 2000]
    assert [sample.holds(0.01) for sample in samples] == [True, False, False, False]


@pytest.mark.parametrize(("busy", "reason"), [(1.0, "the generator sent less"), (0.5, "")])
def test_overload_that_was_not_offered_is_invalid(busy: float, reason: str) -> None:
    short = trace(busy=busy, outcomes={"due": 100, "sent": 90})
    assert scenarios.why_invalid(short, 0.5, RULES) == reason


def search(load: Exact, scenario: str = "Server") -> list[Sample]:
    target = Running(load=load, startup_s=0.0, parallel_calls=1)
    rules = Rules(seconds=1.0, arrivals="constant")
    return list(scenarios.run(Cell(spec=NULL, scenario=scenario), target, rules, 0))


def test_search_finds_the_highest_rate() -> None:
    assert server_rate(search(Exact(1000)), 0.01) == pytest.approx(1000, rel=0.04)


def test_search_ended_by_a_late_generator_has_no_result() -> None:
    assert server_rate(search(Exact(1000, is_late=True)), 0.01) is None


def test_poisson_arrivals_have_exponential_gaps() -> None:
    gaps = np.diff(arrivals("poisson", rate=1000, seconds=20, seed=3))
    assert gaps.mean() == pytest.approx(1e-3, rel=0.05)
    assert gaps.std() == pytest.approx(1e-3, rel=0.05)
    even = np.diff(arrivals("constant", rate=1000, seconds=1, seed=0))
    np.testing.assert_allclose(even, 1e-3)
