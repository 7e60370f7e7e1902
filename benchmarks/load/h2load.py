"""Drives h2load (nghttp2), a load generator in C++: closed loops of unary calls.

It takes any answer of HTTP for a success, gRPC's errors too: who uses it asks the same question
first, with a client that can tell.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from benchmarks.load.frames import Request
from benchmarks.load.processes import on_cores
from benchmarks.load.trace import Trace

NAME = "h2load"


def closed(
    request: Request, connections: int, streams: int, seconds: float, cores: Sequence[int],
    rate: float | None = None,
) -> Trace:  # fmt: skip
    """Keep `streams` calls in flight on each connection.

    Args:
        request: what to ask.
        connections: how many.
        streams: calls in flight on each.
        seconds: how long.
        cores: which cores it may use; a thread each, if there are connections for them.
        rate: calls a second for each connection; None for as many as are answered.

    Raises:
        OSError: it is not installed, or it failed.
    """
    threads = min(connections, len(cores))
    with tempfile.TemporaryDirectory(prefix="digits-bench-") as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        command = [
            "h2load", f"--duration={seconds * 1000:.0f}ms", f"--clients={connections}",
            f"--max-concurrent-streams={streams}", f"--threads={threads}", f"--data={body}",
            f"--log-file={log}", "--header=content-type: application/grpc",
            "--header=te: trailers",
            f"{'https' if request.tls else 'http'}://{request.address}{request.path}",
        ]  # fmt: skip
        if request.token:
            command.insert(1, f"--header=authorization: Bearer {request.token}")
        if rate is not None:
            command.insert(1, f"--rps={rate:g}")
        output, cpu_s = _run(command, cores)
        rows = np.array(log.read_text().split(), np.int64).reshape(-1, 3)
    return trace_of(rows, seconds, cpu_s / threads, output)


def _run(command: Sequence[str], cores: Sequence[int]) -> tuple[str, float]:
    """Run it on these cores; returns what it printed and its processor time."""
    before = os.times()
    with on_cores(cores):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
    after = os.times()
    if result.returncode:
        raise OSError(f"h2load failed: {(result.stderr or result.stdout).strip()[:200]}")
    return result.stdout, sum(after[2:4]) - sum(before[2:4])


def trace_of(rows: "np.ndarray[tuple[int, int], np.dtype[np.int64]]", seconds: float,
             cpu_s: float, output: str) -> Trace:  # fmt: skip
    """Read the log: a row per call, of start (us), HTTP status, latency (us)."""
    if not len(rows):
        raise OSError("h2load got no answer")
    failed = re.search(r"(\d+) failed, (\d+) errored", output)
    num_failed = sum(map(int, failed.groups())) if failed else 0
    return Trace(
        generator=NAME,
        latencies_s=rows[:, 2].astype(np.float64) / 1e6,
        duration_s=seconds,
        num_errors=max(num_failed, int((rows[:, 1] != 200).sum())),
        lag_s=np.empty(0),
        busy=cpu_s / seconds,
    )
