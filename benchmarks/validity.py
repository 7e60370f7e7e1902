"""Which timed runs count: what makes a figure another one than the target's."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Self

import numpy as np

from benchmarks.loops import Outcome, Trace
from benchmarks.network import cpu_s, family
from benchmarks.result_file import Cell, Sample

_FULL = 0.95
"""Share of a core from which on a process counts as having no time left."""
_LATE = 0.1
"""How late, at p99, calls may leave the generator, as a share of the objective, or of their p99."""
_LEAST_LATE_S = 0.001
"""What is never late."""
_STALLED = 0.1
"""The share of its cell's median rate below which a run is none."""
_TICKS_S = os.sysconf("SC_CLK_TCK")
_BORN = 19
"""When a process was started: words of /proc/PID/stat behind its name."""
_IDLE = slice(3, 5)
"""Of the times in /proc/stat: idle, and waiting for disks."""
_NUM_TIMES = 8
"""The times in /proc/stat that are not counted twice: up to what a hypervisor kept."""


@dataclass(frozen=True, slots=True)
class RunWatch:
    """The processor times at the beginning of a run, and who was there."""

    pid: int | None
    """The target's process; None if it is not on this machine, or is this one."""
    machine_s: float
    """What all cores have computed, or a hypervisor has kept from them."""
    ours_s: float
    """The share of this process and of all that it has started."""
    target_s: float
    born: Mapping[int, str]
    """By the target's processes: when each was started."""
    is_descendant: bool

    @classmethod
    def begin(cls, pid: int | None) -> Self:
        """Look before a run of a target."""
        mine = {*family(os.getpid())}
        return cls(
            pid,
            _machine_s(),
            _ours_s(),
            0.0 if pid is None else cpu_s(pid),
            {} if pid is None else {each: _born(each) for each in family(pid)},
            pid is None or pid in mine,
        )

    @property
    def target_cpu_s(self) -> float | None:
        """What the target has computed since; None if that is not known."""
        return None if self.pid is None else cpu_s(self.pid) - self.target_s

    @property
    def foreign_s(self) -> float:
        """What neither the target nor the generators have computed since, of all cores."""
        theirs = 0.0 if self.is_descendant else self.target_cpu_s or 0.0
        return max(0.0, _machine_s() - self.machine_s - (_ours_s() - self.ours_s) - theirs)

    def why_ended(self) -> str:
        """Return why the target is not the one of the beginning; empty if it is."""
        ended = sum(_born(pid) != born for pid, born in self.born.items())
        return f"{ended} of its {len(self.born)} processes ended" if ended else ""


def _machine_s() -> float:
    with open("/proc/stat", encoding="ascii") as file:
        times = [int(word) for word in file.readline().split()[1 : _NUM_TIMES + 1]]
    return (sum(times) - sum(times[_IDLE])) / _TICKS_S


def _ours_s() -> float:
    of_ended = os.times()  # such as h2load
    return cpu_s(os.getpid()) + of_ended.children_user + of_ended.children_system


def _born(pid: int) -> str:
    """Return when a process was started; empty if it has ended."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return ""
    words = text.rpartition(")")[2].split()
    return "" if words[0] == "Z" else words[_BORN]


def why_invalid(
    trace: Trace, target_busy: float | None, *, latency_slo_s: float | None, num_cores: int
) -> str:
    """Return why a run's figure is not the target's; empty if it is.

    Latencies count from the intended times, so a late generator only makes a target look worse.
    Where there is an objective, a pass counts even then, and a miss does not; where a latency is
    the figure, no run counts whose calls at p99 left later than a tenth of it, or a millisecond.

    Args:
        trace: the run.
        target_busy: cores that the target used; None if unknown.
        latency_slo_s: the objective of an open loop's p99; None if its latency is the figure.
        num_cores: how many cores the target had.
    """
    if trace.outcomes:
        is_short = trace.outcomes[Outcome.SENT] < _FULL * trace.outcomes[Outcome.DUE]
        return "the generator sent less" if is_short and trace.busy > _FULL else ""
    if not len(trace.latencies_s):
        return "no call was answered"
    if len(trace.lag_s):
        late_s, p99_s = np.quantile(trace.lag_s, 0.99), np.quantile(trace.latencies_s, 0.99)
        if latency_slo_s is None:
            is_late = late_s > max(_LATE * p99_s, _LEAST_LATE_S)
        else:
            is_late = late_s > _LATE * latency_slo_s and p99_s > latency_slo_s
        if is_late:
            return f"the generator sent late (p99 {late_s * 1e3:.1f} ms)"
        return ""
    if trace.num_errors:
        return _why_failed(trace)
    if trace.generator not in ("h2load", "python"):
        return ""  # real clients: their own time is a part of the figure
    has_time_left = target_busy is not None and target_busy < 0.9 * num_cores
    if trace.busy > _FULL and has_time_left:
        return "the generator was the limit, not the target"
    return ""


def _why_failed(trace: Trace) -> str:
    if not trace.num_refused:
        return f"{trace.num_errors} calls failed"
    refused = f"{trace.num_refused} of {len(trace.latencies_s)} calls were refused"
    others = trace.num_errors - trace.num_refused
    also = f", and {others} failed" if others > 0 else ""
    return f"{refused} (RESOURCE_EXHAUSTED): more than run in time, see docs/overload.md{also}"


def without_stalled(samples: Sequence[Sample]) -> list[Sample]:
    """Refuse runs that answered less than a tenth of what the others of their cell did.

    A server that has stopped answers its last calls, and fails none: in a table it would be slow.
    """
    rates: dict[Cell, list[float]] = {}
    for each in samples:
        if not each.invalid and each.offered_per_s is None:
            rates.setdefault(each.cell, []).append(each.images_per_s)
    return [_judged(each, rates.get(each.cell, [])) for each in samples]


def _judged(sample: Sample, rates: Sequence[float]) -> Sample:
    if sample.invalid or sample.offered_per_s is not None or len(rates) < 3:
        return sample
    if sample.images_per_s >= _STALLED * median(rates):
        return sample
    return replace(sample, invalid=f"{sample.num_calls} calls: under a tenth of the other rounds")
