"""The load of a target behind an address: h2load where it can, else our own generator."""

import shutil
from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Self

from benchmarks import processes
from benchmarks.load import h2load
from benchmarks.load.asyncio_load import check, run_closed, run_open
from benchmarks.load.frames import Request
from benchmarks.load.trace import Seconds, Trace, merge
from serving.images import Images

_START_S = 0.15
"""How long the processes get to connect before they all begin."""
_CONNECTIONS = 8

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

    def closed(self, request: Request, callers: int, seconds: float) -> Trace:
        """Keep `callers` calls in flight, on at most eight connections a process."""
        begin_s = perf_counter() + _START_S
        shares = [share for share in spread(callers, len(self._pools)) if share]
        jobs = [
            pool.submit(
                run_closed, request, spread(share, min(share, _CONNECTIONS)), begin_s, seconds
            )
            for pool, share in zip(self._pools, shares, strict=False)
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

    def __init__(self, generator: Generator, address: str, path: str, images: Images,
                 encode: Encode, *, streaming: bool = False) -> None:  # fmt: skip
        """Address a server.

        Args:
            generator: what sends.
            address: "host:port".
            path: "/package.Service/Method".
            images: (M, 784) uint8; a call gets the first `batch` of them.
            encode: makes a request message of images.
            streaming: whether a call is a message of a stream.
        """
        self._generator = generator
        self._address, self._path, self._streaming = address, path, streaming
        self._images, self._encode = images, encode
        self._checked: set[int] = set()

    def _request(self, batch: int) -> Request:
        message = self._encode(self._images[:batch])
        return Request(
            address=self._address, path=self._path, message=message, streaming=self._streaming
        )

    def closed(self, callers: int, batch: int, seconds: float) -> Trace:
        """See `Load.closed`."""
        request = self._request(batch)
        if self._generator.uses_h2load and not self._streaming:
            self._check(request, batch)
            connections = max(n for n in range(1, _CONNECTIONS + 1) if callers % n == 0)
            return h2load.closed(
                request, connections, callers // connections, seconds, self._generator.cores
            )
        return self._generator.closed(request, callers, seconds)

    def _check(self, request: Request, batch: int) -> None:
        """Ask once with our own client: h2load takes a refusal for an answer."""
        if batch not in self._checked:
            check(request)
            self._checked.add(batch)

    def open(self, offsets_s: Seconds, batch: int) -> Trace:
        """See `Load.open`: our own generator, since h2load counts from the actual send time."""
        return self._generator.open(self._request(batch), offsets_s)
