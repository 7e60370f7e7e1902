"""Runs a suite: opens every target, measures all in turn, round after round.

Three scenarios are named as in MLPerf Inference:

    SingleStream  one row a call, one call at a time        its figure: 90th percentile latency
    Server        calls arrive by themselves (open loop)    highest rate with p99 <= objective
    Offline       plenty to do, `batch` rows a call         rows/s

but they are no MLPerf results: runs last seconds in place of ten minutes, Offline has eight calls
in flight in place of one query, answers are compared once in place of over a whole data set, and
there are no compliance tests. The others are our own, for the rate at which a server is full, below
it and beyond (a row of digits is an image):

    ClosedLoop    `callers` calls in flight, one row each   rows/s
    NewHeaders    the same by calls that each have a deadline and a trace of their own
    SameBytes     the same by calls that are all alike, which is not how callers are
    Load          10 to 95 % of the rate of a closed loop   latency at each
    Overload      1 to 5 times that rate                    rows/s answered within 50 ms

In Server and Load, calls arrive by themselves, and latencies count from when they were due.

https://github.com/mlcommons/inference_policies/blob/master/inference_rules.adoc
"""

import hashlib
import json
import math
import os
import platform
import subprocess
from collections.abc import Callable, Collection, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from importlib import metadata
from itertools import product
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.loops import Trace, arrivals
from benchmarks.network import Demand, memory_bytes
from benchmarks.others import NotMeasured
from benchmarks.result_file import Cell, Latencies, Results, Sample, Skip, Start
from benchmarks.targets import IN_PROCESS, Running, Setting, Spec, can_be, open_target
from benchmarks.validity import RunWatch, why_invalid, without_stalled

NAMES = (
    "SingleStream", "ClosedLoop", "NewHeaders", "SameBytes", "Server", "Offline", "Load",
    "Overload",
)  # fmt: skip
OVERLOADS = (1.0, 1.5, 2.0, 3.0, 5.0)
LOADS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95)
"""Offered rates, as multiples of the closed loop's."""
TIMEOUT_S = 0.05
"""How long a caller waits in Overload, from when its call was due."""

_PROBES = 7
"""Rates that a search tries."""
_ATTEMPTS, _FAILURES, _SEARCH_CALLERS = 4, 2, 64
_FULL_CALLERS, _FULL_CONNECTIONS = 256, 8
"""The closed loop whose rate Load and Overload multiply: it keeps any target busy."""
_HIGHEST_RATE = 100_000.0
"""Calls a second beyond which no search goes."""
_PARALLEL_CALLS = 8
"""In Offline."""
_WINDOW_S, _STEADY = 1.0, 0.05
"""A target is warm once the rates of two windows of a warm-up differ by this share at most."""
_CYCLES, _LONGEST_S = 5.0, 60.0
"""Where targets are measured apart: how many answers each caller gets in a run, and its limit."""
_DEVICES, _PRECISIONS = ("cpu", "cuda"), ("fp32", "int8")
_POWERS = [2**power for power in range(13)]
_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "grpcio", "protobuf", "uvloop",
)  # fmt: skip
Callers = tuple[int, int]
"""How many callers, and over how many connections; 0 leaves that to the generator."""


_KNOWN_CYCLES = 3
"""Answers that each caller gets in a run, at least, where the model's time is known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Rules:
    """How long, and under which objective."""

    seconds: float = 0.5
    """Length of one timed run."""
    latency_slo_s: float = 0.010
    """Limit of the Server scenario's p99."""
    arrivals: str = "poisson"
    """How the calls of Server and Load come: "poisson" or "constant"."""
    num_cores: int = 1
    """How many cores the target has."""
    most_foreign: float = math.inf
    """A run does not count if other programs took more cores than this meanwhile."""


