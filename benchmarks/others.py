"""Servers of other projects: how each is installed, started and called.

Each has an environment of its own in build/peers, and its code in benchmarks/peers, written as its
documentation does, with its batching on: up to 64 rows, 2 ms; BentoML finds its delay itself, and
Triton joins what waits. Triton is no package: it is measured where `tritonserver` is on the PATH.
"""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from benchmarks.methods import (
    INFER_BINARY,
    INFER_JSON,
    MODEL_INFER,
    MSGPACK,
    RpcMethod,
    json_of,
)
from benchmarks.network import family, on_cores
from serving.commandline.parser import PREFIX

ENVIRONMENTS = Path("build/peers")
CODE = Path(__file__).parent / "peers"
_STOP_TIMEOUT_S = 20.0
_INSTALL_TIMEOUT_S = 900.0


class NotMeasured(Exception):
    """A target can't be measured here; the text says why, and goes into the results."""


@dataclass(frozen=True, slots=True)
class OtherServer:
    """A server of another project."""

    name: str
    """Its name in results: that of its environment, and the protocol behind a hyphen."""
    product: str
    """Its name for readers."""
    packages: tuple[str, ...]
    """What pip installs."""
    method: RpcMethod
    """How it is called."""
    command: Callable[[Path, Path, int], list[str]]
    """Makes the command of its environment's bin, the model and a port."""
    variables: Callable[[Path, int], Mapping[str, str]] = lambda model, port: {}
    """Makes its environment variables of the model and a port."""

    @property
    def waits_alone(self) -> bool:
        """Whether it waits 2 ms for a batch even for a lone caller."""
        return self.product not in _JOIN_AT_ONCE

    @property
    def environment(self) -> str:
        """The name of its environment."""
        return self.name.partition("-")[0]

    @property
    def bin(self) -> Path:
        """The programs of its environment."""
        return (ENVIRONMENTS / self.environment / "bin").absolute()


def _script(name: str) -> Callable[[Path, Path, int], list[str]]:
    """Return how a script is started that takes the model and a port."""
    return lambda programs, model, port: [f"{programs}/python", name, str(model), str(port)]


def _of_model(model: Path, port: int) -> Mapping[str, str]:
    return {"PEER_MODEL": str(model)}


def _packed(model: Path, port: int) -> Mapping[str, str]:
    return {"PEER_MODEL": str(model), "PEER_CODEC": "msgpack"}


def _of_mlserver(model: Path, port: int, used: str = "HTTP") -> Mapping[str, str]:
    ports = {name: str(port if name == used else free_port()) for name in ("HTTP", "GRPC")}
    return {
        "MLSERVER_MODEL_NAME": model.stem.removesuffix(".int8"),
        "MLSERVER_MODEL_IMPLEMENTATION": "mlserver_server.OnnxModel",
        "MLSERVER_MODEL_URI": str(model),
        "MLSERVER_MODEL_MAX_BATCH_SIZE": "64",
        "MLSERVER_MODEL_MAX_BATCH_TIME": "0.002",
        "MLSERVER_PARALLEL_WORKERS": "0",
        "MLSERVER_HOST": "127.0.0.1",
        "MLSERVER_METRICS_PORT": str(free_port()),
        **{f"MLSERVER_{name}_PORT": text for name, text in ports.items()},
    }


def _bentoml(programs: Path, model: Path, port: int) -> list[str]:
    service = "bentoml_server:OnnxService"
    return [f"{programs}/bentoml", "serve", service, "--host", "127.0.0.1", "--port", str(port)]


def _mlserver(programs: Path, model: Path, port: int) -> list[str]:
    return [f"{programs}/mlserver", "start", "."]


def _mosec(programs: Path, model: Path, port: int) -> list[str]:
    address = ["--address", "127.0.0.1", "--port", str(port)]
    return [f"{programs}/python", "mosec_server.py", *address]


def _triton(name: str) -> Callable[[Path, Path, int], list[str]]:
    """Return how Triton is started, with one of its ports: "grpc" or "http"."""
    return lambda _, model, port: [
        sys.executable, "triton_server.py", str(model), name, str(port)
    ]  # fmt: skip


