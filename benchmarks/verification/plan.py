"""What a verification does: all of it on a GPU, or in short on the CPU, as its rehearsal."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from benchmarks.run.suites import GPU, Suite, cells_of, specs

RESULTS = Path("benchmarks/results")


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What to verify, and how thoroughly."""

    device: str
    """"cuda", or "cpu" for the rehearsal."""
    output: Path
    """The results file."""
    work: Path
    """A folder for what is trained and exported; emptied first."""
    data_dir: Path | None
    """A folder with MNIST's four files; None for the cache, filled from the network once."""
    suite: Suite = GPU
    epochs: int = 0
    """Of the training; 0 for the recipe's."""
    sizes: Sequence[int] = tuple(2**power for power in range(13))
    """Images a run, where answers are compared."""


def plan_of(device: str, output: Path | None, data_dir: Path | None) -> Plan:
    """Return the verification of a GPU, or its rehearsal.

    Args:
        device: "cuda", or "cpu" for the rehearsal.
        output: the results file; None for the usual one.
        data_dir: see `Plan`.
    """
    work = RESULTS / "local" / f"verify-{device}"
    if device == "cuda":
        output = output or RESULTS / "gpu.json"
        return Plan(device=device, output=output, work=work, data_dir=data_dir)
    on_cpu = specs(["engine-bound", "engine-fp16", "h2-bound"])
    served = dict.fromkeys(cell.spec for cell in GPU.extra)
    suite = replace(
        GPU, name="rehearsal", specs=[*GPU.specs, *on_cpu[:2]], batches=(1, 64), rounds=1,
        seconds=0.05, extra=cells_of([*served, on_cpu[2]], "ClosedLoop", [(64, 8)]),
    )  # fmt: skip
    return Plan(
        device=device, output=output or RESULTS / "local" / "rehearsal.json", work=work,
        data_dir=data_dir, suite=suite, epochs=1, sizes=(1, 64, 4096),
    )  # fmt: skip
