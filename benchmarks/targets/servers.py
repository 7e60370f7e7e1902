"""Targets behind an address: servers that we start, and any Open Inference Protocol server."""

import http.client
import os
import subprocess
import sys
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import grpc

from benchmarks.load.cores import on_cores
from benchmarks.load.network import NetworkLoad
from benchmarks.load.trace import CallRequest
from benchmarks.targets import workload
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from benchmarks.targets.workload import RpcMethod
from serving.commandline.options import OLD_PREFIX, PREFIX


@dataclass(frozen=True, slots=True)
class Entry:
    """A target in a few words, and the settings that it can have."""

    about: str
    on_cuda: bool = True
    as_int8: bool = True
    in_workers: bool = True
    is_for_any_model: bool = True

    def lack(self, spec: Spec) -> str:
        """Say which of a spec's settings the target lacks; empty if it has all."""
        if spec.device == "cuda" and not self.on_cuda:
            return "runs on the CPU only"
        if spec.precision == "int8" and not self.as_int8:
            return "has no int8 variant"
        if spec.precision == "int8" and spec.device == "cuda":
            return "int8 runs on the CPU only"
        return "runs in one process" if spec.workers > 1 and not self.in_workers else ""


CATALOGUE = {
    "plain": Entry("the grpcio server of a tutorial", False, False, False, False),
    "grpcio": Entry("our server, grpcio transport", is_for_any_model=False),
    "grpcio-infer": Entry("the same, called by ModelInfer"),
    "h2": Entry("our server, h2 transport", is_for_any_model=False),
    "h2-infer": Entry("the same, called by ModelInfer"),
    "http-json": Entry("our server over HTTP, numbers as JSON"),
    "http-binary": Entry("the same, tensors as bytes"),
}
_ADDRESS = Entry("an Open Inference Protocol server", False, False, False)
_CHECKOUT = Entry("our server in another checkout")


def entry_of(target: str, checkouts: Container[str]) -> Entry:
    """Return the entry of a target: one of CATALOGUE, of another checkout, or by address."""
    return _CHECKOUT if target in checkouts else CATALOGUE.get(target, _ADDRESS)


def open_target(spec: Spec, setting: Setting) -> AbstractContextManager[Running]:
    """Start a target.

    Raises:
        NotMeasured: it lacks a setting; the context raises this, too, where it can't run.
    """
    entry = entry_of(spec.target, setting.checkouts)
    if lack := entry.lack(spec):
        raise NotMeasured(lack)
    if setting.model and not entry.is_for_any_model:
        raise NotMeasured("it serves digits only")
    return open_server(spec, setting)


_HTTP = {"http-json": workload.INFER_JSON, "http-binary": workload.INFER_BINARY}
_PARALLEL_CALLS = 8
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_RIGHT_SHARE = 0.95
"""Of the digits that must be the fp32 model's; int8 may well differ in one."""
_LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


def method_of(target: str, setting: Setting) -> RpcMethod:
    """Return how a target is called."""
    is_infer = setting.model or target in setting.addresses or target.endswith("-infer")
    return _HTTP.get(target) or (workload.MODEL_INFER if is_infer else workload.CLASSIFY)


def command_of(spec: Spec, setting: Setting) -> list[str]:
    """Return the command that starts a server."""
    models = ["--models", str(setting.models.absolute())]
    if spec.target == "plain":
        return [sys.executable, "-m", "benchmarks.targets.plain_server", *models]
    is_ours = spec.target not in setting.checkouts and spec.target not in _HTTP
    transport = spec.target.removesuffix("-infer") if is_ours else "auto"
    options = ["--device", spec.device, "--precision", spec.precision, "--transport", transport]
    if spec.target in _HTTP:
        options += ["--http-port", "0"]
    if spec.workers > 1:
        options += ["--workers", str(spec.workers)]
    serve = [sys.executable, "-m", "serving", "serve", "--port", "0", "--metrics-port", "0"]
    return [*serve, *([str(setting.model.absolute())] if setting.model else models), *options]


