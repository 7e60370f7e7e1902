"""The load of a target behind an address, by our own loops or by h2load; its cores.

Our own loops send other rows in each call. h2load sends the same bytes in all of them: it is for
requests of many rows, for long ones, and to show what the repetition gains.
"""

import math
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import tempfile
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from time import perf_counter
from typing import NamedTuple, Protocol, Self

import numpy as np
import numpy.typing as npt

from benchmarks import loops
from benchmarks.calls import CallRequest
from benchmarks.loops import Seconds, Trace, merge
from serving.system.usage import Activity

_FAILED = re.compile(
    r'^\w+_requests_total\{[^}]*status="(?!OK"|CANCELLED")(\w+)"[^}]*\} (\S+)$', re.MULTILINE
)
_NO_ROOM = "RESOURCE_EXHAUSTED"
_METRICS_TIMEOUT_S = 10.0
_START_S = 0.15
"""How long the processes get to connect before they all begin."""
_CONNECTIONS = 8
"""Connections of a process."""
_OPEN_CONNECTIONS = 256
"""Connections of HTTP/1.1 in an open loop: each has one call at a time."""
_PREFIX_BYTES = 5
"""Bytes before a message of gRPC."""
_LONG_BYTES = 16 << 10
"""Requests of more than that are sent by h2load: a generator in Python would be the limit."""


