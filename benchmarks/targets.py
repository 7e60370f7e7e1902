"""Targets: servers that we start, any Open Inference Protocol server, and their calls."""

import http.client
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from time import perf_counter

import grpc
import numpy as np

from benchmarks.in_process import InProcessLoad
from benchmarks.loops import GRPC, CallRequest, Headers
from benchmarks.network import Generator, Load, NetworkLoad, count_refused, on_cores
from benchmarks.workload import Workload
from digit_classifier import wire
from serving.commandline.parser import PREFIX
from serving.protocols.oip import inference_pb
from serving.tensors import DTYPES, Array, Feeds

_HEADER_BYTES = 256
"""Length to which the JSON before binary tensors is padded."""
_INFER = "/v2/models/{}/infer"
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
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_RIGHT_SHARE = 0.95
"""The share of digits that must be the fp32 model's; int8 may well differ in one."""
_LISTEN = "0A"
"""The state of a listening socket in /proc/net/tcp."""


@dataclass(frozen=True, slots=True)
class RpcMethod:
    """A method of gRPC, or one of HTTP."""

    path: str
    """/package.Service/Method; for HTTP the path of its URL, with {} for the model."""
    encode: Callable[[str, Feeds], bytes]
    """Makes a request message of a model's name and inputs."""
    decode: Callable[[bytes], list[int]]
    """Reads the digits of an answer message."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether the path is one of HTTP."""


def encode_digits(model: str, feeds: Feeds) -> bytes:
    """Make a ClassifyRequest of (N, 784) uint8."""
    return wire.encode_request(np.ascontiguousarray(feeds["images"]).data.cast("B"))


def encode_infer(model: str, feeds: Feeds) -> bytes:
    """Make a ModelInferRequest, with the protocol's raw bytes."""
    request = inference_pb.ModelInferRequest(model_name=model)
    for name, array in feeds.items():
        request.inputs.add(name=name, datatype=_datatype(array), shape=array.shape)
        request.raw_input_contents.append(array.tobytes())
    return bytes(request.SerializeToString())


def _datatype(array: Array) -> str:
    return next(name for name, dtype in DTYPES.items() if dtype == array.dtype)


def _decode_digits(answer: bytes) -> list[int]:
    return list(wire.decode_response(answer).digits.tolist())


def _decode_infer(answer: bytes) -> list[int]:
    raw = inference_pb.ModelInferResponse.FromString(answer).raw_output_contents[0]
    return _digits(np.frombuffer(raw, "<f4"))


def _encode_json(model: str, feeds: Feeds) -> bytes:
    return json.dumps(
        {
            "inputs": [
                _tensor(name, array) | {"data": array.ravel().tolist()}
                for name, array in feeds.items()
            ]
        }
    ).encode()


def _encode_binary(model: str, feeds: Feeds) -> bytes:
    inputs = [
        _tensor(name, array) | {"parameters": {"binary_data_size": array.nbytes}}
        for name, array in feeds.items()
    ]
    header = json.dumps({"inputs": inputs, "parameters": {"binary_data_output": True}})
    body = b"".join(array.tobytes() for array in feeds.values())
    return header.ljust(_HEADER_BYTES).encode() + body


def _tensor(name: str, array: Array) -> dict[str, object]:
    return {"name": name, "datatype": _datatype(array), "shape": list(array.shape)}


def _decode_json(answer: bytes) -> list[int]:
    return _digits(np.array(json.loads(answer)["outputs"][0]["data"]))


def _decode_binary(answer: bytes) -> list[int]:
    _, end = json.JSONDecoder().raw_decode(answer.decode("latin-1"))  # the JSON is ASCII
    return _digits(np.frombuffer(answer[end:], "<f4"))


def _digits(probabilities: Array) -> list[int]:
    return list(probabilities.reshape(-1, 10).argmax(1).tolist())


CLASSIFY = RpcMethod("/digits.v1.DigitClassifier/Classify", encode_digits, _decode_digits)
MODEL_INFER = RpcMethod("/inference.GRPCInferenceService/ModelInfer", encode_infer, _decode_infer)
INFER_JSON = RpcMethod(
    _INFER, _encode_json, _decode_json, (("content-type", "application/json"),), is_http=True
)
INFER_BINARY = RpcMethod(
    _INFER,
    _encode_binary,
    _decode_binary,
    (("inference-header-content-length", str(_HEADER_BYTES)),),
    is_http=True,
)


class NotMeasured(Exception):
    """A target can't be measured here; the text says why, and goes into the results."""


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

    def __str__(self) -> str:
        workers = f"x{self.workers}" if self.workers > 1 else ""
        words = (self.target, self.precision, self.device, workers)
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


def can_be(spec: Spec, checkouts: Container[str]) -> bool:
    """Return whether a target has these settings; others' servers are as they are."""
    others = ("plain", IN_PROCESS)
    is_ours = spec.target in checkouts or (spec.target in CATALOGUE and spec.target not in others)
    if not is_ours:
        return spec == Spec(target=spec.target)
    return (spec.device, spec.precision) != ("cuda", "int8")


_HTTP = {"http-json": INFER_JSON, "http-binary": INFER_BINARY}


def method_of(target: str, setting: Setting) -> RpcMethod:
    """Return how a target is called."""
    is_infer = setting.model or target in setting.addresses or target.endswith("-infer")
    return _HTTP.get(target) or (MODEL_INFER if is_infer else CLASSIFY)


def command_of(spec: Spec, setting: Setting) -> list[str]:
    """Return the command that starts a server."""
    models = ["--models", str(setting.models.absolute())]
    if spec.target == "plain":
        return [sys.executable, "-m", "benchmarks.plain_server", *models]
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
        if not address:
            command, checkout = command_of(spec, setting), setting.checkouts.get(spec.target)
            pid, words = stack.enter_context(server_process(command, checkout, setting.cores))
        where = words["http"].removeprefix("http://") if method.is_http else words["address"]

        asked = setting.workload

        def request_of(batch: int) -> CallRequest:
            return CallRequest(
                address=where,
                path=method.path.format(asked.model),
                headers=method.headers,
                message=method.encode(asked.model, asked.feeds(batch)),
                is_http=method.is_http,
            )

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
            load=NetworkLoad(setting.generator, request_of, probe, _counter(words)),
            startup_s=None if address else perf_counter() - begin_s,
            pid=pid,
        )


def _counter(words: Mapping[str, str]) -> Callable[[], int]:
    """Return how to count a server's refusals: by its metrics, if its first line names them."""
    address = words.get("metrics", "off")
    return (lambda: 0) if address == "off" else partial(count_refused, address)


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
