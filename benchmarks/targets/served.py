"""Targets behind an address: servers that we start, and any Open Inference Protocol server."""

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from time import perf_counter

import grpc
import numpy as np

from benchmarks.load.network import Encode, NetworkLoad
from benchmarks.processes import on_cores
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from commandline.parser import PREFIX
from serving.images import IMAGE_BYTES, Images
from serving.predictions import NUM_CLASSES
from serving.rpc import wire

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_PARALLEL_CALLS = 8
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_RIGHT = 0.95
"""Share of the digits that must be the fp32 model's; int8 may well differ in one."""

_OURS = (sys.executable, "-m", "serving", "serve", "--port", "0", "--models")
_COMMANDS: dict[str, tuple[str, ...]] = {
    "native": ("--transport", "native"),
    "grpcio": ("--transport", "grpcio"),
    "grpcio-stream": ("--transport", "grpcio"),
}
"""Our server, by the name of the target, and its options."""
_PEERS = {
    "plain": ("benchmarks.targets.plain_server",),
    "echo": ("benchmarks.targets.echo_server", "native"),
    "echo-grpcio": ("benchmarks.targets.echo_server", "grpcio"),
    "bare": ("benchmarks.targets.bare_server",),
}
"""Other servers: a module and its arguments."""

SERVED = (*_COMMANDS, *_PEERS)


@dataclass(slots=True, kw_only=True)
class _Served:
    """A server that has answered a first question."""

    load: NetworkLoad
    pid: int | None = None
    startup_s: float
    parallel_calls: int = _PARALLEL_CALLS
    metrics: str = "off"

    def batch_sizes(self) -> Mapping[str, int]:
        """Read the counts from the server's metrics."""
        if self.metrics == "off":
            return {}
        with urllib.request.urlopen(f"http://{self.metrics}/metrics", timeout=5) as page:
            return batch_sizes_of(page.read().decode())


def batch_sizes_of(page: str) -> dict[str, int]:
    """Read the histogram of batch sizes from a page of Prometheus metrics, each bucket alone."""
    sizes, below = {}, 0
    for line in page.splitlines():
        if line.startswith("digits_batch_images_bucket"):
            bound, _, total = line.partition('le="')[2].partition('"} ')
            sizes[bound], below = int(float(total)) - below, int(float(total))
    return sizes


@contextmanager
def served(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start a server of SERVED on the target's cores.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    with _process(_command(spec, setting), setting.cores) as (process, facts):
        address = facts["address"]
        if not spec.target.startswith("echo"):
            _check(address, _CLASSIFY, encode_digits, _decode_digits, setting)
        streaming = spec.target.endswith("-stream")
        path = _CLASSIFY + ("Stream" if streaming else "")
        load = NetworkLoad(
            setting.generator, address, path, setting.images, encode_digits, streaming=streaming
        )
        yield _Served(
            load=load,
            pid=process.pid,
            startup_s=perf_counter() - begin_s,
            metrics=facts.get("metrics", "off"),
        )


def _environment() -> dict[str, str]:
    """Leave out what sets options: a server has those of its cell, not those of the benchmark."""
    return {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}


@contextmanager
def _process(
    command: Sequence[str], cores: Sequence[int]
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Start a server, wait for its line of facts, and end it at last."""
    with tempfile.TemporaryFile("w+") as errors:
        with on_cores(cores):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, env=_environment(),
                start_new_session=True,  # Ctrl-C is ours to pass on
            )  # fmt: skip
        try:
            assert process.stdout is not None
            with process.stdout:
                line = process.stdout.readline()
                if not line.startswith("serving "):
                    errors.seek(0)
                    raise NotMeasured(
                        (errors.read() or "it did not start").strip().splitlines()[-1]
                    )
                yield process, dict(word.split("=", 1) for word in line.split()[1:])
        finally:
            _end(process)


def _end(process: "subprocess.Popen[str]") -> None:
    process.terminate()
    try:
        process.wait(_STOP_TIMEOUT_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _command(spec: Spec, setting: Setting) -> tuple[str, ...]:
    if spec.target in _PEERS:
        precisions = ("fp32", "int8") if spec.target == "bare" else ("fp32",)
        if spec.device != "cpu" or spec.precision not in precisions or spec.workers > 1:
            raise NotMeasured(f"runs on the CPU, in {' or '.join(precisions)}, in one process")
        module, *arguments = _PEERS[spec.target]
        if spec.target in ("plain", "bare"):
            arguments += ["--models", str(setting.models)]
        if spec.precision != "fp32":
            arguments += ["--precision", spec.precision]
        return (sys.executable, "-m", module, *arguments)
    workers = ("--workers", str(spec.workers)) if spec.workers > 1 else ()
    return (
        *_OURS, str(setting.models), "--device", spec.device, "--precision", spec.precision,
        *workers, "--metrics-port", "0", *_COMMANDS[spec.target],
    )  # fmt: skip


@contextmanager
def open_inference(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Ask somebody's server that speaks the Open Inference Protocol; see `served`."""
    address = setting.addresses[spec.target]
    begin_s = perf_counter()
    _check(address, _MODEL_INFER, encode_infer, _decode_infer, setting)
    load = NetworkLoad(setting.generator, address, _MODEL_INFER, setting.images, encode_infer)
    yield _Served(load=load, startup_s=perf_counter() - begin_s)


def _check(address: str, path: str, encode: Encode, decode: "_Decode", setting: Setting) -> None:
    """Ask a question with a real client and compare the digits: load generators don't look."""
    images = setting.images[: len(setting.answers)]
    with grpc.insecure_channel(address) as channel:
        try:
            method: grpc.UnaryUnaryMultiCallable[bytes, bytes] = channel.unary_unary(path)
            answer = method(encode(images), timeout=_ANSWER_TIMEOUT_S)
        except grpc.RpcError as err:
            raise NotMeasured(f"it does not answer: {err.code().name}") from err
    pairs = zip(decode(answer), setting.answers, strict=True)
    share = sum(digit == right for digit, right in pairs) / len(images)
    if share < _RIGHT:
        raise NotMeasured(f"it gives other digits: only {share:.0%} are the model's")


_Decode = Callable[[bytes], tuple[int, ...]]


def encode_digits(images: Images) -> bytes:
    """Make a ClassifyRequest of images."""
    return wire.encode_request(images.data.cast("B"))


def _decode_digits(answer: bytes) -> tuple[int, ...]:
    return tuple(wire.decode_response(answer).digits.tolist())


def encode_infer(images: Images) -> bytes:
    """Make a ModelInferRequest of images, as the protocol's raw bytes."""
    from serving.rpc import inference_pb

    request = inference_pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="images", datatype="UINT8", shape=[len(images), IMAGE_BYTES])
    request.raw_input_contents.append(images.tobytes())
    return request.SerializeToString()  # type: ignore[no-any-return]


def _decode_infer(answer: bytes) -> tuple[int, ...]:
    from serving.rpc import inference_pb

    (probabilities,) = inference_pb.ModelInferResponse.FromString(answer).raw_output_contents
    return tuple(np.frombuffer(probabilities, "<f4").reshape(-1, NUM_CLASSES).argmax(1).tolist())
