"""The scenarios, with MLPerf Inference's names and definitions.

    SingleStream  one image a call, one call at a time      its figure: 90th percentile latency
    Server        calls arrive by themselves (open loop)    highest rate with p99 <= objective
    Offline       plenty to do, `batch` images a call       images/s

and three that are not MLPerf's, for the rate at which a server is full, and beyond it:

    ClosedLoop    `callers` calls in flight, one image each images/s
    NewHeaders    the same by calls that each have a deadline and a trace of their own
    Overload      1 to 3 times the rate of a closed loop    images/s answered within 50 ms

https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields, replace
from functools import partial
from time import perf_counter

import numpy as np

from benchmarks.load import cores
from benchmarks.load.trace import Outcome, Trace, arrivals
from benchmarks.run.histogram import Latencies
from benchmarks.run.result_file import Cell, Sample
from benchmarks.targets.target import Running

NAMES = ("SingleStream", "ClosedLoop", "NewHeaders", "Server", "Offline", "Overload")
OVERLOADS = (1.0, 1.5, 2.0, 3.0)
"""Offered rates, as multiples of the closed loop's."""
TIMEOUT_S = 0.05
"""How long a caller waits in Overload, from when its call was due."""

_PROBES = 7
"""Rates that a search tries."""
_ATTEMPTS, _FAILURES, _SEARCH_CALLERS = 4, 2, 64
_FULL_CALLERS, _FULL_CONNECTIONS = 256, 8
"""The closed loop whose rate Overload multiplies: it keeps any target busy."""
_HIGHEST_RATE = 100_000.0
"""Calls a second beyond which no search goes: no generator here can send more."""
_FULL = 0.95
"""Share of a core from which on a process counts as having no time left."""
_LATE = 0.1
"""How late, at p99, calls may leave the generator, as a share of the objective."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How long, and under which objective."""

    seconds: float = 0.5
    """Length of one timed run."""
    latency_slo_s: float = 0.010
    """Limit of the Server scenario's p99."""
    arrivals: str = "poisson"
    """How the Server scenario's calls come: "poisson" or "constant"."""
    num_cores: int = 1
    """How many cores the target has."""


def run(cell: Cell, target: Running, rules: Rules, number: int) -> Iterator[Sample]:
    """Measure a cell once.

    Args:
        cell: target, scenario and sizes.
        target: opened, as `cell.spec` says.
        rules: how.
        number: of the round, from 0.

    Yields:
        One sample; in the Server scenario and in overload one for each rate that was tried.
    """
    load, seconds = target.load, rules.seconds
    if cell.scenario == "Server":
        yield from _search(replace(cell, callers=0), target, rules, number)
    elif cell.scenario == "Overload":
        reached = load.closed(_FULL_CALLERS, 1, seconds, _FULL_CONNECTIONS).calls_per_s
        if not reached:
            raise OSError("no call was answered")
        for factor in OVERLOADS:
            offsets_s = arrivals("constant", factor * reached, seconds, seed=0)
            send = partial(load.open, offsets_s, 1, TIMEOUT_S)
            offered = replace(cell, callers=0, overload=factor)
            yield _sample(offered, target, rules, number, send, factor * reached)
    else:
        cell = replace(cell, callers=cell.callers or target.parallel_calls)
        own = {"has_new_headers": True} if cell.scenario == "NewHeaders" else {}
        send = partial(load.closed, cell.callers, cell.batch, seconds, cell.connections, **own)
        yield _sample(cell, target, rules, number, send)


def _search(cell: Cell, target: Running, rules: Rules, number: int) -> Iterator[Sample]:
    """Raise the rate until it fails, then bisect to within some 3 %.

    A rate has failed when it failed twice, or never passed: one hiccup of the machine must not end
    the search low, and a run in which the generator was late says nothing.
    """
    first = target.load.closed(_SEARCH_CALLERS, cell.batch, rules.seconds / 2)
    low, high = 0.0, _HIGHEST_RATE
    rate = min(0.7 * first.calls_per_s, high / 2)
    for probe in range(_PROBES):
        num_failed = 0
        for attempt in range(_ATTEMPTS):
            seed = 100 * number + 10 * probe + attempt
            offsets_s = arrivals(rules.arrivals, rate, rules.seconds, seed)
            send = partial(target.load.open, offsets_s, cell.batch)
            sample = _sample(cell, target, rules, number, send, rate)
            yield sample
            num_failed += not sample.invalid
            if sample.holds(rules.latency_slo_s) or num_failed == _FAILURES:
                break
        low, high = (rate, high) if sample.holds(rules.latency_slo_s) else (low, rate)
        rate = min(1.25 * rate, (low + high) / 2)


def _sample(
    cell: Cell, target: Running, rules: Rules, number: int, send: Callable[[], Trace],
    offered_per_s: float | None = None,
) -> Sample:  # fmt: skip
    """Time one run, and the target's processor time."""
    begin_s, cpu_s = perf_counter(), cores.cpu_s(target.pid) if target.pid else 0.0
    trace = send()
    elapsed_s = perf_counter() - begin_s
    used_s = cores.cpu_s(target.pid) - cpu_s if target.pid else None
    busy = None if used_s is None else used_s / min(trace.duration_s, elapsed_s)
    num_calls = len(trace.latencies_s)
    return Sample(
        **{each.name: getattr(cell, each.name) for each in fields(cell)},
        round=number,
        offered_per_s=offered_per_s,
        generator=trace.generator,
        duration_s=trace.duration_s,
        num_calls=num_calls,
        num_errors=trace.num_errors,
        latency=Latencies.of(trace.latencies_s),
        lag_p99_s=float(np.quantile(trace.lag_s, 0.99)) if len(trace.lag_s) else None,
        generator_busy=trace.busy,
        target_busy=busy,
        cpu_us_per_call=None if used_s is None else 1e6 * used_s / max(1, num_calls),
        invalid=why_invalid(trace, busy, rules),
        outcomes=trace.outcomes,
    )


def why_invalid(trace: Trace, target_busy: float | None, rules: Rules) -> str:
    """Return why a run's figure is not the target's; empty if it is.

    Latencies count from the intended times, so a late generator only makes a target look worse: if
    the generator was late, a pass still counts, and a miss does not.

    Args:
        trace: the run.
        target_busy: cores that the target used; None if unknown.
        rules: the objective, and how many cores the target had.
    """
    if trace.outcomes:
        is_short = trace.outcomes[Outcome.SENT] < _FULL * trace.outcomes[Outcome.DUE]
        return "the generator sent less" if is_short and trace.busy > _FULL else ""
    if not len(trace.latencies_s):
        return "no call was answered"
    if len(trace.lag_s):
        late_s, p99_s = np.quantile(trace.lag_s, 0.99), np.quantile(trace.latencies_s, 0.99)
        if late_s > _LATE * rules.latency_slo_s and p99_s > rules.latency_slo_s:
            return f"the generator sent late (p99 {late_s * 1e3:.1f} ms)"
        return ""
    if trace.num_errors:
        return f"{trace.num_errors} calls failed"
    has_time_left = target_busy is not None and target_busy < 0.9 * rules.num_cores
    if trace.busy > _FULL and has_time_left:
        return "the generator was the limit, not the target"
    return ""
