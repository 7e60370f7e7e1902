"""The load of a target behind an address: h2load where it can, else our own generators."""

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from time import perf_counter
from typing import Self

from benchmarks.load import h2load, overload, processes, streams
from benchmarks.load.asyncio_load import check, run_closed, run_open
from benchmarks.load.frames import Request
from benchmarks.load.trace import Seconds, Trace, merge
from serving.images import Images

_START_S = 0.15
"""How long the processes get to connect before they all begin."""
_CONNECTIONS = 8
_OVERLOAD_CONNECTIONS = 16

Encode = Callable[[Images], bytes]


class Generator:
    """Processes that generate load, one for each of their cores, kept from run to run."""

    def __init__(self, cores: Sequence[int], kind: str = "auto") -> None:
        """Start the processes.

        Args:
            cores: the cores they may use.
            kind: what drives closed loops: "h2load", "asyncio", or "auto" for h2load if installed.
        """
        self.cores = cores
        self.uses_h2load = kind == "h2load" or (
            kind == "auto" and shutil.which("h2load") is not None
        )
        self._pools = [processes.worker([core]) for core in cores]

    def closed(self, request: Request, callers: int, seconds: float, connections: int) -> Trace:
        """Keep `callers` calls in flight, on at most eight connections a process, or as said."""
        begin_s = perf_counter() + _START_S
        connections = connections or min(callers, _CONNECTIONS * len(self._pools))
        in_flight = spread(callers, connections)
        num = min(len(self._pools), connections)
        run = streams.run_closed if request.streaming else run_closed
        jobs = [
            pool.submit(run, request, in_flight[first::num], begin_s, seconds)
            for first, pool in enumerate(self._pools[:num])
        ]
        return merge([job.result() for job in jobs])

    def open(self, request: Request, offsets_s: Seconds) -> Trace:
        """Send a call at each offset; the processes take turns."""
        begin_s = perf_counter() + _START_S
        num = min(len(self._pools), len(offsets_s))
        jobs = [
            pool.submit(run_open, request, _CONNECTIONS, begin_s, offsets_s[first::num])
            for first, pool in enumerate(self._pools[:num])
        ]
        return merge([job.result() for job in jobs])

    def overload(self, request: Request, rate: float, seconds: float, with_timeout: bool) -> Trace:
        """Offer calls at a rate, shared by the processes; see `Load.overload`."""
        begin_s, num = perf_counter() + _START_S, len(self._pools)
        offer = partial(overload.run, with_timeout=with_timeout)
        jobs = [
            pool.submit(offer, request, connections, rate / num, begin_s, seconds)
            for pool, connections in zip(
                self._pools, spread(max(num, _OVERLOAD_CONNECTIONS), num), strict=True
            )
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
        self, generator: Generator, question: Request, images: Images, encode: Encode
    ) -> None:
        """Address a method of a server.

        Args:
            generator: what sends.
            question: where and how to ask; its message is replaced.
            images: (M, 784) uint8; a call gets the first `batch` of them.
            encode: makes a request message of images.
        """
        self._generator = generator
        self._question = question
        self._images, self._encode = images, encode
        self._checked: set[int] = set()

    def _request(self, batch: int) -> Request:
        return replace(self._question, message=self._encode(self._images[:batch]))

    def closed(self, callers: int, batch: int, seconds: float, connections: int = 0) -> Trace:
        """See `Load.closed`."""
        request = self._request(batch)
        if self._generator.uses_h2load and not request.streaming:
            self._check(request, batch)
            if not connections:
                connections = max(n for n in range(1, _CONNECTIONS + 1) if callers % n == 0)
            return h2load.closed(
                request, connections, callers // connections, seconds, self._generator.cores
            )
        return self._generator.closed(request, callers, seconds, connections)

    def _check(self, request: Request, batch: int) -> None:
        """Ask once with our own client: h2load takes a refusal for an answer."""
        if batch not in self._checked:
            check(request)
            self._checked.add(batch)

    def open(self, offsets_s: Seconds, batch: int) -> Trace:
        """See `Load.open`: our own generator, since h2load counts from the actual send time."""
        self._refuse_streams()
        return self._generator.open(self._request(batch), offsets_s)

    def overload(self, rate: float, seconds: float, *, with_timeout: bool) -> Trace:
        """See `Load.overload`."""
        self._refuse_streams()
        return self._generator.overload(self._request(1), rate, seconds, with_timeout)

    def _refuse_streams(self) -> None:
        """Raise OSError for streams: their callers wait for answers."""
        if self._question.streaming:
            raise OSError("streams are measured in closed loops only")
