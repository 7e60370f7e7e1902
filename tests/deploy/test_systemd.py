"""The unit: systemd takes it, and the server needs nothing that it forbids."""

import re
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from serving import Client
from serving.images import Images
from tests.deploy.conftest import ROOT
from tests.support.servers import serve_command, started

UNIT = ROOT / "deploy" / "systemd" / "digit-serving.service"
SOCKET = UNIT.with_suffix(".socket")
MAX_EXPOSURE = 15
"""Of 100, as systemd-analyze counts."""


@pytest.fixture(scope="module")
def analyze(program: Callable[[str, str], Path]) -> Callable[..., str]:
    systemd_analyze = program("systemd-analyze", "systemd")

    def run(*arguments: str | Path) -> str:
        done = subprocess.run([systemd_analyze, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def test_unit_is_valid(analyze: Callable[..., str], tmp_path: Path) -> None:
    text = UNIT.read_text()
    program = "/opt/digit-serving/bin/digit-serving"
    assert text.count(f"ExecStart={program}") == 1
    copy = tmp_path / UNIT.name
    copy.write_text(text.replace(program, "/bin/true"))  # it must exist
    socket_unit = tmp_path / SOCKET.name
    socket_unit.write_text(SOCKET.read_text())
    analyze("verify", "--man=no", copy, socket_unit)


def test_exposure_is_low(analyze: Callable[..., str]) -> None:
    analyze("security", "--offline=true", f"--threshold={MAX_EXPOSURE}", UNIT)


def names(analyze: Callable[..., str], group: str, known: set[str] | None = None) -> set[str]:
    """Expand a group of system calls, which may hold others."""
    found: set[str] = set()
    for line in analyze("syscall-filter", group).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= names(analyze, word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def test_server_keeps_to_the_system_calls(
    analyze: Callable[..., str],
    program: Callable[[str, str], Path],
    models: Path,
    images: Images,
    tmp_path: Path,
) -> None:
    filters = re.findall(r"(?m)^SystemCallFilter=(~?)(@[\w-]+)$", UNIT.read_text())
    assert filters == [("", "@system-service"), ("~", "@privileged")]
    allowed = names(analyze, "@system-service") - names(analyze, "@privileged")
    trace = tmp_path / "trace"
    command = [str(program("strace", "strace")), "-f", "-qq", "-o", str(trace),
               *serve_command(models, "--workers", "2", "--http-port", "0")]  # fmt: skip
    with started(command) as server:
        with Client(server.address) as client:
            client.classify(images)
        subprocess.check_call(["curl", "-sSf", "-o", tmp_path / "page", server.facts["http"]])
        ours = int(trace.read_text().split()[0])
        for number in (signal.SIGHUP, signal.SIGTERM):
            subprocess.check_call(["kill", f"-{number}", str(ours)])
        assert server.process.wait(30) == 0
    lines = trace.read_text()
    called = set(re.findall(r"(?m)^\d+ +(\w+)\(", lines))
    assert len(called) > 30
    # libuv looks whether it may use io_uring, and does without.
    assert called - allowed <= {"io_uring_setup", "io_uring_enter", "io_uring_register"}
    assert not re.search(r"PROT_WRITE\|PROT_EXEC", lines), "MemoryDenyWriteExecute forbids it"


def test_settings_of_the_unit_are_the_servers() -> None:
    text = UNIT.read_text()
    assert int(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", text)[0]) > 30  # --drain
    unusable = [*serve_command(Path("/no/such/model"))]
    code = subprocess.run([sys.executable, *unusable[1:]], capture_output=True).returncode
    assert f"RestartPreventExitStatus={code}" in text
