"""Targets behind an address: servers that we start, and any Open Inference Protocol server."""

import os
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import grpc
import numpy as np

from benchmarks.load.cores import on_cores
from benchmarks.load.frames import Request
from benchmarks.load.network import Encode, NetworkLoad
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from commandline.parser import PREFIX
from serving.images import IMAGE_BYTES, Images
from serving.predictions import NUM_CLASSES
from serving.protocols.digits_v1 import wire

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_MODEL_INFER = "/inference.GRPCInferenceService/ModelInfer"
_PARALLEL_CALLS = 8
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0
_RIGHT = 0.95
"""Share of the digits that must be the fp32 model's; int8 may well differ in one."""
_TOKEN = "a-token-of-the-benchmarks"
_CERT = "cert.pem"

OURS = ("h2", "grpcio")
"""Our server, by its transport; a target's name may go on with one of WAYS."""
WAYS = {
    "": _CLASSIFY,
    "-stream": "/digits.v1.DigitClassifier/ClassifyStream",
    "-infer": _MODEL_INFER,
    "-infer-stream": "/inference.GRPCInferenceService/ModelStreamInfer",
    "-tls": _CLASSIFY,
    "-token": _CLASSIFY,
}
"""How our server is asked, by the end of the target's name, and the method that is called."""
_PEERS = {
    "plain": ("benchmarks.targets.plain_server",),
    "echo": ("benchmarks.targets.echo_server", "h2"),
    "echo-grpcio": ("benchmarks.targets.echo_server", "grpcio"),
    "bare": ("benchmarks.targets.bare_server",),
}
"""Other servers: a module and its arguments."""

SERVED = (*(server + way for server in OURS for way in WAYS), *_PEERS)


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
    """Start a server of SERVED, or of another checkout, on the target's cores.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    way = "" if spec.target in _PEERS else split_name(spec.target)[1]
    with tempfile.TemporaryDirectory(prefix="digits-bench-") as name:
        folder = Path(name)
        command = _command(spec, setting, folder)
        checkout = setting.checkouts.get(spec.target)
        with _process(command, checkout, setting.cores) as (process, facts):
            question = Request(
                address=facts["address"],
                path=WAYS[way],
                message=b"",
                streaming=way.endswith("-stream"),
                tls=way == "-tls",
                token=_TOKEN if way == "-token" else "",
            )
            encode, decode = _CODECS[question.path]
            if not spec.target.startswith("echo"):
                cert = (folder / _CERT).read_bytes() if question.tls else None
                _check(question, encode, decode, setting, cert)
            yield _Served(
                load=NetworkLoad(setting.generator, question, setting.images, encode),
                pid=process.pid,
                startup_s=perf_counter() - begin_s,
                metrics=facts.get("metrics", "off"),
            )


def split_name(target: str) -> tuple[str, str]:
    """Return the server that a target's name begins with, and its end, one of WAYS."""
    way = max((each for each in WAYS if target.endswith(each)), key=len)
    return target.removesuffix(way), way


def _environment(checkout: Path | None) -> dict[str, str]:
    """Leave out what sets options: a server has those of its cell, not those of the benchmark."""
    environment = {n: text for n, text in os.environ.items() if not n.startswith(PREFIX)}
    return environment | ({"PYTHONPATH": str(checkout)} if checkout else {})


@contextmanager
def _process(
    command: Sequence[str], checkout: Path | None, cores: Sequence[int]
) -> Iterator[tuple["subprocess.Popen[str]", dict[str, str]]]:
    """Start a server, of this checkout or another; wait for its line of facts; end it at last."""
    with tempfile.TemporaryFile("w+") as errors:
        with on_cores(cores):
            process = subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=errors, text=True, cwd=checkout,
                env=_environment(checkout), start_new_session=True,  # Ctrl-C is ours to pass on
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


def _command(spec: Spec, setting: Setting, folder: Path) -> tuple[str, ...]:
    """Return what to start; certificate and tokens are written into a folder."""
    if spec.target in _PEERS:
        return _peer_command(spec, setting)
    server, way = split_name(spec.target)
    options = ["--device", spec.device, "--precision", spec.precision]
    options += ["--transport", "auto" if spec.target in setting.checkouts else server]
    if spec.workers > 1:
        options += ["--workers", str(spec.workers)]
    if way == "-tls":
        options += _certificate(folder)
    if way == "-token":
        (folder / "tokens").write_text(_TOKEN + "\n")
        options += ["--token-file", str(folder / "tokens")]
    models = str(setting.models.absolute())
    return (
        sys.executable, "-m", "serving", "serve", "--models", models, "--port", "0",
        "--metrics-port", "0", *options,
    )  # fmt: skip


