"""The load of a target behind an address: h2load where it can, else our own loops."""

import shutil
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from time import perf_counter
from typing import Self

from benchmarks.load import cores, h2load, http1, loops
from benchmarks.load.calls import Calls
from benchmarks.load.connection import Connection
from benchmarks.load.http1 import HttpRequest
from benchmarks.load.request import Request
from benchmarks.load.trace import Deadline, Seconds, Trace, merge
from serving.images import Images

_START_S = 0.15
"""How long the processes get to connect before they all begin."""
_CONNECTIONS, _DEADLINE_CONNECTIONS = 8, 16
"""Of a process, and of all of them together if there are deadlines."""

Encode = Callable[[Images], bytes]


class Generator:
    """Processes that generate load, one for each of their cores, kept from run to run."""

    def __init__(self, usable: Sequence[int], kind: str = "auto") -> None:
        """Start the processes.

        Args:
            usable: the cores they may use.
            kind: what drives closed loops: "h2load", "python", or "auto" for h2load if installed.
        """
        self.cores = usable
        self.uses_h2load = kind == "h2load" or (kind == "auto" and bool(shutil.which("h2load")))
        self._pools = [cores.worker([core]) for core in usable]

    def closed(
        self, request: Request | HttpRequest, callers: int, seconds: float, connections: int
    ) -> Trace:
        """Keep `callers` calls in flight; 0 connections for at most eight a process.

        Over HTTP each call in flight has a connection of its own.
        """
        connections = connections or min(callers, _CONNECTIONS * len(self._pools))
        loop = http1.closed if isinstance(request, HttpRequest) else loops.closed
        return self._run(loop, request, spread(callers, connections), seconds)

    def open(self, request: Request | HttpRequest, offsets_s: Seconds, deadline: Deadline) -> Trace:
        """Send a call at each offset; see `Load.open`."""
        connections = _CONNECTIONS
        if deadline is not Deadline.NONE:
            connections = -(-_DEADLINE_CONNECTIONS // len(self._pools))
        loop = http1.open_loop if isinstance(request, HttpRequest) else loops.open_loop
        return self._run(loop, request, offsets_s, connections, deadline)

    def _run(
        self, loop: Callable[..., Trace], request: Request | HttpRequest,
        work: Sequence[int] | Seconds, *arguments: object,
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


class NetworkLoad:
    """Calls one method of a server; see `Load`."""

    def __init__(
        self,
        generator: Generator,
        request: Request | HttpRequest,
        images: Images,
        encode: Encode,
    ) -> None:
        """Address a method of a server.

        Args:
            generator: what sends.
            request: where and how to ask; its message is replaced.
            images: (M, 784) uint8; a call gets the first `batch` of them.
            encode: makes a request message of images.
        """
        self._generator = generator
        self._template = request
        self._images, self._encode = images, encode
        self._checked: set[int] = set()

    def _request(self, batch: int) -> Request | HttpRequest:
        return replace(self._template, message=self._encode(self._images[:batch]))

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        request = self._request(batch)
        if (
            isinstance(request, HttpRequest)
            or request.is_streaming
            or not self._generator.uses_h2load
        ):
            return self._generator.closed(request, callers, seconds, connections)
        if batch not in self._checked:
            with closing(Connection(request)) as connection:
                Calls(connection, request, {})  # raises for a refusal; for h2load that is a success
            self._checked.add(batch)
        connections = connections or max(n for n in range(1, _CONNECTIONS + 1) if callers % n == 0)
        in_flight = callers // connections
        return h2load.closed(request, connections, in_flight, seconds, self._generator.cores)

    def open(self, offsets_s: Seconds, batch: int, deadline: Deadline = Deadline.NONE) -> Trace:
        """See `Load.open`: always our own loops, since h2load counts from the actual send time."""
        if isinstance(self._template, Request) and self._template.is_streaming:
            raise OSError("streams are measured in closed loops only")
        return self._generator.open(self._request(batch), offsets_s, deadline)
