"""Targets: servers that we start, any Open Inference Protocol server, and their calls."""

import http.client
import os
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path
from time import perf_counter, sleep

import grpc

from benchmarks.calls import CallRequest
from benchmarks.clients import ClientLoad
from benchmarks.in_process import InProcessLoad
from benchmarks.methods import CLASSIFY, INFER_BINARY, INFER_JSON, MODEL_INFER, RpcMethod
from benchmarks.network import Generator, Load, NetworkLoad, count_failed, on_cores
from benchmarks.others import PEERS, NotMeasured, peer_process
from benchmarks.workload import Workload
from serving.commandline.parser import PREFIX

IN_PROCESS = "onnxruntime"
CATALOGUE = {
    "plain": "the grpcio server of a tutorial, for digits",
    "grpcio": "our server, grpcio transport",
    "grpcio-infer": "the same, called by ModelInfer",
    "h2": "our server, h2 transport",
    "h2-infer": "the same, called by ModelInfer",
    "http-json": "our server over HTTP, numbers as JSON",
    "http-binary": "the same, tensors as bytes",
    IN_PROCESS: "no server: ONNX Runtime in a process, each caller a thread (needs --model)",
}
OURS = {"gRPC": "h2-infer", "JSON": "http-json", "bytes": "http-binary"}
"""Our server by the protocol in which it is compared."""
PRODUCT = "digit-serving"
_OWN = ("h2", "grpcio", "grpcio-infer")
"""Others of our targets."""
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_START_TIMEOUT_S, _RETRY_S = 60.0, 0.2
"""How long a peer may take until it answers, and how often it is asked."""
_RIGHT_SHARE = 0.95
"""The share of digits that must be the fp32 model's; int8 may well differ in one."""
_MESSAGES, _MESSAGES_BYTES = 256, 4 << 20
"""How many different messages the calls of a run have at most, and how long they are together."""
_LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


@dataclass(frozen=True, kw_only=True, slots=True, order=True)
class Spec:
    """A target and its settings: the key of results."""

    target: str
    """A name of the catalogue, of `Setting.addresses` or of `Setting.checkouts`."""
    device: str = "cpu"
    """"cpu" or "cuda"."""
    precision: str = "fp32"
    """"fp32" or "int8"."""
    workers: int = 1
    """Processes of a server."""
    threads: int = 0
    """Threads of a run, of our server; 0 leaves them to it."""
    client: str = ""
    """The client that calls it, one of `benchmarks.clients`; empty for the load generator."""

    def __str__(self) -> str:
        workers = f"x{self.workers}" if self.workers > 1 else ""
        threads = f"{self.threads}-thread" if self.threads else ""
        by = f"by {self.client}" if self.client else ""
        words = (self.target, self.precision, self.device, workers, threads, by)
        return " ".join(word for word in words if word not in ("fp32", "cpu", ""))


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Setting:
    """The environment of targets."""

    models: Path
    """The repository of the digits' model."""
    model: Path | None
    """A file to measure instead."""
    workload: Workload
    """The rows of the calls."""
    cores: list[int]
    """Where a target may run."""
    addresses: Mapping[str, str]
    """Name to host:port of other Open Inference Protocol servers."""
    checkouts: Mapping[str, Path]
    """Name to folder of other checkouts of this project, whose server is to be started."""
    generator: Generator
    """Sends requests to those behind an address."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Running:
    """A target that has answered a first request rightly."""

    load: Load
    """Sends it requests."""
    startup_s: float | None
    """From nothing to the first answer."""
    pid: int | None = None
    """Its process; None if it was not started here."""


def product_of(target: str) -> str:
    """Return the name of a target's product, for readers."""
    if target in PEERS:
        return PEERS[target].product
    if target in OURS.values() or target in _OWN:
        return PRODUCT
    return "a plain grpcio server" if target == "plain" else target


def protocol_of(target: str) -> str:
    """Return what a target of a comparison is called in; see `RpcMethod.protocol`."""
    if target in PEERS:
        return PEERS[target].method.protocol
    return (_HTTP.get(target) or MODEL_INFER).protocol


def can_be(spec: Spec, checkouts: Container[str]) -> bool:
    """Return whether a target has these settings; others' servers are as they are."""
    others = ("plain", IN_PROCESS)
    is_ours = spec.target in checkouts or (spec.target in CATALOGUE and spec.target not in others)
    if not is_ours:
        return replace(spec, client="") == Spec(target=spec.target)
    return (spec.device, spec.precision) != ("cuda", "int8")


_HTTP = {"http-json": INFER_JSON, "http-binary": INFER_BINARY}


def method_of(target: str, setting: Setting) -> RpcMethod:
    """Return how a target is called."""
    if target in PEERS:
        return PEERS[target].method
    is_infer = setting.model or target in setting.addresses or target.endswith("-infer")
    return _HTTP.get(target) or (MODEL_INFER if is_infer else CLASSIFY)


