"""The unit: systemd runs it, and the server needs nothing that it forbids."""

import re
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest

from digit_classifier import Classifier
from tests.deploy.conftest import ROOT
from tests.support.servers import serve_command, started, wait_until

UNIT = ROOT / "deploy" / "systemd" / "digit-serving.service"
PICTURE = ROOT / "docs" / "pictures" / "seven.png"
CLASSIFY = ("/opt/digit-serving/bin/digit-serving", "classify", str(PICTURE), "--target")


@pytest.fixture(scope="module")
def analyze(program):
    systemd_analyze = program("systemd-analyze", "systemd")

    def run(*arguments):
        done = subprocess.run([systemd_analyze, *arguments], capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    return run


def names(analyze, group, known=None):
    """Expand a group of system calls, which may hold others."""
    found: set[str] = set()
    for line in analyze("syscall-filter", group).splitlines()[1:]:
        word = line.strip()
        if word.startswith("@"):
            found |= names(analyze, word)
        elif word and not word.startswith("#"):
            found.add(word)
    return found


def test_server_keeps_to_the_system_calls(analyze, program, models, images, tmp_path):
    filters = re.findall(r"(?m)^SystemCallFilter=(~?)(@[\w-]+)$", UNIT.read_text())
    assert filters == [("", "@system-service"), ("~", "@privileged")]
    allowed = names(analyze, "@system-service") - names(analyze, "@privileged")
    trace = tmp_path / "trace"
    command = [str(program("strace", "strace")), "-f", "-qq", "-o", str(trace),
               *serve_command(models, "--workers", "2", "--http-port", "0")]  # fmt: skip
    with started(command) as server:
        with Classifier.connect(server.address) as client:
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


@pytest.fixture(scope="module")
def inside(program):
    """Start systemd in namespaces of its own; yield a function that runs a command there."""
    program("systemd-analyze", "systemd")
    program("ip", "iproute2")
    script = Path(__file__).with_name("nested_systemd.sh")
    arguments = [str(each) for each in (script, ROOT, sys.executable, sys.base_prefix)]
    spaces = ("--pid", "--fork", "--kill-child", "--mount", "--uts", "--ipc", "--cgroup", "--net")
    if subprocess.run(["unshare", *spaces, "true"], capture_output=True).returncode:
        pytest.skip("this machine allows no namespaces")
    outer = subprocess.Popen(["unshare", *spaces, "bash", *arguments], stderr=subprocess.DEVNULL)

    def first():
        children = Path(f"/proc/{outer.pid}/task/{outer.pid}/children").read_text().split()
        return children[0] if children else "0"

    def run(*command):
        done = subprocess.run(
            ["nsenter", "-t", first(), "-a", *command], capture_output=True, text=True, timeout=60
        )
        return done.stdout.strip() if done.returncode == 0 else ""

    try:
        wait_until(lambda: run("systemctl", "is-active", "basic.target") == "active")
        yield run
    finally:
        outer.kill()
        outer.wait()


def test_systemd_starts_reloads_watches_and_stops_it(inside):
    def shows(**expected):
        shown = inside("systemctl", "show", "digit-serving").splitlines()
        return {f"{name}={value}" for name, value in expected.items()} <= {*shown}

    for command in ("start", "reload"):  # ready when it answers, and when it has looked
        inside("systemctl", command, "digit-serving")
        assert shows(ActiveState="active", NRestarts="0")
    assert inside(*CLASSIFY, "127.0.0.1:50051").endswith(": 7 (100.0 %)")
    for number, name in enumerate(("STOP", "KILL"), 1):  # it is frozen, and it dies
        inside("systemctl", "kill", "--kill-whom=main", f"--signal={name}", "digit-serving")
        wait_until(partial(shows, ActiveState="active", NRestarts=str(number)))
    inside("systemctl", "stop", "digit-serving")
    assert shows(ActiveState="inactive", Result="success")


def test_sockets_start_it(inside):
    sockets = ("digit-serving.socket", "digit-serving-http.socket")
    inside("systemctl", "start", *sockets)
    assert inside("systemctl", "is-active", *sockets).split() == ["active", "active"]
    assert inside(*CLASSIFY, "127.0.0.1:50051").endswith(": 7 (100.0 %)")
    assert inside("curl", "-sSf", "http://127.0.0.1:8080/v2").startswith("{")


def test_settings_of_the_unit_are_the_servers():
    text = UNIT.read_text()
    assert int(re.findall(r"(?m)^TimeoutStopSec=(\d+)$", text)[0]) > 30  # --drain
    unusable = [*serve_command(Path("/no/such/model"))]
    code = subprocess.run([sys.executable, *unusable[1:]], capture_output=True).returncode
    assert f"RestartPreventExitStatus={code}" in text
