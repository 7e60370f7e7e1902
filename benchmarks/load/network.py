"""The load of a target behind an address: h2load where it can, else our own loops."""

import math
import shutil
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Self

from benchmarks.load import cores, h2load, loops
from benchmarks.load.trace import Call, Load, Seconds, Trace, merge

_START_S = 0.15
"""How long the processes get to connect before they all begin."""
_CONNECTIONS = 8
"""Of a process."""


class Generator:
    """Processes that generate load, one for each of their cores, kept from run to run."""

    def __init__(self, usable: Sequence[int], kind: str = "auto") -> None:
        """Start the processes.

        Args:
            usable: the cores they may use.
            kind: drives closed loops: "h2load", "python", or "auto" for h2load if installed.
        """
        self.cores = usable
        self.uses_h2load = kind == "h2load" or (kind == "auto" and bool(shutil.which("h2load")))
        self._pools = [cores.worker([core]) for core in usable]

    def closed(self, request: Call, callers: int, seconds: float, connections: int) -> Trace:
        """Keep `callers` calls in flight; 0 connections for at most eight a process."""
        if self.uses_h2load:
            if request.is_http:
                connections = callers  # each has one call in flight
            connections = connections or max(
                n for n in range(1, _CONNECTIONS + 1) if callers % n == 0
            )
            in_flight = callers // connections
            return h2load.closed(request, connections, in_flight, seconds, self.cores)
        connections = connections or min(callers, _CONNECTIONS * len(self._pools))
        return self._run(loops.closed, request, spread(callers, connections), seconds)

    def open(self, request: Call, offsets_s: Seconds, timeout_s: float) -> Trace:
        """See `Load.open`: always our own loops, since h2load counts from the actual send time."""
        return self._run(loops.open_loop, request, offsets_s, _CONNECTIONS, timeout_s)

    def _run(
        self, loop: Callable[..., Trace], request: Call, work: Sequence[int] | Seconds,
        *arguments: object,
    ) -> Trace:  # fmt: skip
        """Run a loop in every process, each with its share of the work."""
        begin_s, num = perf_counter() + _START_S, min(len(self._pools), len(work))
        jobs = [
            pool.submit(loop, request, work[first::num], begin_s, *arguments)
            for first, pool in enumerate(self._pools[:num])
        ]
        return merge([job.result() for job in jobs])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        for pool in self._pools:
            pool.shutdown()


def spread(number: int, parts: int) -> list[int]:
    """Cut a number into parts that differ by at most one."""
    return [number // parts + (part < number % parts) for part in range(parts)]


class NetworkLoad(Load):
    """Calls one method of a server; see `Load`."""

    def __init__(
        self, generator: Generator, request: Callable[[int], Call],
        probe: Callable[[Call], object],
    ) -> None:  # fmt: skip
        """Address a method of a server.

        Args:
            generator: the processes that send.
            request: makes a request with this number of rows.
            probe: has a request answered, and raises OSError if it is refused: h2load does not
                look.
        """
        self._generator, self._request, self._probe = generator, request, probe
        self._probed: set[int] = set()

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        request = self._request(batch)
        if batch not in self._probed:
            self._probe(request)
            self._probed.add(batch)
        return self._generator.closed(request, callers, seconds, connections)

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
        return self._generator.open(self._request(batch), offsets_s, timeout_s)
