"""Load by real clients, from one process: ours, a grpcio stub, and tritonclient's two."""

import json
import math
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.loops import Seconds, Trace
from benchmarks.network import Demand, on_cores
from benchmarks.others import CODE, ENVIRONMENTS, TRITONCLIENT
from benchmarks.workload import Workload

HTTP_CLIENT = "tritonclient over HTTP"
CLIENTS = ("Client", "AsyncClient", "grpcio stub", "tritonclient", HTTP_CLIENT)
_MORE_S = 60.0
"""How much longer than its loop a process of callers may take."""


class ClientLoad:
    """Calls a server by a client, from one process on the generator's cores."""

    def __init__(self, client: str, address: str, workload: Workload, cores: Sequence[int]) -> None:
        """Address a server.

        Args:
            client: one of `CLIENTS`.
            address: host:port of its gRPC, or of its HTTP, as the client speaks.
            workload: the rows of the calls.
            cores: where the client runs.
        """
        self._client, self._address, self._workload = client, address, workload
        self._cores = cores

    def closed(self, demand: Demand) -> Trace:
        """Keep calls in flight: a thread each, or with AsyncClient a task.

        Raises:
            OSError: the client failed, or is not installed.
        """
        is_triton = self._client.startswith(TRITONCLIENT)
        environment = ENVIRONMENTS / TRITONCLIENT / "bin" / "python"
        program = str(environment.absolute()) if is_triton else sys.executable
        with tempfile.TemporaryDirectory(prefix="digits-bench-") as folder:
            feeds, ended = Path(folder, "feeds.npz"), Path(folder, "ended.npy")
            arrays: dict[str, Any] = dict(self._workload.feeds(demand.batch))
            np.savez(feeds, **arrays)
            task = {
                "client": self._client, "address": self._address, "model": self._workload.model,
                "feeds": str(feeds), "ended": str(ended), "callers": demand.callers,
                "seconds": demand.seconds,
            }  # fmt: skip
            try:
                with on_cores(self._cores):
                    result = subprocess.run(
                        [program, str(CODE / "client_calls.py"), json.dumps(task)],
                        capture_output=True,
                        text=True,
                        check=True,
                        timeout=demand.seconds + _MORE_S,
                    )
            except subprocess.CalledProcessError as err:
                lines = err.stderr.strip().splitlines() or ["no reason"]
                raise OSError(f"{self._client} failed: {lines[-1]}") from err
            except subprocess.TimeoutExpired as err:
                raise OSError(f"{self._client} did not end") from err
            figures, latencies_s = json.loads(result.stdout), np.load(ended)
        return Trace(
            generator=self._client,
            latencies_s=latencies_s,
            duration_s=figures["duration_s"],
            num_errors=figures["num_errors"],
            busy=figures["cpu_s"] / figures["duration_s"],
        )

    def open(self, offsets_s: Seconds, batch: int, timeout_s: float = math.inf) -> Trace:
        """Refuse: real clients wait for their answers."""
        raise OSError("clients have no open loop")