def measure(cell: Cell, target: Running, rules: Rules, number: int) -> Iterator[Sample]:
    """Measure a cell once.

    Args:
        cell: target, scenario and sizes.
        target: opened, as `cell.spec` says.
        rules: how.
        number: of the round, from 0.

    Yields:
        One sample; of Server, Load and Overload one for each rate that was tried.
    """
    load, seconds = target.load, rules.seconds
    if cell.scenario == "Server":
        yield from _search(replace(cell, callers=0), target, rules, number)
    elif cell.scenario in ("Load", "Overload"):
        yield from _offered(replace(cell, callers=0), target, rules, number)
    else:
        cell = replace(cell, callers=cell.callers or _PARALLEL_CALLS)
        demand = demand_of(cell, seconds)
        yield _sample(cell, target, rules, number, partial(load.closed, demand))


def demand_of(cell: Cell, seconds: float) -> Demand:
    """Return the calls that a closed loop keeps in flight."""
    return Demand(
        cell.callers,
        cell.batch,
        seconds,
        cell.connections,
        has_new_headers=cell.scenario == "NewHeaders",
        repeats=cell.scenario in ("SameBytes", "Offline"),
    )


def _offered(cell: Cell, target: Running, rules: Rules, number: int) -> Iterator[Sample]:
    """Measure the rate of a closed loop, then offer shares or multiples of it."""
    load, seconds = target.load, rules.seconds
    full = load.closed(Demand(_FULL_CALLERS, 1, seconds, _FULL_CONNECTIONS))
    reached = full.calls_per_s
    if not reached or full.num_errors:
        raise OSError(f"{full.num_errors} calls of the closed loop before it failed")
    is_load = cell.scenario == "Load"
    for place, factor in enumerate(LOADS if is_load else OVERLOADS):
        kind = rules.arrivals if is_load else "constant"
        offsets_s = arrivals(kind, factor * reached, seconds, seed=100 * number + place)
        send = partial(load.open, offsets_s, 1, math.inf if is_load else TIMEOUT_S)
        offered = replace(cell, overload=factor)
        yield _sample(offered, target, rules, number, send, factor * reached)


def _search(cell: Cell, target: Running, rules: Rules, number: int) -> Iterator[Sample]:
    """Raise the rate until it fails, then bisect to within some 3 %.

    A rate has failed when it failed twice, or never passed: one hiccup of the machine must not end
    the search low, and a run in which the generator was late says nothing.
    """
    first = target.load.closed(Demand(_SEARCH_CALLERS, cell.batch, rules.seconds / 2))
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
    cell: Cell,
    target: Running,
    rules: Rules,
    number: int,
    send: Callable[[], Trace],
    offered_per_s: float | None = None,
) -> Sample:
    """Time one run, and the target's processor time."""
    watch, begin_s = RunWatch.begin(target.pid), perf_counter()
    trace = send()
    elapsed_s, foreign_s, used_s = perf_counter() - begin_s, watch.foreign_s, watch.target_cpu_s
    busy = None if used_s is None else used_s / min(trace.duration_s, elapsed_s)
    num_calls = len(trace.latencies_s)
    reason = watch.why_ended() or why_invalid(
        trace,
        busy,
        latency_slo_s=rules.latency_slo_s if cell.scenario == "Server" else None,
        num_cores=rules.num_cores,
    )
    if not reason and foreign_s > rules.most_foreign * elapsed_s:
        reason = f"others computed on {foreign_s / elapsed_s:.2f} cores meanwhile"
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
        invalid=reason,
        outcomes=trace.outcomes,
    )


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite(Rules):
    """Cells to measure; every round measures every cell once."""

    name: str
    specs: Sequence[Spec] = ()
    scenarios: Sequence[str] = ()
    callers: Sequence[Callers] = ((64, 0),)
    """Callers of ClosedLoop."""
    batches: Sequence[int] = (1, 32, 256)
    """Rows a call of Offline."""
    loop_batches: Sequence[int] = (1,)
    """Rows a call of ClosedLoop."""
    other_batches: Sequence[int] = (1,)
    """Rows a call of the other scenarios."""
    too_much: Collection[tuple[int, int]] = ()
    """Callers and rows a call that are left out: they take too much memory, or time."""
    run_s: Mapping[int, float] = field(default_factory=dict)
    """Seconds of a run of the model alone, by its rows: each caller gets some answers."""
    rounds: int = 3
    model: str = ""
    """The model's name in results, where there are several."""
    is_apart: bool = False
    """Whether each round starts each target alone, and ends it: others' servers are busy while they
    are idle. Runs are then as long as it takes for each caller to get answers."""
    warm_up_s: float = 0.5
    """Apart: how long a target is called before a run at most, until its rate is steady."""
    least_calls: int = 0
    """Apart: how many answers a run has at least, if `_LONGEST_S` suffices."""

    def cells(self) -> list[Cell]:
        """List the cells of a round: all targets at one task, then at the next.

        Cells to be compared are measured within seconds, so that drift affects all equally.
        """
        largest = self.callers[-1:]
        callers = {"ClosedLoop": self.callers, "NewHeaders": largest, "SameBytes": largest}
        callers["Offline"] = [(0, 0)]
        batches = {"Offline": self.batches, "ClosedLoop": self.loop_batches}
        others = self.other_batches
        return [
            Cell(
                spec=spec,
                scenario=name,
                callers=number,
                connections=connections,
                batch=batch,
                model=self.model,
            )
            for name in self.scenarios
            for number, connections in callers.get(name, [(1, 0)])
            for batch in batches.get(name, others)
            if (number, batch) not in self.too_much
            for spec in self.specs
        ]

    def seconds_of(self, cell: Cell) -> float:
        """Return how long a cell is measured: until each caller has some answers."""
        cycle_s = self.run_s.get(cell.batch, 0.0) * (cell.callers or 1)
        return max(self.seconds, _KNOWN_CYCLES * cycle_s)


