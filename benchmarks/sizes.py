"""Which cells of `bench model` fit the machine's memory, and how long the model takes."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.in_process import InProcessLoad
from benchmarks.network import Demand, memory_bytes
from benchmarks.runner import Suite
from benchmarks.workload import Workload
from serving.system.cores import memory_limit

_SHARE = 0.25
"""The most of the memory that bare runs may take together."""
_LONGEST_S = 10.0
"""The longest time in which each caller gets one answer; a run lasts three of them."""


def fitting(
    suite: Suite, file: Path, workload: Workload, cores: Sequence[int], most_bytes: int = 0
) -> dict[str, Any]:
    """Run each number of rows alone, and return which cells are too much.

    Each caller's run has memory of its own for what the model computes in between.

    Args:
        suite: with callers and rows a call.
        file: the model.
        workload: the rows.
        cores: of the model.
        most_bytes: the most of all bare runs together; 0 for a quarter of the memory.

    Returns:
        The fields of the suite that this sets.
    """
    most_bytes = most_bytes or int(_SHARE * memory_limit())
    run_s: dict[int, float] = {}
    too_much: set[tuple[int, int]] = set()
    callers = [number for number, _ in suite.callers]
    with InProcessLoad(file, workload, cores) as load:
        for rows in sorted(suite.loop_batches):
            before = memory_bytes(load.pid)
            load.closed(Demand(1, rows, 0.0))
            taken = max(0, memory_bytes(load.pid) - before)
            run_s[rows] = float(load.closed(Demand(1, rows, 0.0)).latencies_s.min())
            too_much |= {
                (number, rows)
                for number in callers
                if (number - 1) * taken > most_bytes or number * run_s[rows] > _LONGEST_S
            }
    least = min(callers), min(suite.loop_batches)
    return {"run_s": run_s, "too_much": frozenset(too_much - {least})}
