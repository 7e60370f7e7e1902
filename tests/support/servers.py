"""Servers for the tests: real processes, and one that answers in any way a test likes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from digit_classifier.pb.digits.v1 import digits_pb2

STOP_TIMEOUT_S = 20.0
on_both = pytest.mark.parametrize("transport", ["h2", "grpcio"], indirect=True, scope="session")
"""Marks the tests that show once that grpcio has each duty, too; all others run on h2 alone."""


def connected(address, timeout_s=20.0):
    """Connect to "HOST:PORT", or to the port of an "http://HOST:PORT"."""
    host, _, port = address.removeprefix("http://").rpartition(":")
    return socket.create_connection((host, int(port)), timeout_s)


@dataclass
class RunningServer:
    """A `digit-serving serve` that has said it is ready."""

    process: subprocess.Popen[str]
    start_line: str

    @property
    def facts(self):
        """The fields of the start line, from text or JSON."""
        if self.start_line.startswith("{"):
            return {name: str(fact) for name, fact in json.loads(self.start_line).items()}
        return dict(word.split("=", 1) for word in self.start_line.split()[1:])

    @property
    def address(self):
        return self.facts["address"]

    def stop(self, number=signal.SIGTERM):
        """Send a signal and wait for the exit code."""
        self.process.send_signal(number)
        return self.process.wait(STOP_TIMEOUT_S)


def serve_command(models, *options):
    """A server of a repository, or of the files among the options."""
    where = [] if models is None else ["--models", str(models)]
    return [sys.executable, "-m", "serving", "serve", *where, "--port", "0",
            "--metrics-port", "0", "--http-port", "off", "--device", "cpu", *options]  # fmt: skip


@contextmanager
def running_server(models, *options):
    """Start a server on a port that the kernel chooses; kill it if the test leaves it running."""
    with started(serve_command(models, *options)) as server:
        yield server


@contextmanager
def started(command, **options):
    """Start a server, and wait for its first line."""
    with program(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, **options) as process:
        start_line = process.stdout.readline()
        assert start_line, process.stderr.read()
        yield RunningServer(process, start_line)
        process.kill()


@contextmanager
def program(command, **options):
    """Start a program and wait for its end; kill it if the test fails, or runs out of time."""
    with subprocess.Popen(command, text=True, **options) as process:
        try:
            yield process
        except BaseException:
            process.kill()
            raise


def ended(command, **options):
    """Run a program to its end."""
    usual = {"capture_output": True, "text": True, "timeout": 60}
    return subprocess.run(command, **usual | options)


def prepared(statements, command):
    """A command whose process runs these statements of Python before it becomes the program.

    A preexec_fn would run gRPC's handlers of a fork, which write to the child's stderr.
    """
    run = f"import os, sys\n{statements}\nos.execv(sys.argv[1], sys.argv[1:])"
    return [sys.executable, "-c", run, *command]


ONE = digits_pb2.ClassifyResponse(
    digits=[7], probabilities=[0.1] * 10, model_version="1"
).SerializeToString()
"""The answer to one image: a 7."""
MODEL_INFO = digits_pb2.GetModelResponse(max_request_images=4096).SerializeToString()


@contextmanager
def fake_server(classify, model_info=MODEL_INFO):
    """A server that answers Classify in any way a test likes."""
    get_model = (lambda *_: model_info) if isinstance(model_info, bytes) else model_info
    methods = {"Classify": classify, "GetModel": get_model}
    with fake_service("digits.v1.DigitClassifier", methods) as address:
        yield address


@contextmanager
def fake_service(service, methods):
    """A server that answers unary methods in any way a test likes."""
    handlers = grpc.method_handlers_generic_handler(
        service, {name: grpc.unary_unary_rpc_method_handler(each) for name, each in methods.items()}
    )
    server = grpc.server(ThreadPoolExecutor(4))
    server.add_generic_rpc_handlers((handlers,))
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        server.stop(grace=None)


def free_address():
    """An address where nobody listens."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


# Paced servers, and what a process has


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
    """Threads of gRPC's own pool, which grows and shrinks with its load; they are not among the
    others."""

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
    with suppress(OSError):  # the process has ended
        for task in Path(f"/proc/{pid}/task").iterdir():
            with suppress(OSError):  # the thread has
                found += map(int, (task / "children").read_text().split())
    return found
