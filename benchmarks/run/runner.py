"""Runs a suite: opens every target, measures all in turn, round after round."""

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import ExitStack, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import product
from pathlib import Path
from typing import Any

from benchmarks.load import cores as processes
from benchmarks.run import scenarios
from benchmarks.run.result_file import Cell, Results, Skip, Start
from benchmarks.run.scenarios import Rules
from benchmarks.targets.servers import entry_of, open_target
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec

Callers = tuple[int, int]
"""How many callers, and over how many connections; 0 leaves that to the generator."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite(Rules):
    """Cells to measure; every round measures every cell once."""

    name: str
    specs: Sequence[Spec] = ()
    scenarios: Sequence[str] = ()
    callers: Sequence[Callers] = ((64, 0),)
    """Of ClosedLoop."""
    batches: Sequence[int] = (1, 32, 256)
    """Of Offline."""
    rounds: int = 3

    def cells(self) -> list[Cell]:
        """List the cells of a round: all targets at one task, then at the next.

        Cells to be compared are measured within seconds, so that drift affects all equally.
        """
        largest = self.callers[-1:]
        callers = {"ClosedLoop": self.callers, "NewHeaders": largest, "Offline": [(0, 0)]}
        batches = {"Offline": self.batches}
        return [
            Cell(spec=spec, scenario=name, callers=number, connections=connections, batch=batch)
            for name in self.scenarios
            for number, connections in callers.get(name, [(1, 0)])
            for batch in batches.get(name, [1])
            for spec in self.specs
        ]


def specs(
    targets: Iterable[str], devices: Iterable[str] = ("cpu",),
    precisions: Iterable[str] = ("fp32",), workers: Iterable[int] = (1,),
    checkouts: Container[str] = (),
) -> list[Spec]:  # fmt: skip
    """Combine settings (see `Spec`), leaving out those that a target does not have.

    `checkouts` are those of the targets that are our server in another checkout.
    """
    every = (
        Spec(target=target, device=device, precision=precision, workers=number)
        for target, device, precision, number in product(targets, devices, precisions, workers)
    )
    return [spec for spec in every if not entry_of(spec.target, checkouts).lack(spec)]


_DEVICES, _PRECISIONS = ("cpu", "cuda"), ("fp32", "int8")
_POWERS = [2**power for power in range(13)]

# `make bench`: a few minutes.
BENCH = Suite(
    name="bench",
    specs=[*specs(["plain", "grpcio"]), *specs(["h2"], precisions=_PRECISIONS)],
    scenarios=("SingleStream", "ClosedLoop", "NewHeaders", "Offline"), rounds=5,
    callers=((1, 1), (4, 1), (16, 4), (64, 8), (256, 8)), batches=(128,),
)  # fmt: skip

# `make bench-full`: every scenario, device, precision and worker count; 20 minutes.
FULL = Suite(
    name="full",
    specs=[
        *specs(["plain"]),  # first: the others are compared with it
        *specs(["grpcio", "h2"], _DEVICES, _PRECISIONS, (1, 2)),
    ],
    scenarios=("SingleStream", "ClosedLoop", "Server", "Offline"),
    callers=((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64)), batches=_POWERS,
)  # fmt: skip

SUITES = {suite.name: suite for suite in (BENCH, FULL)}


_PACKAGES = (
    "numpy", "onnxruntime", "onnxruntime-gpu", "grpcio", "protobuf", "uvloop",
)  # fmt: skip


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
        "commit": _commit(),
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


def _commit() -> str | None:
    commit = _output("git", "rev-parse", "--short=12", "HEAD")
    changed = _output("git", "status", "--porcelain", "--untracked-files=no")
    return f"{commit} with changes" if commit and changed else commit


def _model(models: Path) -> dict[str, str] | None:
    """Return which model is measured, by its files' digests."""
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
        environment=describe(setting.model or setting.models, cores),
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
