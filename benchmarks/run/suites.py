"""The suites: which targets run which scenarios, how often, for how long."""

from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain, product

from benchmarks.run.cell import Cell
from benchmarks.run.scenarios import DEADLINES, Rules
from benchmarks.targets.catalogue import entry_of
from benchmarks.targets.clients import CLIENTS
from benchmarks.targets.commands import ENGINE_KINDS
from benchmarks.targets.target import Spec

MULTI_STREAM_IMAGES = 8
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
    """What to measure; every round measures every cell once."""

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
        """List what a round measures: one after the other the targets at the same task.

        What is compared is measured within seconds, so that drift affects all alike.
        """
        callers = {"ClosedLoop": self.callers, "Offline": [(0, 0)]}
        batches = {"Offline": self.batches, "MultiStream": [MULTI_STREAM_IMAGES]}
        cells = [
            cells_of(self.specs, name, callers.get(name, [(1, 0)]), batches.get(name, [1]))
            for name in self.scenarios
        ]
        return list(dict.fromkeys([*chain(*cells), *self.extra]))


def specs(
    targets: Iterable[str],
    devices: Iterable[str] = ("cpu",),
    precisions: Iterable[str] = ("fp32",),
    workers: Iterable[int] = (1,),
    checkouts: Container[str] = (),
) -> list[Spec]:
    """Combine settings, leaving out those that a target does not have.

    Args:
        targets: names of targets.
        devices: "cpu", "cuda".
        precisions: "fp32", "int8".
        workers: numbers of a server's processes.
        checkouts: those of the targets that are our server in another checkout.
    """
    every = (
        Spec(target=target, device=device, precision=precision, workers=number)
        for target, device, precision, number in product(targets, devices, precisions, workers)
    )
    return [spec for spec in every if not entry_of(spec.target, checkouts).lack(spec)]


_DEVICES, _PRECISIONS = ("cpu", "cuda"), ("fp32", "int8")
_H2 = specs(["h2"], precisions=_PRECISIONS)
_PARTS = [*specs(["echo", "echo-grpcio"]), *specs(["bare"], precisions=_PRECISIONS)]
_ENGINES = specs(["engine"], precisions=_PRECISIONS)
_OFFLINE = ((0, 0),)

# What `make bench` runs: a few minutes.
BENCH = Suite(
    name="bench", specs=[*specs(["plain", "grpcio"]), *_H2], rounds=5,
    scenarios=("SingleStream", "Server", "Offline"),
)  # fmt: skip

# What a server's cost is made of: transport, runs, the rest; all in one interleaved run.
SERVING = Suite(
    name="serving", specs=[*specs(["plain"]), *specs(["grpcio", "h2"], precisions=_PRECISIONS)],
    scenarios=("SingleStream", "ClosedLoop", "Offline"), rounds=7,
    callers=((1, 0), (64, 0)), batches=(256, 1024),
    extra=[
        *cells_of([*_PARTS, *specs(["grpcio-stream", "h2-stream"])], "ClosedLoop",
                  [(1, 0), (64, 0)]),
        *cells_of(_PARTS, "Offline", _OFFLINE, [256]),
        *cells_of(_ENGINES, "Offline", _OFFLINE, [2**power for power in range(10)]),
    ],
)  # fmt: skip

# What `make bench-full` runs: every scenario, device, precision and worker count; 20 minutes.
FULL = Suite(
    name="full",
    specs=[
        *specs(["plain"]),  # first: what the others are compared with
        *specs(["null", "keras", "tf-function"], _DEVICES),
        *specs(["engine", "classifier"], _DEVICES, _PRECISIONS),
        *specs(["grpcio", "h2"], _DEVICES, _PRECISIONS, (1, 2)),
    ],
    scenarios=("SingleStream", "MultiStream", "ClosedLoop", "Server", "Offline"),
    callers=[(2**power, 0) for power in range(9)], batches=[2**power for power in range(13)],
    extra=SERVING.cells(),
)  # fmt: skip