def command_of(spec: Spec, setting: Setting) -> list[str]:
    """Return the command that starts a server."""
    models = ["--models", str(setting.models.absolute())]
    if spec.target == "plain":
        return [sys.executable, "-m", "benchmarks.plain_server", *models]
    is_ours = spec.target not in setting.checkouts and spec.target not in _HTTP
    transport = spec.target.removesuffix("-infer") if is_ours else "auto"
    precision = "fp32" if setting.model else spec.precision  # an int8 file is a file
    options = ["--device", spec.device, "--precision", precision, "--transport", transport]
    if spec.target in _HTTP:
        options += ["--http-port", "0"]
    if setting.model:
        options += ["--served-name", setting.model.stem]  # also of its int8 file
    if spec.workers > 1:
        options += ["--workers", str(spec.workers)]
    if spec.threads:
        options += ["--threads", str(spec.threads)]
    serve = [sys.executable, "-m", "serving", "serve", "--port", "0", "--metrics-port", "0"]
    return [*serve, *([str(file_of(spec, setting.model))] if setting.model else models), *options]


def file_of(spec: Spec, file: Path) -> Path:
    """Return the file of a target's precision: net.int8.onnx beside net.onnx.

    Raises:
        NotMeasured: there is none.
    """
    if spec.precision == "int8":
        file = file.with_name(f"{file.stem}.int8.onnx")
    if not file.exists():
        raise NotMeasured(f"there is no {file.name}")
    return file.absolute()


@contextmanager
def open_target(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start our server, the plain one, or that of another checkout, on the target's cores.

    A server that was named by its address runs already.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    if spec.target == IN_PROCESS:
        if setting.model is None:
            raise NotMeasured("it needs --model")
        with InProcessLoad(setting.model, setting.workload, setting.cores) as alone:
            yield Running(load=alone, startup_s=perf_counter() - begin_s, pid=alone.pid)
        return
    method, address = method_of(spec.target, setting), setting.addresses.get(spec.target, "")
    with ExitStack() as stack:
        pid, words = listening_on(address) if address else None, {"address": address}
        if spec.target in PEERS:
            if setting.model is None:
                raise NotMeasured("it needs --model")
            peer, file = PEERS[spec.target], file_of(spec, setting.model)
            pid, words = stack.enter_context(peer_process(peer, file, setting.cores))
        elif not address:
            command, checkout = command_of(spec, setting), setting.checkouts.get(spec.target)
            pid, words = stack.enter_context(server_process(command, checkout, setting.cores))
        where = words["http"].removeprefix("http://") if method.is_http else words["address"]

        asked = setting.workload

        @cache
        def request_of(batch: int) -> CallRequest:
            message, *others = messages_of(method, asked, batch)
            return CallRequest(
                address=where,
                path=method.path.format(asked.model),
                headers=method.headers,
                message=message,
                others=others,
                is_http=method.is_http,
            )

        probe, expected = (_post if method.is_http else _call), asked.answers
        request = request_of(len(expected) if expected else 1)
        try:
            answer = _first_answer(probe, request, pid if spec.target in PEERS else None)
        except OSError as err:
            raise NotMeasured(f"it does not answer: {err}") from err
        compared = asked.outputs if spec.precision == "fp32" else None
        if compared is not None and (wrong := method.difference(answer, compared)):
            raise NotMeasured(wrong)
        if expected:
            pairs = zip(method.decode(answer), expected, strict=True)
            share = sum(digit == right for digit, right in pairs) / len(expected)
            if share < _RIGHT_SHARE:
                raise NotMeasured(f"it gives other digits: only {share:.0%} are the model's")
        load: Load = NetworkLoad(setting.generator, request_of, probe, _counter(words))
        if spec.client:
            load = ClientLoad(spec.client, where, asked, setting.generator.cores)
        yield Running(
            load=load,
            startup_s=None if address else perf_counter() - begin_s,
            pid=pid,
        )


def messages_of(method: RpcMethod, asked: Workload, batch: int) -> list[bytes]:
    """Return the messages of calls with different rows, as many as are different or fit."""
    first = method.encode(asked.model, asked.feeds(batch))
    number = min(asked.num_rows // batch, _MESSAGES, max(1, _MESSAGES_BYTES // max(1, len(first))))
    starts = range(batch, number * batch, batch)
    return [first, *(method.encode(asked.model, asked.feeds(batch, start)) for start in starts)]


def _first_answer(
    probe: Callable[[CallRequest], bytes], request: CallRequest, pid: int | None
) -> bytes:
    """Have a request answered; one to a process of a peer, until it is ready or has ended."""
    end_s = perf_counter() + _START_TIMEOUT_S
    while True:
        try:
            return probe(request)
        except OSError:
            if pid is None or _has_ended(pid) or perf_counter() > end_s:
                raise
            sleep(_RETRY_S)


def _has_ended(pid: int) -> bool:
    """Return whether a child process has ended; its exit code stays for who waits for it."""
    found = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    return found is not None


def _counter(words: Mapping[str, str]) -> Callable[[], Counter[str]]:
    """Return how to count the calls that a server fails: by its metrics, if they are named."""
    address = words.get("metrics", "off")
    return Counter if address == "off" else partial(count_failed, address)


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
    environment = {n: text for n, text in os.environ.items() if not n.startswith(PREFIX)}
    environment[f"{PREFIX}HTTP_PORT"] = "off"  # not an option: other checkouts may not have it
    if checkout:
        environment["PYTHONPATH"] = str(checkout)
    with tempfile.TemporaryFile("w+") as errors:
        with on_cores(cores):
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=errors,
                text=True,
                cwd=checkout,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on
            )
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
