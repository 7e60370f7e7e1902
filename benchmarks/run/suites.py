"""The suites: which targets meet which scenarios, how often, for how long."""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import product

from benchmarks.run.scenarios import MULTI_STREAM_IMAGES, Cell, Rules
from benchmarks.targets.servers import OURS, split_name
from benchmarks.targets.target import Spec

ALL_BATCHES = tuple(2**power for power in range(13))
"""1 to 4,096."""
Callers = tuple[int, int]
"""How many callers, and over how many connections; 0 leaves that to the generator."""
ALL_CALLERS = tuple((2**power, 0) for power in range(9))
"""1 to 256."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Suite:
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
    rules: Rules = field(default_factory=Rules)

    def cells(self) -> list[Cell]:
        """List what a round measures: one after the other the targets at the same task.

        What is compared is measured within seconds, so that drift meets all alike.
        """
        cells = [
            Cell(
                spec=spec, scenario=scenario, callers=callers, connections=connections, batch=batch
            )
            for scenario in self.scenarios
            for callers, connections, batch in self._sizes(scenario)
            for spec in self.specs
        ]
        return list(dict.fromkeys([*cells, *self.extra]))

    def _sizes(self, scenario: str) -> list[tuple[int, int, int]]:
        """List the (callers, connections, images a call) of a scenario."""
        return {
            "MultiStream": [(1, 0, MULTI_STREAM_IMAGES)],
            "ClosedLoop": [(*callers, 1) for callers in self.callers],
            "Offline": [(0, 0, batch) for batch in self.batches],
        }.get(scenario, [(1, 0, 1)])


def specs(
    targets: Iterable[str],
    devices: Iterable[str] = ("cpu",),
    precisions: Iterable[str] = ("fp32",),
    workers: Iterable[int] = (1,),
    checkouts: Collection[str] = (),
) -> list[Spec]:
    """Combine settings, leaving out those that a target does not have.

    Args:
        targets: names of targets.
        devices: "cpu", "cuda".
        precisions: "fp32", "int8".
        workers: numbers of a server's processes.
        checkouts: those of the targets that are our server in another checkout.
    """
    found = []
    for target, device, precision, number in product(targets, devices, precisions, workers):
        is_ours = target in checkouts or split_name(target)[0] in OURS
        has_precisions = is_ours or target in ("engine", "classifier", "bare")
        has_devices = is_ours or target in ("engine", "classifier", "keras", "tf-function")
        if (
            (precision == "fp32" or (has_precisions and device == "cpu"))
            and (device == "cpu" or has_devices)
            and (number == 1 or is_ours)
        ):
            found.append(Spec(target=target, device=device, precision=precision, workers=number))
    return found


_SERVERS = [*specs(["plain", "grpcio"]), *specs(["h2"], precisions=["fp32", "int8"])]
_BOTH = [*specs(["plain"]), *specs(["grpcio", "h2"], precisions=["fp32", "int8"])]

BENCH = Suite(
    name="bench",
    specs=_SERVERS,
    scenarios=("SingleStream", "Server", "Offline"),
    rounds=5,
    rules=Rules(seconds=0.5),
)
"""What `make bench` runs: a few minutes."""


def _serving_extra() -> list[Cell]:
    """What a server's cost is made of: transport, runs, all that is ours; and streams."""
    precisions = ("fp32", "int8")
    echoes, bare = specs(["echo", "echo-grpcio"]), specs(["bare"], precisions=precisions)
    calls = [*echoes, *bare, *specs(["grpcio-stream", "h2-stream"])]
    engines = specs(["engine"], precisions=precisions)
    return [
        *(Cell(spec=spec, scenario="ClosedLoop", callers=n) for spec in calls for n in (1, 64)),
        *(Cell(spec=spec, scenario="Offline", callers=0, batch=256) for spec in (*echoes, *bare)),
        *(Cell(spec=spec, scenario="Offline", callers=0, batch=2**power)
          for spec in engines for power in range(10)),
    ]  # fmt: skip


SERVING = Suite(
    name="serving",
    specs=_BOTH,
    scenarios=("SingleStream", "ClosedLoop", "Offline"),
    callers=((1, 0), (64, 0)),
    batches=(256, 1024),
    extra=_serving_extra(),
    rounds=7,
    rules=Rules(seconds=0.5),
)
"""Where the server's time goes, all in one interleaved run."""

_DEVICES = ("cpu", "cuda")

FULL = Suite(
    name="full",
    specs=[
        *specs(["plain"]),  # first: what the others are compared with
        *specs(["null", "keras", "tf-function"], _DEVICES),
        *specs(["engine", "classifier"], _DEVICES, ("fp32", "int8")),
        *specs(["grpcio", "h2"], _DEVICES, ("fp32", "int8"), (1, 2)),
    ],
    scenarios=("SingleStream", "MultiStream", "ClosedLoop", "Server", "Offline"),
    callers=ALL_CALLERS,
    batches=ALL_BATCHES,
    extra=SERVING.cells(),
    rounds=3,
    rules=Rules(seconds=0.5),
)
"""What `make bench-full` runs: every scenario, device, precision and worker count; 20 minutes."""

_CALLS = ((1, 1), (4, 1), (32, 1), (64, 8), (256, 8), (512, 64))
_STREAMS = ((16, 1), (64, 1), (128, 8))


def _transport_extra() -> list[Cell]:
    """The ways to ask beside plain calls of one image, each with what it is compared with."""
    h2, streams = specs(["h2"]), specs(["h2-stream", "h2-infer-stream"])
    secured = specs(["h2-tls", "h2-token"])
    return [
        *(Cell(spec=spec, scenario="ClosedLoop", callers=callers, connections=connections)
          for callers, connections in ((64, 8), (256, 8)) for spec in secured),
        *(Cell(spec=spec, scenario="ClosedLoop", callers=callers, connections=connections)
          for callers, connections in _STREAMS for spec in streams),
        *(Cell(spec=spec, scenario="Offline", callers=0, batch=batch)
          for batch in (1, 8, 64) for spec in (*h2, *specs(["h2-infer"]))),
    ]  # fmt: skip


TRANSPORT = Suite(
    name="transport",
    specs=specs(["h2"], precisions=["fp32", "int8"]),
    scenarios=("ClosedLoop", "Offline"),
    callers=_CALLS,
    batches=(32, 128, 1024),
    extra=_transport_extra(),
    rounds=7,
    rules=Rules(seconds=0.5),
)
"""The h2 transport by connections and calls in flight, message size, method, TLS and token."""

OVERLOAD = Suite(
    name="overload",
    specs=specs(["h2", "grpcio"]),
    scenarios=("Overload", "OverloadReset"),
    rounds=3,
    rules=Rules(seconds=3.0),
)
"""What is answered in time of more than can be."""

SUITES = {suite.name: suite for suite in (BENCH, SERVING, FULL, TRANSPORT, OVERLOAD)}