def specs(
    targets: Iterable[str],
    devices: Iterable[str] = ("cpu",),
    precisions: Iterable[str] = ("fp32",),
    workers: Iterable[int] = (1,),
    threads: Iterable[int] = (0,),
    checkouts: Container[str] = (),
) -> list[Spec]:
    """Combine settings (see `Spec`), leaving out those that a target does not have.

    `checkouts` are those of the targets that are our server in another checkout.
    """
    every = (
        Spec(target=target, device=device, precision=precision, workers=number, threads=each)
        for target, device, precision, number, each in product(
            targets, devices, precisions, workers, threads
        )
    )
    return [spec for spec in every if can_be(spec, checkouts)]


# `make bench`: a few minutes.
BENCH = Suite(
    name="bench",
    specs=[*specs(["plain", "grpcio"]), *specs(["h2"], precisions=_PRECISIONS)],
    scenarios=("SingleStream", "ClosedLoop", "NewHeaders", "Offline"),
    rounds=5,
    callers=((1, 1), (4, 1), (16, 4), (64, 8), (256, 8)),
    batches=(128,),
)

# `make bench-full`: every scenario, device, precision and worker count; 20 minutes.
FULL = Suite(
    name="full",
    specs=[
        *specs(["plain"]),  # first: the others are compared with it
        *specs(["grpcio", "h2"], _DEVICES, _PRECISIONS, (1, 2)),
    ],
    scenarios=("SingleStream", "ClosedLoop", "Server", "Offline"),
    callers=((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64)),
    batches=_POWERS,
)

# `python -m benchmarks model FILE`: what serving costs, for anybody's model; half a minute.
MODEL = Suite(
    name="model",
    specs=specs([IN_PROCESS, "h2-infer"]),  # the first: the other is compared with it
    scenarios=("ClosedLoop",),
    callers=((1, 0), (8, 0), (64, 0)),
    loop_batches=(1, 8, 32),
)

SUITES = {suite.name: suite for suite in (BENCH, FULL)}


