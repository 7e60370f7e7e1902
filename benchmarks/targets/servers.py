"""Targets behind an address: servers that we start, and any Open Inference Protocol server."""

import os
import subprocess
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from time import perf_counter

import grpc

from benchmarks.load import http1
from benchmarks.load.cores import on_cores
from benchmarks.load.http1 import HttpRequest
from benchmarks.load.network import NetworkLoad
from benchmarks.load.request import Request
from benchmarks.targets.commands import TOKEN, command_of, method_of, variant_of
from benchmarks.targets.methods import Method
from benchmarks.targets.target import NotMeasured, Running, Setting, Spec
from serving.cli.parser import PREFIX

_PARALLEL_CALLS = 8
_STOP_TIMEOUT_S = 20.0
_ANSWER_TIMEOUT_S = 10.0


def _batch_sizes(metrics: str) -> dict[str, int]:
    """Read the sizes of runs from a server's metrics, which are at host:port."""
    with urllib.request.urlopen(f"http://{metrics}/metrics", timeout=5) as page:
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
def open_server(spec: Spec, setting: Setting) -> Iterator[Running]:
    """Start our server, one of OTHERS, or that of another checkout, on the target's cores.

    A server that was named by its address runs already.

    Raises:
        NotMeasured: it can't run here.
    """
    begin_s = perf_counter()
    address, variant = setting.addresses.get(spec.target), variant_of(spec.target, setting)
    method = method_of(spec.target, setting)
    with ExitStack() as stack:
        pid, facts, cert = None, {"address": address or ""}, None
        if not address:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digits-bench-")))
            command = command_of(spec, variant, setting, folder)
            checkout = setting.checkouts.get(spec.target)
            pid, facts = stack.enter_context(server_process(command, checkout, setting.cores))
            cert = (folder / "cert.pem").read_bytes() if variant == "-tls" else None
        token = TOKEN if variant == "-token" else ""
        request: Request | HttpRequest
        if method.is_http:
            request = HttpRequest(facts["http"].removeprefix("http://"), b"")
            _check(partial(_answer_over_http, request), method, setting)
        else:
            request = Request(facts["address"], method.path, b"", tls=bool(cert), token=token)
            if not spec.target.startswith("echo"):
                _check(partial(_answer_over_grpc, request, cert), method, setting)
        yield Running(
            load=NetworkLoad(setting.generator, request, setting.images, method.encode),
            startup_s=perf_counter() - begin_s,
            parallel_calls=_PARALLEL_CALLS,
            pid=pid,
            batch_sizes=partial(_batch_sizes, facts["metrics"]) if "metrics" in facts else dict,
        )


def _check(answer: Callable[[bytes], bytes], method: Method, setting: Setting) -> None:
    """Call a server and compare the digits: load generators don't look."""
    message = method.encode(setting.images[: len(setting.answers)])
    pairs = zip(method.decode(answer(message)), setting.answers, strict=True)
    share = sum(digit == right for digit, right in pairs) / len(setting.answers)
    if share < method.right_share:
        raise NotMeasured(f"it gives other digits: only {share:.0%} are the model's")


def _answer_over_http(request: HttpRequest, message: bytes) -> bytes:
    try:
        return http1.ask(replace(request, message=message))
    except OSError as err:
        raise NotMeasured(f"it does not answer: {err}") from err


def _answer_over_grpc(request: Request, cert: bytes | None, message: bytes) -> bytes:
    metadata = (("authorization", f"Bearer {request.token}"),) if request.token else None
    channel = (
        grpc.secure_channel(request.address, grpc.ssl_channel_credentials(cert))
        if cert
        else grpc.insecure_channel(request.address)
    )
    with channel:
        # A unary call is a stream with one message each way.
        call: grpc.StreamStreamMultiCallable[bytes, bytes] = channel.stream_stream(request.path)
        try:
            (answer,) = call(iter([message]), timeout=_ANSWER_TIMEOUT_S, metadata=metadata)
        except grpc.RpcError as err:
            raise NotMeasured(f"it does not answer: {err.code().name}") from err
    return bytes(answer)


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
