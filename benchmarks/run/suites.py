"""The suites: which targets run which scenarios, how often, for how long."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product

from benchmarks.run.cell import Cell
from benchmarks.run.scenarios import Rules
from benchmarks.targets.catalogue import entry_of
from benchmarks.targets.clients import CLIENTS
from benchmarks.targets.target import Spec

Callers = tuple[int, int]
"""How many callers, and over how many connections; 0 leaves that to the generator."""


def cells_of(
    specs: Sequence[Spec], scenario: str, callers: Iterable[Callers] = ((1, 0),),
    batches: Iterable[int] = (1,),
) -> list[Cell]:  # fmt: skip
    """Combine targets with the sizes of a scenario: all targets at a size, then at the next."""
    return [
        Cell(spec=spec, scenario=scenario, callers=number, connections=connections, batch=batch)
        for (number, connections), batch, spec in product(callers, batches, specs)
    ]


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
    extra: Sequence[Cell] = ()
    """Cells beside those of specs x scenarios."""
    rounds: int = 3

    def cells(self) -> list[Cell]:
        """List the cells of a round: all targets at one task, then at the next.

        Cells to be compared are measured within seconds, so that drift affects all equally.
        """
        callers = {"ClosedLoop": self.callers, "Offline": [(0, 0)]}
        batches = {"Offline": self.batches, "MultiStream": [8]}
        cells = [
            cells_of(self.specs, name, callers.get(name, [(1, 0)]), batches.get(name, [1]))
            for name in self.scenarios
        ]
        return list(dict.fromkeys([*chain(*cells), *self.extra]))


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
_H2 = specs(["h2"], precisions=_PRECISIONS)
_OFFLINE = ((0, 0),)

# `make bench`: a few minutes.
BENCH = Suite(
    name="bench", specs=[*specs(["plain", "grpcio"]), *_H2], rounds=5,
    scenarios=("SingleStream", "Server", "Offline"),
)  # fmt: skip

# `make bench-full`: every scenario, device, precision and worker count; 20 minutes.
_SERVERS = [*specs(["plain"]), *specs(["grpcio", "h2"], _DEVICES, _PRECISIONS, (1, 2))]
FULL = Suite(
    name="full",
    specs=[
        *_SERVERS,  # first: the others are compared with plain
        *specs(["null", "keras"], _DEVICES),
        *specs(["engine", "classifier"], _DEVICES, _PRECISIONS),
    ],
    scenarios=("SingleStream", "MultiStream", "ClosedLoop", "Offline"),
    callers=[(power, 0) for power in _POWERS[:9]], batches=_POWERS,
    extra=cells_of(_SERVERS, "Server"),
)  # fmt: skip

# The h2 transport by connections and calls in flight, message size and method.
TRANSPORT = Suite(
    name="transport", specs=_H2, scenarios=("ClosedLoop", "Offline"), rounds=7,
    callers=((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64)), batches=(32, 128, 1024),
    extra=cells_of(specs(["h2", "h2-infer"]), "Offline", _OFFLINE, [1, 8, 64]),
)  # fmt: skip

# HTTP beside gRPC: tensors as JSON and as bytes.
HTTP = Suite(
    name="http", specs=specs(["grpcio", "grpcio-infer", "h2", "http-json", "http-binary"]),
    scenarios=("SingleStream", "ClosedLoop", "Offline"), rounds=5, seconds=1.0,
    callers=((8, 0), (64, 0)), batches=(64,),
)  # fmt: skip

# More calls than can be answered in time.
OVERLOAD = Suite(
    name="overload", specs=specs(["h2", "grpcio"]), scenarios=("Overload",), seconds=3.0
)

# A GPU beside the CPU, by batch size: the model alone, and served.
_SERVED = specs(["h2"], _DEVICES, _PRECISIONS)
GPU = Suite(
    name="gpu", specs=specs(["engine"], _DEVICES, _PRECISIONS),
    scenarios=("SingleStream", "Offline"), batches=_POWERS,
    extra=[
        *cells_of(_SERVED, "SingleStream"),
        *cells_of(_SERVED, "ClosedLoop", [(64, 8), (256, 8)]),
        *cells_of(_SERVED, "Server"),
        *cells_of(_SERVED, "Offline", _OFFLINE, [1, 8, 64, 512, 4096]),
    ],
)  # fmt: skip

# The classifier in process, by threads and by tasks, beside the model alone.
_EMBEDDED = specs(["engine", "classifier", "classifier-async"])
EMBEDDING = Suite(
    name="embedding", specs=_EMBEDDED, scenarios=("SingleStream", "ClosedLoop"),
    rounds=11, seconds=0.3, callers=((1, 0), (4, 0), (16, 0)),
    extra=[
        *cells_of(specs(["classifier-async"]), "ClosedLoop", [(256, 0)]),
        *cells_of(_EMBEDDED, "ClosedLoop", [(4, 0)], [256]),
    ],
)  # fmt: skip

# Python's clients by threads and tasks, each on a core beside the server's.
CLIENT_SUITE = Suite(
    name="clients", specs=specs(CLIENTS), scenarios=("ClosedLoop",), rounds=7,
    callers=((1, 0), (16, 0), (256, 0)),
)  # fmt: skip

_ALL = (BENCH, FULL, TRANSPORT, HTTP, OVERLOAD, GPU, EMBEDDING, CLIENT_SUITE)
SUITES = {suite.name: suite for suite in _ALL}