def _peer_command(spec: Spec, setting: Setting) -> tuple[str, ...]:
    precisions = ("fp32", "int8") if spec.target == "bare" else ("fp32",)
    if spec.device != "cpu" or spec.precision not in precisions or spec.workers > 1:
        raise NotMeasured(f"runs on the CPU, in {' or '.join(precisions)}, in one process")
    module, *arguments = _PEERS[spec.target]
    if spec.target in ("plain", "bare"):
        arguments += ["--models", str(setting.models)]
    if spec.precision != "fp32":
        arguments += ["--precision", spec.precision]
    return (sys.executable, "-m", module, *arguments)


def _certificate(folder: Path) -> list[str]:
    """Make a certificate for 127.0.0.1; return the options that have the server use it."""
    cert, key = str(folder / _CERT), str(folder / "key.pem")
    command = (
        "openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
        "-nodes", "-days", "2", "-subj", "/CN=localhost",
        "-addext", "subjectAltName=IP:127.0.0.1", "-out", cert, "-keyout", key,
    )  # fmt: skip
    try:
        subprocess.run(command, capture_output=True, check=True)
    except (OSError, subprocess.SubprocessError) as err:
        raise NotMeasured("needs openssl, to make a certificate") from err
    return ["--tls-cert", cert, "--tls-key", key]


@contextmanager
def open_inference(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Ask somebody's server that speaks the Open Inference Protocol; see `served`."""
    begin_s = perf_counter()
    question = Request(address=setting.addresses[spec.target], path=_MODEL_INFER, message=b"")
    _check(question, encode_infer, _decode_infer, setting, None)
    load = NetworkLoad(setting.generator, question, setting.images, encode_infer)
    yield _Served(load=load, startup_s=perf_counter() - begin_s)


def _check(
    question: Request, encode: Encode, decode: "_Decode", setting: Setting, cert: bytes | None
) -> None:
    """Ask a question with a real client and compare the digits: load generators don't look."""
    images = setting.images[: len(setting.answers)]
    metadata = (("authorization", f"Bearer {question.token}"),) if question.token else None
    credentials = grpc.ssl_channel_credentials(cert) if cert else None
    with (
        grpc.secure_channel(question.address, credentials)
        if credentials
        else grpc.insecure_channel(question.address)
    ) as channel:
        try:
            # Every method is asked as a stream: a unary call is one with one message each way.
            method: grpc.StreamStreamMultiCallable[bytes, bytes]
            method = channel.stream_stream(question.path)
            messages = iter([encode(images)])
            (answer,) = method(messages, timeout=_ANSWER_TIMEOUT_S, metadata=metadata)
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
    from serving.protocols.oip import inference_pb

    request = inference_pb.ModelInferRequest(model_name="digits")
    request.inputs.add(name="images", datatype="UINT8", shape=[len(images), IMAGE_BYTES])
    request.raw_input_contents.append(images.tobytes())
    return request.SerializeToString()  # type: ignore[no-any-return]


def _decode_infer(answer: bytes) -> tuple[int, ...]:
    from serving.protocols.oip import inference_pb

    return _digits_of(inference_pb.ModelInferResponse.FromString(answer))


def _decode_stream_infer(answer: bytes) -> tuple[int, ...]:
    from serving.protocols.oip import inference_pb

    return _digits_of(inference_pb.ModelStreamInferResponse.FromString(answer).infer_response)


def _digits_of(response: Any) -> tuple[int, ...]:
    (probabilities,) = response.raw_output_contents
    return tuple(np.frombuffer(probabilities, "<f4").reshape(-1, NUM_CLASSES).argmax(1).tolist())


_CODECS: dict[str, tuple[Encode, _Decode]] = {
    WAYS[""]: (encode_digits, _decode_digits),
    WAYS["-stream"]: (encode_digits, _decode_digits),
    WAYS["-infer"]: (encode_infer, _decode_infer),
    WAYS["-infer-stream"]: (encode_infer, _decode_stream_infer),
}
"""How each method's messages are written and read."""
