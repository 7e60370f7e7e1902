"""The suites: which targets run which scenarios, how often, for how long."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import product

from benchmarks.run.cell import Cell
from benchmarks.run.scenarios import Rules
from benchmarks.targets.catalogue import entry_of
from benchmarks.targets.target import Spec

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
        callers = {"ClosedLoop": self.callers, "Offline": [(0, 0)]}
        batches = {"Offline": self.batches}
        every = [
            Cell(spec=spec, scenario=name, callers=number, connections=connections, batch=batch)
            for name in self.scenarios
            for number, connections in callers.get(name, [(1, 0)])
            for batch in batches.get(name, [1])
            for spec in self.specs
        ]
        return [cell for cell in every if not (cell.spec.target == "engine" and cell.is_open)]


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
    scenarios=("SingleStream", "ClosedLoop", "Offline"), rounds=5,
    callers=((1, 1), (4, 1), (16, 4), (64, 8), (256, 8)), batches=(128,),
)  # fmt: skip

# `make bench-full`: every scenario, device, precision and worker count; 20 minutes.
FULL = Suite(
    name="full",
    specs=[
        *specs(["plain"]),  # first: the others are compared with it
        *specs(["grpcio", "h2"], _DEVICES, _PRECISIONS, (1, 2)),
        *specs(["engine"], _DEVICES, _PRECISIONS),
    ],
    scenarios=("SingleStream", "ClosedLoop", "Server", "Offline"),
    callers=((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64)), batches=_POWERS,
)  # fmt: skip

SUITES = {suite.name: suite for suite in (BENCH, FULL)}