@contextmanager
def open_server(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start our server, the plain one, or that of another checkout, on the target's cores.

    A server that was named by its address runs already.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    method, address = method_of(spec.target, setting), setting.addresses.get(spec.target, "")
    with ExitStack() as stack:
        pid, words = listening_on(address) if address else None, {"address": address}
        if not address:
            command, checkout = command_of(spec, setting), setting.checkouts.get(spec.target)
            pid, words = stack.enter_context(server_process(command, checkout, setting.cores))
        where = words["http"].removeprefix("http://") if method.is_http else words["address"]

        asked = setting.workload

        def request_of(batch: int) -> CallRequest:
            return CallRequest(
                address=where, path=method.path.format(asked.model), headers=method.headers,
                message=method.encode(asked.model, asked.feeds(batch)), is_http=method.is_http,
            )  # fmt: skip

        probe, expected = (_post if method.is_http else _call), asked.answers
        try:
            answer = probe(request_of(len(expected) if expected else 1))
        except OSError as err:
            raise NotMeasured(f"it does not answer: {err}") from err
        if expected:
            pairs = zip(method.decode(answer), expected, strict=True)
            share = sum(digit == right for digit, right in pairs) / len(expected)
            if share < _RIGHT_SHARE:
                raise NotMeasured(f"it gives other digits: only {share:.0%} are the model's")
        yield Running(
            load=NetworkLoad(setting.generator, request_of, probe),
            startup_s=None if address else perf_counter() - begin_s,
            parallel_calls=_PARALLEL_CALLS,
            pid=pid,
        )


def _post(request: CallRequest) -> bytes:
    """Have a request of HTTP answered; return the body."""
    with closing(http.client.HTTPConnection(request.address, timeout=_ANSWER_TIMEOUT_S)) as client:
        client.request("POST", request.path, request.body, dict(request.headers))
        answer = client.getresponse()
        if answer.status != http.HTTPStatus.OK:
            raise ConnectionError(f"HTTP {answer.status}")
        return answer.read()


def _call(request: CallRequest) -> bytes:
    """Have a call answered, by grpcio; return the message."""
    with grpc.insecure_channel(request.address) as channel:
        call: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(request.path)
        try:
            return call(request.message, timeout=_ANSWER_TIMEOUT_S)
        except grpc.RpcError as err:
            raise ConnectionError(err.code().name) from err


@contextmanager
def server_process(
    command: Sequence[str], checkout: Path | None, cores: Sequence[int]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Start a server, of this checkout or another; stop it at the end.

    Yields:
        Its process, and the words of its first line, by name.
    """
    # A server has the options of its cell, not those that the environment sets for `run`.
    prefixes = PREFIX, OLD_PREFIX
    environment = {n: text for n, text in os.environ.items() if not n.startswith(prefixes)}
    for prefix in prefixes:  # not an option: other checkouts may not have it
        environment[f"{prefix}HTTP_PORT"] = "off"
    if checkout:
        environment["PYTHONPATH"] = str(checkout)
    with tempfile.TemporaryFile("w+") as errors:
        with on_cores(cores):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=checkout,
                env=environment, start_new_session=True,  # Ctrl-C is ours to pass on
            )  # fmt: skip
        try:
            assert process.stdout is not None
            with process.stdout:
                line = process.stdout.readline()
                if not line.startswith("serving "):
                    errors.seek(0)
                    reason = errors.read() or "it did not start"
                    raise NotMeasured(reason.strip().splitlines()[-1])
                yield process.pid, dict(word.split("=", 1) for word in line.split()[1:])
        finally:
            process.terminate()
            try:
                process.wait(_STOP_TIMEOUT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def listening_on(address: str) -> int | None:
    """Return the process of this machine that listens on host:port; None if none is found."""
    port = f":{int(address.rpartition(':')[2]):04X}"
    tables = [Path("/proc/net", name).read_text().splitlines() for name in ("tcp", "tcp6")]
    rows = [row.split() for table in tables for row in table]
    sockets = {f"socket:[{row[9]}]" for row in rows if row[1].endswith(port) and row[3] == _LISTEN}
    for link in Path("/proc").glob("[0-9]*/fd/*"):
        with suppress(OSError):  # a process that has ended, or is another user's
            if os.readlink(link) in sockets:
                return int(link.parts[2])
    return None