# The h2 transport by connections and calls in flight, message size, method, TLS and token.
TRANSPORT = Suite(
    name="transport", specs=_H2, scenarios=("ClosedLoop", "Offline"), rounds=7,
    callers=((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64)), batches=(32, 128, 1024),
    extra=[
        *cells_of(specs(["h2-tls", "h2-token"]), "ClosedLoop", [(64, 8), (256, 8)]),
        *cells_of(specs(["h2-stream", "h2-infer-stream"]), "ClosedLoop",
                  [(16, 1), (64, 1), (128, 8)]),
        *cells_of(specs(["h2", "h2-infer"]), "Offline", _OFFLINE, [1, 8, 64]),
    ],
)  # fmt: skip

# HTTP beside gRPC: tensors as JSON and as bytes, and pictures, of which one takes 10 ms.
_PICTURE = specs(["http-picture"])
HTTP = Suite(
    name="http", specs=specs(["grpcio", "grpcio-infer", "h2", "http-json", "http-binary"]),
    scenarios=("SingleStream", "ClosedLoop", "Offline"), rounds=5, seconds=1.0,
    callers=((8, 0), (64, 0)), batches=(64,),
    extra=[
        *cells_of(_PICTURE, "SingleStream"),
        *cells_of(_PICTURE, "ClosedLoop", [(8, 0)]),
    ],
)  # fmt: skip

# What is answered in time of more than can be.
OVERLOAD = Suite(
    name="overload", specs=specs(["h2", "grpcio"]), scenarios=tuple(DEADLINES), seconds=3.0
)

# A GPU beside the CPU, by batch size, with what serving leaves out until a GPU has shown its worth.
_SERVED_ON_GPUS = [
    *specs(["h2"], _DEVICES, _PRECISIONS), *specs(["h2-locked", "h2-graphs"], ["cuda"]),
]  # fmt: skip
GPU = Suite(
    name="gpu",
    specs=[
        *specs(["engine"], _DEVICES, _PRECISIONS),
        *specs([f"engine-{kind}" for kind in ENGINE_KINDS], ["cuda"]),
    ],
    scenarios=("SingleStream", "Offline"), batches=[2**power for power in range(13)],
    extra=[
        *cells_of(_SERVED_ON_GPUS, "SingleStream"),
        *cells_of(_SERVED_ON_GPUS, "ClosedLoop", [(64, 8), (256, 8)]),
        *cells_of(_SERVED_ON_GPUS, "Server"),
        *cells_of(_SERVED_ON_GPUS, "Offline", _OFFLINE, [1, 8, 64, 512, 4096]),
    ],
)  # fmt: skip

# What services embed, by threads and by tasks, beside the bare loop over `session.run`.
_EMBEDDED, _AWAITED = specs(["raw", "classifier"]), specs(["classifier-async"])
EMBEDDING = Suite(
    name="embedding", specs=[*_EMBEDDED, *_AWAITED], scenarios=("SingleStream", "ClosedLoop"),
    rounds=11, seconds=0.3, callers=((1, 0), (4, 0), (16, 0)),
    extra=[
        *cells_of(_AWAITED, "ClosedLoop", [(256, 0)]),
        *cells_of([*_EMBEDDED, *_AWAITED], "ClosedLoop", [(4, 0)], [256]),
    ],
)  # fmt: skip

# Python's clients by threads and tasks, each on a core beside the server's.
CLIENT_SUITE = Suite(
    name="clients", specs=specs(CLIENTS), scenarios=("ClosedLoop",), rounds=7,
    callers=((1, 0), (16, 0), (256, 0)),
)  # fmt: skip

SUITES = {
    suite.name: suite
    for suite in (
        BENCH, SERVING, FULL, TRANSPORT, HTTP, OVERLOAD, GPU, EMBEDDING, CLIENT_SUITE,
    )
}  # fmt: skip