def split_cores() -> tuple[list[int], list[int]]:
    """Split the usable cores: the first half for the targets, the rest for the generator.

    Returns:
        Two lists; both name the same core where there is only one.
    """
    cores = sorted(os.sched_getaffinity(0))
    half = max(1, len(cores) // 2)
    return cores[:half], cores[half:] or cores


@contextmanager
def on_cores(cores: Sequence[int]) -> Iterator[None]:
    """Bind this thread, and the processes that it starts, to cores while the context lasts."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, cores)
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


def family(pid: int) -> Iterator[int]:
    """Yield a process and its descendants."""
    yield pid
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in _read(task).split():
            yield from family(int(child))


def cpu_s(pid: int) -> float:
    """Return the processor time of a process and its descendants so far, in steps of 10 ms."""
    return sum(Activity.of(each).cpu_s for each in family(pid))


def memory_bytes(pid: int) -> int:
    """Return the memory of a process and its descendants; shared memory counts once (PSS)."""
    rollups = (_read(Path(f"/proc/{each}/smaps_rollup")).split() for each in family(pid))
    return sum(1024 * int(words[words.index("Pss:") + 1]) for words in rollups if words)


def _read(path: Path) -> str:
    """Read a file of a process; empty if the process has ended."""
    try:
        return path.read_text()
    except OSError:
        return ""


def run_h2load(
    request: CallRequest,
    connections: int,
    in_flight: int,
    seconds: float,
    cores: Sequence[int],
    answer_bytes: int = 0,
) -> Trace:
    """Keep `in_flight` calls in flight on each connection.

    Args:
        request: the call.
        connections: their number.
        in_flight: on each of them.
        seconds: how long.
        cores: a thread on each, if there are connections for them.
        answer_bytes: of each answer, if all have as many: see `trace_of`.

    Raises:
        OSError: it is not installed, or it failed.
    """
    threads = min(connections, len(cores))
    with tempfile.TemporaryDirectory(prefix="digits-bench-") as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        command = [
            "h2load",
            f"--duration={seconds * 1000:.0f}ms",
            f"--clients={connections}",
            f"--max-concurrent-streams={in_flight}",
            f"--threads={threads}",
            f"--data={body}",
            f"--log-file={log}",
            *(f"--header={name}: {text}" for name, text in request.headers),
            *(["--h1"] if request.is_http else []),
            f"http://{request.address}{request.path}",
        ]
        before = os.times()
        with on_cores(cores):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()
        if result.returncode:
            raise OSError(f"h2load failed: {(result.stderr or result.stdout).strip()[:200]}")
        rows = np.array(log.read_text().split(), np.int64).reshape(-1, 3)
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of children
    trace = trace_of(rows, seconds, cpu_s / threads, result.stdout)
    num_refused = refused_of(len(rows), answer_bytes, result.stdout)
    return replace(trace, num_errors=max(trace.num_errors, num_refused))


def trace_of(rows: npt.NDArray[np.int64], seconds: float, cpu_s: float, output: str) -> Trace:
    """Read the log: (N, 3), a row for each call, of start (us), HTTP status, latency (us)."""
    if not len(rows):
        raise OSError("h2load got no answer")
    failed = re.search(r"(\d+) failed, (\d+) errored", output)
    num_failed = sum(map(int, failed.groups())) if failed else 0
    return Trace(
        generator="h2load",
        duration_s=seconds,
        busy=cpu_s / seconds,
        latencies_s=rows[:, 2].astype(np.float64) / 1e6,
        num_errors=max(num_failed, int((rows[:, 1] != 200).sum())),
    )


def refused_of(num_calls: int, answer_bytes: int, output: str) -> int:
    """Return how many calls had no answer in them, by the bytes that h2load received.

    gRPC's status is in the trailers, which h2load doesn't read: a refusal has HTTP status 200, and
    no data. Answers that were on their way at the end may hide as many refusals as there were calls
    in flight; `NetworkLoad` asks servers that count.

    Args:
        num_calls: those that ended.
        answer_bytes: of each answer; 0 if that is not known.
        output: what h2load printed.
    """
    received = re.search(r"\((\d+)\) data$", output, re.MULTILINE)
    if not answer_bytes or received is None:
        return 0
    return max(0, num_calls - int(received[1]) // answer_bytes)


def count_failed(metrics_address: str) -> Counter[str]:
    """Return how many calls a server of ours has refused or failed so far, by their status.

    Calls that a generator leaves at its end are cancelled, and don't count.

    Raises:
        OSError: the metrics can't be read.
    """
    url = f"http://{metrics_address}/metrics"
    with urllib.request.urlopen(url, timeout=_METRICS_TIMEOUT_S) as answer:
        page = answer.read().decode()
    counts: Counter[str] = Counter()
    for status, count in _FAILED.findall(page):
        counts[status] += round(float(count))
    return counts


def _begin(core: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the process that started it
    os.sched_setaffinity(0, [core])


class Generator:
    """Processes that generate load, one for each of their cores, kept from run to run."""

    def __init__(self, usable: Sequence[int], kind: str = "auto") -> None:
        """Start the processes.

        Args:
            usable: the cores they may use.
            kind: drives closed loops: "h2load", "python", or "auto" for our own loops, and h2load,
                if it is installed, for what repeats bytes or is long.
        """
        self.cores = usable
        self._kind, self._has_h2load = kind, bool(shutil.which("h2load"))
        spawn = multiprocessing.get_context("spawn")
        self._pools = [ProcessPoolExecutor(1, spawn, _begin, (core,)) for core in usable]

    def uses_h2load(self, *, repeats: bool, num_bytes: int) -> bool:
        """Return whether a closed loop is h2load's.

        Args:
            repeats: whether its calls all have the same bytes.
            num_bytes: the length of a request.
        """
        is_for_it = repeats or num_bytes > _LONG_BYTES
        return self._kind == "h2load" or (self._kind == "auto" and self._has_h2load and is_for_it)

    def run(
        self,
        loop: Callable[..., Trace],
        request: CallRequest,
        work: Sequence[int] | Seconds,
        *arguments: object,
    ) -> Trace:
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


class Demand(NamedTuple):
    """Calls that are kept in flight, each followed by the next."""

    callers: int
    """Calls at a time."""
    batch: int
    """Rows of a call."""
    seconds: float
    connections: int = 0
    """Connections that they share; 0 for at most eight a process."""
    has_new_headers: bool = False
    """Whether each has a deadline and a trace of its own."""
    repeats: bool = False
    """Whether all have the same bytes."""


class Load(Protocol):
    """Sends calls to a target, and keeps the time."""

    def closed(self, demand: Demand) -> Trace:
        """Keep calls in flight.

        Raises:
            OSError: the target can't be reached, or does not answer rightly.
        """

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
        """Send a call of `batch` rows at each offset from the start, answered or not."""


class NetworkLoad:
    """Calls one method of a server, and keeps the time."""

    def __init__(
        self,
        generator: Generator,
        request: Callable[[int], CallRequest],
        probe: Callable[[CallRequest], bytes],
        failed: Callable[[], Counter[str]] = Counter,
    ) -> None:
        """Address a method of a server.

        Args:
            generator: the processes that send.
            request: makes a request with this number of rows, with the messages of several calls.
            probe: has a request answered, returns the answer, and raises OSError if it is refused:
                h2load does not look.
            failed: returns how many calls the server has failed so far, by status,
                if it counts them.
        """
        self._generator, self._request, self._probe = generator, request, probe
        self._failed = failed
        self._answer_bytes: dict[int, int] = {}
        """Sizes of gRPC's answers, with their prefix, by the rows of a call."""

    def closed(self, demand: Demand) -> Trace:
        """Keep calls in flight."""
        callers, batch, seconds, connections, has_new_headers, repeats = demand
        request = replace(self._request(batch), has_new_headers=has_new_headers)
        if batch not in self._answer_bytes:
            size = len(self._probe(request))
            self._answer_bytes[batch] = 0 if request.is_http else _PREFIX_BYTES + size
        generator = self._generator
        is_h2loads = generator.uses_h2load(repeats=repeats, num_bytes=len(request.body))
        if request.is_http:
            connections = callers  # each has one call in flight
        if has_new_headers or not is_h2loads:
            connections = connections or min(callers, _CONNECTIONS * len(generator.cores))
            request = replace(request, others=()) if repeats else request
            return generator.run(loops.closed, request, spread(callers, connections), seconds)
        connections = connections or max(n for n in range(1, _CONNECTIONS + 1) if callers % n == 0)
        in_flight, before = callers // connections, self._failed()
        size = self._answer_bytes[batch]
        trace = run_h2load(request, connections, in_flight, seconds, generator.cores, size)
        failed = self._failed() - before
        num_errors = max(trace.num_errors, failed.total())
        return replace(trace, num_errors=num_errors, num_refused=failed[_NO_ROOM])

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
        """Send a call of `batch` images at each offset from the start, answered or not.

        Callers with a timeout send it along, and reset the stream when it is over. Always by our
        own loops: h2load would count from the actual send time.
        """
        request = self._request(batch)
        connections = _OPEN_CONNECTIONS if request.is_http else _CONNECTIONS
        work = request, offsets_s, connections, timeout_s
        return self._generator.run(loops.open_loop, *work)
