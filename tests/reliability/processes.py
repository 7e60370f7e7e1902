"""Server processes, what they hold, and what they tell."""

import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.servers import RunningServer


@dataclass
class PacedServer(RunningServer):
    """A `paced_server` that has said it is ready."""

    def tell(self, line: str) -> None:
        """Send it a line: "hold" or "release"."""
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def ledger(self) -> dict[int, int]:
        """How often each ticket was run so far."""
        return dict(self._ask()["tickets"])

    def num_waiting(self) -> int:
        """How many images wait for a run."""
        return int(self._ask()["waiting"])

    def _ask(self) -> Any:
        self.tell("ledger")
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())


@contextmanager
def paced_server(transport: str, **options: object) -> Iterator[PacedServer]:
    """Start one; `options` are its flags, such as service_s=0.08."""
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    command = [sys.executable, "-m", "tests.reliability.paced_server", "--transport", transport]
    process = subprocess.Popen(
        [*command, *flags], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
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
    """What a process holds."""

    resident_bytes: int
    num_files: int
    num_threads: int

    @classmethod
    def of(cls, pid: int) -> "Footprint":
        """Look at a process; pages that its allocator has given back don't count."""
        status = dict(
            line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines()
        )
        return cls(
            resident_bytes=int(status["VmRSS"].split()[0]) * 1024,
            num_files=len(list(Path(f"/proc/{pid}/fd").iterdir())),
            num_threads=int(status["Threads"]),
        )
