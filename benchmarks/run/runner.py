"""Runs a suite: opens every target, measures all in turn, round after round."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack
from dataclasses import replace
from datetime import UTC, datetime

from benchmarks.load import cores as processes
from benchmarks.run import environment, scenarios
from benchmarks.run.result_file import Results, Skip, Start
from benchmarks.run.suites import Suite
from benchmarks.targets.catalogue import open_target
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec


def run(suite: Suite, setting: Setting, progress: Callable[[str], None]) -> Results:
    """Measure every cell of a suite in every round.

    Every target stays up to the end, idle while another one is measured, so that a round is short
    and drift of the machine affects all alike. Every other round goes backwards. A target that
    fails on the way loses that measurement, not the others'.

    Args:
        suite: the cells, and how often each is measured.
        setting: the environment of targets.
        progress: called with a line for each step.
    """
    cores = {"target": len(setting.cores), "generator": len(setting.generator.cores)}
    results = Results(
        suite=suite.name,
        date=datetime.now(UTC).date().isoformat(),
        environment=environment.describe(setting.model or setting.models, cores),
        settings={"rounds": suite.rounds, "seconds": suite.seconds,
                  "latency_slo_s": suite.latency_slo_s, "arrivals": suite.arrivals},
    )  # fmt: skip
    rules = replace(suite, num_cores=len(setting.cores))
    cells, running = suite.cells(), dict[Spec, Running]()
    with ExitStack() as stack:
        for spec in dict.fromkeys(cell.spec for cell in cells):
            progress(f"starting {spec}")
            try:
                running[spec] = stack.enter_context(open_target(spec, setting))
            except NotMeasured as err:
                results.skips.append(Skip(spec=spec, reason=str(err)))
                progress(f"{spec}: not measured: {err}")
        cells = [cell for cell in cells if cell.spec in running]
        for number in range(suite.rounds):
            for place, cell in enumerate(cells[:: -1 if number % 2 else 1], start=1):
                progress(f"round {number + 1}/{suite.rounds}  {place}/{len(cells)}  {cell}")
                try:
                    results.samples += scenarios.run(cell, running[cell.spec], rules, number)
                except (OSError, BrokenProcessPool) as err:
                    reason = f"round {number + 1}, {cell}: {err}"
                    results.skips.append(Skip(spec=cell.spec, reason=reason))
        results.starts += _starts(running)
    return results


def _starts(running: Mapping[Spec, Running]) -> Iterator[Start]:
    for spec, target in running.items():
        if target.pid is not None and target.startup_s is not None:
            memory_bytes = processes.memory_bytes(target.pid)
            yield Start(spec=spec, startup_s=target.startup_s, memory_bytes=memory_bytes)
