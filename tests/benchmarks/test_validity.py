"""Runs that do not count: late generators, foreign work, servers that have ended or stopped."""

import os
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import validity
from benchmarks.validity import RunWatch, why_invalid, without_stalled
from tests.benchmarks.made_up import H2, sample, trace


def judged(found, target_busy):
    return why_invalid(found, target_busy, latency_slo_s=0.01, num_cores=1)


def test_failed_calls_make_a_closed_loop_invalid():
    assert judged(trace(num_errors=3), 0.5) == "3 calls failed"
    refused = judged(trace(num_errors=3, num_refused=3), 0.5)
    assert refused.startswith("3 of 100 calls were refused (RESOURCE_EXHAUSTED): more than run")
    assert refused.endswith("docs/overload.md")
    both = judged(trace(num_errors=5, num_refused=3), 0.5)
    assert both == f"{refused}, and 2 failed"


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
    found = judged(trace(**fields), target_busy)
    assert reason in found
    assert bool(found) == bool(reason)


@pytest.mark.parametrize(("lag_s", "p99_s", "is_late"), [
    (0.0009, 0.002, False), (0.0011, 0.002, True), (0.0011, 0.020, False), (0.0021, 0.020, True),
])  # fmt: skip
def test_late_generator_voids_a_latency_that_is_the_figure(lag_s, p99_s, is_late):
    late = trace(lag_s=np.full(100, lag_s), latencies_s=np.full(100, p99_s))
    found = why_invalid(late, 0.5, latency_slo_s=None, num_cores=1)
    assert bool(found) == is_late


@pytest.mark.parametrize(("busy", "reason"), [(1.0, "the generator sent less"), (0.5, "")])
def test_overload_that_was_not_offered_is_invalid(busy, reason):
    short = trace(busy=busy, outcomes={"due": 100, "sent": 90})
    assert judged(short, 0.5) == reason


def test_run_in_which_a_process_of_the_server_ended_is_named():
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        watch = RunWatch.begin(child.pid)
        assert not watch.why_ended()
        child.kill()
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)
        assert watch.why_ended() == "1 of its 1 processes ended"


@pytest.mark.parametrize(("target", "foreign_s"), [("child", 0.75), ("other", 0.5), ("none", 0.75)])
def test_foreign_work_is_what_neither_target_nor_generator_did(monkeypatch, target, foreign_s):
    """A target that this process has started is counted with it already."""
    times = {"machine": 10.0, "ours": 3.0, "target": 1.0}
    monkeypatch.setattr(validity, "_machine_s", lambda: times["machine"])
    monkeypatch.setattr(validity, "_ours_s", lambda: times["ours"])
    monkeypatch.setattr(validity, "cpu_s", lambda pid: times["target"])
    pid = {"child": os.getpid(), "other": 1, "none": None}[target]
    monkeypatch.setattr(validity, "family", lambda each: [each])
    watch = RunWatch.begin(pid)
    times |= {"machine": 12.0, "ours": 4.25, "target": 1.25}
    assert watch.foreign_s == foreign_s


def test_processor_times_are_those_of_the_kernel():
    """Of all cores together, and of what this process has started and waited for."""
    watch = RunWatch.begin(None)
    subprocess.run([sys.executable, "-c", "sum(range(10**7))"], check=True)
    assert validity._ours_s() - watch.ours_s > 0.05
    assert validity._machine_s() - watch.machine_s > 0.05


def rounds(scenario, rates):
    return [
        sample(H2, scenario, number=number, calls_per_s=rate) for number, rate in enumerate(rates)
    ]


def test_server_that_has_stopped_has_no_rate():
    rates = [1000, 1100, 3, 900, 120]
    found = without_stalled(
        [sample(H2, "ClosedLoop", number=n, calls_per_s=r) for n, r in enumerate(rates)]
    )
    reasons = [each.invalid for each in found]
    assert [bool(each) for each in reasons] == [False, False, True, False, False]
    assert reasons[2].endswith("calls: under a tenth of the other rounds")


def test_open_loops_and_few_rounds_are_not_compared():
    both = [*rounds("Server", [1000, 900, 3]), *rounds("ClosedLoop", [1000, 3])]
    assert not any(each.invalid for each in without_stalled(both))