def describe(models: Path, cores: Mapping[str, int]) -> dict[str, Any]:
    """Describe the machine and the software.

    Args:
        models: the model repository's root, or a model's file.
        cores: how many cores the targets and the generators have.
    """
    query = ("nvidia-smi", "--format=csv,noheader", "--query-gpu")
    versions = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            versions[name] = metadata.version(name)
    return {
        "cpu": _cpu(),
        "architecture": platform.machine(),
        "cores": len(os.sched_getaffinity(0)),
        "cores_for": dict(cores),
        "memory_bytes": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        "governor": _output("cat", "/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "gpu": _output(*query, "name"),
        "gpu_driver": _output(*query, "driver_version"),
        "system": f"{platform.system()} {platform.release()}",
        "python": platform.python_version(),
        "packages": versions,
        "h2load": _output("h2load", "--version"),
        "commit": commit(),
        "model": _model(models),
    }


def _cpu() -> str:
    lines = (line.partition(":") for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines())
    fields = {name.strip(): value.strip() for name, _, value in lines}
    name = fields.get("model name", "unknown")
    # Virtual machines hide the name: family and model distinguish generations.
    return f"{name} (family {fields.get('cpu family')}, model {fields.get('model')})"


def _output(*command: str) -> str | None:
    """Return a program's first line; None if it is missing or fails."""
    with suppress(OSError, subprocess.SubprocessError):
        result = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20)
        return result.stdout.strip().partition("\n")[0] or None
    return None


def commit() -> str | None:
    """Return the checkout's commit, and whether files differ from it; None without git."""
    found = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return f"{found} with changes" if found and changed else found


def _model(models: Path) -> dict[str, str] | None:
    if models.is_file():
        return {"digest": hashlib.sha256(models.read_bytes()).hexdigest()[:16]}
    files = (models / "digits").glob("[1-9]*/manifest.json")
    newest = max(files, key=lambda file: int(file.parent.name), default=None)
    if newest is None:
        return None
    manifest = json.loads(newest.read_text("utf-8"))
    digest = hashlib.sha256(json.dumps(manifest["files"], sort_keys=True).encode()).hexdigest()
    return {"recipe": manifest["recipe"], "version": manifest["version"], "digest": digest[:16]}


def run(suite: Suite, setting: Setting, progress: Callable[[str], None]) -> Results:
    """Measure every cell of a suite in every round.

    Every target stays up to the end, idle while another one is measured, so that a round is short
    and drift of the machine affects all alike; or, if `suite.is_apart`, each is started in each
    round. Every other round goes backwards. A target that fails on the way loses that measurement,
    not the others'.

    Args:
        suite: the cells, and how often each is measured.
        setting: the environment of targets.
        progress: called with a line for each step.
    """
    cores = {"target": len(setting.cores), "generator": len(setting.generator.cores)}
    results = Results(
        suite=suite.name,
        date=datetime.now(UTC).date().isoformat(),
        environment=describe(setting.model or setting.models, cores),
        settings={
            "rounds": suite.rounds,
            "seconds": suite.seconds,
            "latency_slo_s": suite.latency_slo_s,
            "arrivals": suite.arrivals,
            **(_of_apart(suite) if suite.is_apart else {}),
        },
    )
    suite = replace(suite, num_cores=len(setting.cores))
    (_run_apart if suite.is_apart else _run_together)(suite, setting, results, progress)
    results.samples = without_stalled(results.samples)
    return results


def _of_apart(suite: Suite) -> dict[str, float]:
    names = ("warm_up_s", "least_calls", "most_foreign")
    return {name: value for name in names if (value := getattr(suite, name)) < math.inf}


