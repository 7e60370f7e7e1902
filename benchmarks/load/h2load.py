"""Runs h2load (nghttp2), a load generator in C++: closed loops of unary calls.

It counts every HTTP 200 as a success, gRPC's errors too: send the same request first with a client
that reads the status.
"""

import os
import re
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from benchmarks.load.cores import on_cores
from benchmarks.load.trace import Call, Trace


def closed(
    request: Call, connections: int, in_flight: int, seconds: float, cores: Sequence[int]
) -> Trace:
    """Keep `in_flight` calls in flight on each connection.

    Args:
        request: the call.
        connections: their number.
        in_flight: on each of them.
        seconds: how long.
        cores: a thread on each, if there are connections for them.

    Raises:
        OSError: it is not installed, or it failed.
    """
    threads = min(connections, len(cores))
    with tempfile.TemporaryDirectory(prefix="digits-bench-") as folder:
        body, log = Path(folder, "body"), Path(folder, "log")
        body.write_bytes(request.body)
        command = [
            "h2load", f"--duration={seconds * 1000:.0f}ms", f"--clients={connections}",
            f"--max-concurrent-streams={in_flight}", f"--threads={threads}", f"--data={body}",
            f"--log-file={log}", *(f"--header={name}: {text}" for name, text in request.headers),
            *(["--h1"] if request.is_http else []), f"http://{request.address}{request.path}",
        ]  # fmt: skip
        before = os.times()
        with on_cores(cores):
            result = subprocess.run(command, capture_output=True, text=True, check=False)
        after = os.times()
        if result.returncode:
            raise OSError(f"h2load failed: {(result.stderr or result.stdout).strip()[:200]}")
        rows = np.array(log.read_text().split(), np.int64).reshape(-1, 3)
    cpu_s = sum(after[2:4]) - sum(before[2:4])  # of children
    return trace_of(rows, seconds, cpu_s / threads, result.stdout)


def trace_of(rows: npt.NDArray[np.int64], seconds: float, cpu_s: float, output: str) -> Trace:
    """Read the log: (N, 3), a row for each call, of start (us), HTTP status, latency (us)."""
    if not len(rows):
        raise OSError("h2load got no answer")
    failed = re.search(r"(\d+) failed, (\d+) errored", output)
    num_failed = sum(map(int, failed.groups())) if failed else 0
    return Trace(
        generator="h2load", duration_s=seconds, busy=cpu_s / seconds,
        latencies_s=rows[:, 2].astype(np.float64) / 1e6,
        num_errors=max(num_failed, int((rows[:, 1] != 200).sum())),
    )  # fmt: skip
