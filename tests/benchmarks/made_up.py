"""Made-up results for readers of results: none of these figures was measured."""

import numpy as np

from benchmarks.loops import Trace
from benchmarks.result_file import Latencies, Results, Sample, Start
from benchmarks.targets import Spec

PLAIN, H2 = Spec(target="plain"), Spec(target="h2")
INT8 = Spec(target="h2", precision="int8")
ON_CUDA = Spec(target="h2", device="cuda")


def sample(
    spec,
    scenario,
    *,
    number=0,
    callers=1,
    batch=1,
    calls_per_s=1000,
    latency_s=0.001,
    cpu_us=100.0,
    num_errors=0,
    invalid="",
    connections=0,
    overload=0.0,
    outcomes=None,
    model="",
):
    num_calls = round(calls_per_s)
    one = Latencies.of([latency_s])
    is_open = scenario == "Server"
    return Sample(
        spec=spec,
        scenario=scenario,
        round=number,
        callers=0 if is_open else callers,
        batch=batch,
        offered_per_s=calls_per_s if is_open else None,
        generator="python",
        duration_s=1.0,
        num_calls=num_calls,
        num_errors=num_errors,
        latency=Latencies(one.index, num_calls * one.count),
        lag_p99_s=0.0 if is_open else None,
        generator_busy=0.5,
        target_busy=1.0,
        cpu_us_per_call=cpu_us,
        invalid=invalid,
        connections=connections,
        overload=overload,
        outcomes=outcomes or {},
        model=model,
    )


def results(*samples, skips=()):
    specs = dict.fromkeys(each.spec for each in samples)
    return Results(
        suite="made-up",
        date="2026-01-01",
        environment={
            "cpu": "A CPU", "cores": 2, "architecture": "x86_64", "gpu": None, "governor": None,
            "cores_for": {"target": 1, "generator": 1}, "python": "3", "packages": {"numpy": "2"},
            "commit": "abc",
        },
        settings={"rounds": 3, "seconds": 1.0, "latency_slo_s": 0.01, "arrivals": "poisson"},
        samples=list(samples),
        starts=[Start(spec=spec, startup_s=0.3, memory_bytes=2**26) for spec in specs],
        skips=list(skips),
    )  # fmt: skip


def three_rounds():
    """Plain and h2, ten times as fast, on a machine that drifts."""
    return results(
        *(
            sample(spec, scenario, number=number, calls_per_s=rate * way, latency_s=1 / rate / way)
            for number, way in enumerate((1.0, 0.7, 1.2))
            for spec, rate in ((PLAIN, 1000.0), (H2, 10_000.0))
            for scenario in ("SingleStream", "Server", "Offline")
        )
    )


def trace(**fields):
    usual = {
        "generator": "python", "latencies_s": np.full(100, 0.001), "duration_s": 1.0,
        "num_errors": 0, "lag_s": np.empty(0), "busy": 0.5,
    }  # fmt: skip
    return Trace(**usual | fields)