def _run_together(
    suite: Suite, setting: Setting, results: Results, progress: Callable[[str], None]
) -> None:
    """Measure with all targets up to the end."""
    cells, running = suite.cells(), dict[Spec, Running]()
    with ExitStack() as stack:
        for spec in dict.fromkeys(cell.spec for cell in cells):
            progress(f"starting {spec}")
            try:
                running[spec] = stack.enter_context(open_target(spec, setting))
            except NotMeasured as err:
                results.skips.append(Skip(spec=spec, reason=str(err), model=suite.model))
                progress(f"{spec}: not measured: {err}")
        cells = [cell for cell in cells if cell.spec in running]
        for number in range(suite.rounds):
            for place, cell in enumerate(cells[:: -1 if number % 2 else 1], start=1):
                progress(f"round {number + 1}/{suite.rounds}  {place}/{len(cells)}  {cell}")
                try:
                    rules = replace(suite, seconds=suite.seconds_of(cell))
                    results.samples += measure(cell, running[cell.spec], rules, number)
                except (OSError, BrokenProcessPool) as err:
                    results.skips.append(_failed(cell, number, err))
        results.starts += _starts(running, suite.model)


def _run_apart(
    suite: Suite, setting: Setting, results: Results, progress: Callable[[str], None]
) -> None:
    """Start each target in each round, measure all of its cells, and end it."""
    alive = list(dict.fromkeys(cell.spec for cell in suite.cells()))
    for number in range(suite.rounds):
        for place, spec in enumerate(alive[:: -1 if number % 2 else 1], start=1):
            progress(f"round {number + 1}/{suite.rounds}  {place}/{len(alive)}  {spec}")
            try:
                with open_target(spec, setting) as target:
                    _measure_alone(suite, spec, target, number, results)
                    if number == suite.rounds - 1:
                        results.starts += _starts({spec: target}, suite.model)
            except NotMeasured as err:
                results.skips.append(Skip(spec=spec, reason=str(err), model=suite.model))
                progress(f"{spec}: not measured: {err}")
        failed = {skip.spec for skip in results.skips if skip.model == suite.model}
        measured = {sample.spec for sample in results.samples if sample.model == suite.model}
        alive = [spec for spec in alive if spec not in failed - measured]


def _measure_alone(
    suite: Suite, spec: Spec, target: Running, number: int, results: Results
) -> None:
    """Measure the cells of a target that runs alone, each once its rate is steady."""
    for cell in suite.cells():
        if cell.spec != spec:
            continue
        try:
            demand = demand_of(replace(cell, callers=cell.callers or _PARALLEL_CALLS), 0.0)
            rate = _steady_rate(target, demand, suite)
            wanted = max(suite.least_calls, _CYCLES * cell.callers)
            likely_s = min(_LONGEST_S, wanted / rate) if rate else _LONGEST_S
            rules = replace(suite, seconds=max(suite.seconds, likely_s))
            results.samples += measure(cell, target, rules, number)
        except (OSError, BrokenProcessPool) as err:
            results.skips.append(_failed(cell, number, err))


def _steady_rate(target: Running, demand: Demand, suite: Suite) -> float:
    """Call a target until two windows have nearly the same rate; return that, in calls a second."""
    window_s = min(_WINDOW_S, suite.warm_up_s)
    rate, left_s = 0.0, suite.warm_up_s
    while left_s > 0:
        before, rate = rate, target.load.closed(demand._replace(seconds=window_s)).calls_per_s
        left_s -= window_s
        if before and abs(rate - before) <= _STEADY * before:
            break
        if not rate:  # no call was answered in a window
            window_s = min(2 * window_s, max(left_s, 0.0))
    return rate


def _failed(cell: Cell, number: int, error: Exception) -> Skip:
    return Skip(spec=cell.spec, reason=f"round {number + 1}, {cell}: {error}", model=cell.model)


def _starts(running: Mapping[Spec, Running], model: str) -> Iterator[Start]:
    for spec, target in running.items():
        if target.pid is not None and target.startup_s is not None:
            used = memory_bytes(target.pid)
            yield Start(spec=spec, model=model, startup_s=target.startup_s, memory_bytes=used)
