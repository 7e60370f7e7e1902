"""Scenarios, their histograms and result files."""

import json
import math
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks import runner
from benchmarks.figures import server_rate
from benchmarks.loops import arrivals
from benchmarks.result_file import Cell, Latencies, Results, UnusableResults, load
from benchmarks.runner import Rules, Suite
from benchmarks.targets import Running, Spec
from tests.benchmarks.made_up import H2, PLAIN, results, sample, trace

NULL = Spec(target="null")
RULES = Rules(seconds=0.1)


@pytest.mark.parametrize("scenario", ["SingleStream", "ClosedLoop", "Offline"])
def test_closed_scenarios_are_one_run_of_so_many_callers_and_rows(scenario):
    load = Exact(1000)
    cell = Cell(spec=NULL, scenario=scenario, callers=2, batch=8, connections=1)
    (sample,) = runner.measure(cell, running(load), RULES, 3)
    assert load.asked == [(2, 8, 0.1, 1)]
    assert (sample.scenario, sample.round, sample.callers, sample.batch) == (scenario, 3, 2, 8)
    assert sample.num_calls == sample.latency.total == 1000


def running(load):
    return Running(load=load, startup_s=0.0)


class Exact:
    """A load whose target keeps to the objective up to an exact rate."""

    def __init__(self, limit_per_s, is_late=False):
        self._limit, self._is_late = limit_per_s, is_late
        self.asked: list[tuple[int, int, float, int]] = []

    def closed(self, demand):
        self.asked.append(demand[:4])
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
    assert [sample.overload for sample in samples] == [1.0, 1.5, 2.0, 3.0, 5.0]
    assert [sample.offered_per_s for sample in samples] == [1000, 1500, 2000, 3000, 5000]
    assert [sample.outcomes["late"] for sample in samples] == [0, 500, 1000, 2000, 4000]
    assert [sample.holds(0.01) for sample in samples] == [True, False, False, False, False]


def search(load, scenario="Server"):
    rules = Rules(seconds=1.0, arrivals="constant")
    return list(runner.measure(Cell(spec=NULL, scenario=scenario), running(load), rules, 0))


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


# The histogram against numpy


BUCKET = 0.008
"""How far apart values of one bucket lie at most, as a share."""
MICROSECOND = 1e-6


def latencies(seed, number=5_000):
    return np.random.default_rng(seed).lognormal(-7, 1.5, number)


@pytest.mark.parametrize("share", [0.0001, 0.5, 0.9, 0.99, 0.999, 1.0])
def test_quantile_is_numpys_within_a_bucket(share):
    values = latencies(1)
    expected = np.quantile(values, share, method="inverted_cdf")
    found = Latencies.of(values).quantile(share)
    assert found == pytest.approx(expected, rel=BUCKET, abs=MICROSECOND)


@given(st.lists(st.floats(0, 4000), min_size=1, max_size=50))
def test_histogram_keeps_every_value_within_a_bucket(values):
    histogram = Latencies.decode(Latencies.of(values).encode())
    kept = np.repeat(histogram.values_s, histogram.count)
    np.testing.assert_allclose(kept, np.sort(values), rtol=BUCKET, atol=MICROSECOND)


def test_joined_histogram_is_that_of_all_values():
    a, b = latencies(2), latencies(3)
    both = Latencies.joined([Latencies.of(a), Latencies.of(b)])
    expected = Latencies.of(np.concatenate((a, b)))
    np.testing.assert_array_equal(both.index, expected.index)
    np.testing.assert_array_equal(both.count, expected.count)


def test_no_latency_has_no_quantile():
    assert math.isnan(Latencies.of([]).quantile(0.5))


# Results: kept whole, without a trace of whose machine it was


def test_results_survive_a_file(tmp_path):
    kept = results(sample(PLAIN, "Server"), sample(H2, "Offline", batch=8, latency_s=0.0123))
    kept.save(tmp_path / "r.json")
    again = load(tmp_path / "r.json")
    again.save(tmp_path / "again.json")
    assert (tmp_path / "r.json").read_text() == (tmp_path / "again.json").read_text()
    assert again.samples[1].latency.quantile(0.99) == pytest.approx(0.0123, rel=0.008)
    assert again.samples[1].images_per_s == 8000


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "No such file"),
        ("{", "no results file"),
        ("[]", "no results file"),
        ("{}", "no results file"),
        ('{"format": 2}', "format 1 expected, got 2"),
    ],
)
def test_unusable_file_is_refused(tmp_path, text, reason):
    path = tmp_path / "r.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(UnusableResults, match=reason):
        load(path)


def test_environment_names_neither_machine_nor_folder(models):
    found = runner.describe(models, {"target": 1, "generator": 1})
    text = json.dumps(found)
    assert found["model"]["digest"]
    for secret in (socket.gethostname(), os.getcwd(), str(models), str(Path.home())):
        assert not re.search(rf"(^|\W){re.escape(secret)}(\W|$)", text)


class Warming:
    """A load whose rates are given, window by window."""

    def __init__(self, *rates):
        self._rates = [*rates]
        self.seconds: list[float] = []

    def closed(self, demand):
        self.seconds.append(demand.seconds)
        return trace(latencies_s=np.full(self._rates.pop(0), 0.001))


@pytest.mark.parametrize(
    ("rates", "num_windows"),
    [((100, 200, 290, 300, 5000), 4), ((100, 102), 2), ((100, 200) * 5, 10), ((0, 0, 300), 3)],
)
def test_runs_apart_begin_once_the_rate_is_steady_and_have_enough_calls(rates, num_windows):
    load = Warming(*rates, 7)
    suite = Suite(
        name="x", specs=[NULL], scenarios=["ClosedLoop"], callers=[(4, 2)], seconds=3.0,
        is_apart=True, warm_up_s=10.0 if rates[0] else 7.0, least_calls=3000,
    )  # fmt: skip
    found = Results(suite="x", date="", environment={}, settings={})
    runner._measure_alone(suite, NULL, running(load), 0, found)
    steady = rates[num_windows - 1]
    assert len(load.seconds) == num_windows + 1
    assert load.seconds[-1] == pytest.approx(min(60.0, max(3.0, 3000 / steady)))
