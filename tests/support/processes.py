"""Server processes: their memory and files, and their reports."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from tests.support.servers import RunningServer

TIMEOUT_S = 20.0
FORKS = ("-W", "ignore:This process:DeprecationWarning")
"""For a program that forks: Python >= 3.12 warns of each fork beside threads."""
GRPC_POOL = "event_engine"
"""The name of the threads of gRPC's pool."""


@dataclass
class PacedServer(RunningServer):
    """A `paced_server` that has said it is ready."""

    def tell(self, line):
        """Send it a line: "hold" or "release"."""
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ledger(self):
        """How often each ticket was run so far."""
        return dict(self._ask()["tickets"])

    def num_begun(self):
        """How many runs have begun."""
        return int(self._ask()["begun"])

    def _ask(self):
        self.tell("ledger")
        return json.loads(self.process.stdout.readline())


def wait_until(holds):
    """Poll until something holds; fail if it never does."""
    deadline_s = time.monotonic() + TIMEOUT_S
    while not holds():
        assert time.monotonic() < deadline_s, "it never happened"
        time.sleep(0.02)


def freeze(pid):
    """Stop a process, and wait until none of its threads runs: on a busy machine one may go on."""
    os.kill(pid, signal.SIGSTOP)
    threads = Path(f"/proc/{pid}/task")
    wait_until(lambda: all(") T " in (each / "stat").read_text() for each in threads.iterdir()))


def is_serving(address):
    """Ask for the server's health."""
    with grpc.insecure_channel(address) as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        answer = stub.Check(health_pb2.HealthCheckRequest(), timeout=TIMEOUT_S)
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


@contextmanager
def paced_server(transport="h2", /, **options):
    """Start one; `options` are its flags, such as service_s=0.08."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.support.paced_server", "--transport", transport]
    process = subprocess.Popen(
        [*command, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    try:
        start_line = process.stdout.readline()
        assert start_line.startswith("serving "), start_line
        yield PacedServer(process, start_line)
    finally:
        process.kill()
        process.wait()
        process.stdin.close()
        process.stdout.close()


@dataclass(frozen=True)
class Footprint:
    """The memory, files and threads of a process."""

    resident_bytes: int
    num_files: int
    num_threads: int
    num_grpc_threads: int
    """Of gRPC's own pool, which grows and shrinks with its load; not among the others."""

    @classmethod
    def of(cls, pid):
        """Look at a process; pages that its allocator has given back don't count."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        threads = _thread_names(pid)
        return cls(
            resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
            num_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            num_threads=sum(name != GRPC_POOL for name in threads),
            num_grpc_threads=threads.count(GRPC_POOL),
        )


def _thread_names(pid):
    names = []
    for path in Path(f"/proc/{pid}/task").glob("*/comm"):
        with suppress(OSError):  # it has ended meanwhile
            names.append(path.read_text().strip())
    return names


def children(pid):
    found: list[int] = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        with suppress(OSError):  # the thread has ended
            found += map(int, (task / "children").read_text().split())
    return found