TRITON = "triton"
_JOIN_AT_ONCE = "Triton", "BentoML"
"""Products that join what waits, or find their delay themselves."""
_ROWS = json_of("/predict", has_rows=True)
_MLSERVER, _MOSEC = ("mlserver",), ("mosec", "msgpack")
_EVERY = (
    OtherServer(TRITON, "Triton", (), MODEL_INFER, _triton("grpc")),
    OtherServer("mlserver-grpc", "MLServer", _MLSERVER, MODEL_INFER, _mlserver,
                partial(_of_mlserver, used="GRPC")),
    OtherServer("triton-json", "Triton", (), INFER_JSON, _triton("http")),
    OtherServer("litserve", "LitServe", ("litserve",), json_of("/predict"),
                _script("litserve_server.py")),
    OtherServer("bentoml", "BentoML", ("bentoml",), _ROWS, _bentoml, _of_model),
    OtherServer("mosec", "mosec", _MOSEC, json_of("/inference"), _mosec, _of_model),
    OtherServer("mlserver", "MLServer", _MLSERVER, INFER_JSON, _mlserver, _of_mlserver),
    OtherServer("ray", "Ray Serve", ("ray[serve]",), json_of("/"), _script("ray_server.py")),
    OtherServer("triton-bytes", "Triton", (), INFER_BINARY, _triton("http")),
    OtherServer("mosec-msgpack", "mosec", _MOSEC, MSGPACK, _mosec, _packed),
)  # fmt: skip
PEERS = {peer.name: peer for peer in _EVERY}
"""Servers by name."""
TRITONCLIENT = "tritonclient"
"""The environment of a client."""


def install(name: str, packages: Sequence[str]) -> None:
    """Make an environment in build/peers, unless there is one with these packages.

    Raises:
        NotMeasured: pip failed; the text has its last line.
    """
    folder = ENVIRONMENTS / name
    done, wanted = folder / ".installed", "\n".join(packages)
    if done.exists() and done.read_text() == wanted:
        return
    steps = (
        [sys.executable, "-m", "venv", str(folder)],
        [f"{folder}/bin/python", "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
         *packages],
    )  # fmt: skip
    for step in steps:
        try:
            subprocess.run(
                step, check=True, capture_output=True, text=True, timeout=_INSTALL_TIMEOUT_S
            )
        except subprocess.CalledProcessError as err:
            lines = (err.stderr or err.stdout).strip().splitlines() or ["pip failed"]
            raise NotMeasured(f"it can't be installed: {lines[-1]}") from err
        except (OSError, subprocess.TimeoutExpired) as err:
            raise NotMeasured(f"it can't be installed: {err}") from err
    done.write_text(wanted)


def versions(name: str, packages: Sequence[str]) -> dict[str, str]:
    """Return the versions of an environment's packages, with ONNX Runtime's and Python's."""
    program = ENVIRONMENTS / name / "bin" / "python"
    command = [str(program), "-m", "pip", "list", "--format=json", "--disable-pip-version-check"]
    result = subprocess.run(command, check=True, capture_output=True, text=True)
    wanted = {each.partition("[")[0].partition("==")[0] for each in packages} | {"onnxruntime"}
    found = {each["name"].lower(): each["version"] for each in json.loads(result.stdout)}
    return {each: found[each] for each in sorted(wanted) if each in found}


def free_port() -> int:
    """Return a port that nobody listens on just now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def peer_process(
    peer: OtherServer, model: Path, cores: Sequence[int]
) -> Iterator[tuple[int, dict[str, str]]]:
    """Start a peer on the target's cores; end it, and all that it has started, at the end.

    Yields:
        Its process, and its address, of HTTP or of gRPC; whether it answers is for the caller to
        find out.

    Raises:
        NotMeasured: it is not installed.
    """
    port = free_port()
    command = peer.command(peer.bin, model.absolute(), port)
    if not Path(command[0]).exists():
        raise NotMeasured("it is not installed: `make bench-peers` installs it")
    kept = {name: text for name, text in os.environ.items() if not name.startswith(PREFIX)}
    kept |= {"ORT_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": str(len(cores))}
    kept |= peer.variables(model.absolute(), port)
    with tempfile.TemporaryFile("w+") as output:
        with on_cores(cores):
            process = subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=CODE,
                env=kept,
                start_new_session=True,
            )
        try:
            address = f"127.0.0.1:{port}"
            yield process.pid, {"http": address, "address": address}
        except NotMeasured as err:
            raise NotMeasured(_reason(err, process, output.fileno())) from err
        finally:
            _end(process)


def _reason(error: NotMeasured, process: "subprocess.Popen[bytes]", output: int) -> str:
    """Return why a peer was not measured: its last line, if it has ended."""
    if process.poll() is None:
        return str(error)
    with os.fdopen(os.dup(output), "r", errors="replace") as text:
        text.seek(0)
        lines = text.read().strip().splitlines()
    return f"it ended: {lines[-1][:200]}" if lines else f"it ended with {process.returncode}"


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End a process and its descendants, also those that have left its session."""
    members = list(family(process.pid))
    process.terminate()
    with suppress(subprocess.TimeoutExpired):
        process.wait(_STOP_TIMEOUT_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    for pid in members[1:]:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    process.wait()
