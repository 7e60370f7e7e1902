"""Two replicas and Envoy in front of them, on this machine: `make serve-edge`.

A replica that dies is started again.
"""

import argparse
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from deploy.edge import running_envoy, write_configuration, write_replicas

ENVOY = Path(".venv-edge/bin/envoy")
_LOOK_S = 0.5


def main(argv: list[str] | None = None) -> int:
    """Run replicas and Envoy until Ctrl-C."""
    parser = argparse.ArgumentParser(
        prog="make serve-edge", description="Start replicas, and Envoy in front of them."
    )
    parser.add_argument("--envoy", type=Path, default=ENVOY, help="its program")
    parser.add_argument("--port", type=int, default=8443, help="of TLS; mTLS has the next one")
    parser.add_argument("--replicas", type=int, default=2, metavar="N")
    options = parser.parse_args(argv)
    if not options.envoy.exists():
        print(f"serve-edge: {options.envoy} is missing: run make serve-edge", file=sys.stderr)
        return 2
    mtls_port = options.port + 1 if options.port else 0
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, _interrupt)
    with ExitStack() as stack, suppress(KeyboardInterrupt):
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="digits-edge-")))
        replicas = [_Replica() for _ in range(options.replicas)]
        for each in replicas:
            stack.callback(each.stop)
            each.start()
        ports = options.port, mtls_port
        write_configuration(folder, _grpc_of(replicas), ports, _http_of(replicas))
        edge = stack.enter_context(running_envoy(options.envoy, folder))
        stack.callback(edge.drain)
        print(_HOW_TO_CALL.format(edge=edge, certs=folder / "certs"), flush=True)
        while edge.process.poll() is None:
            time.sleep(_LOOK_S)
            _restart_dead(replicas, folder)
        print("serve-edge: Envoy has ended", file=sys.stderr)
        return 1
    return 0


_HOW_TO_CALL = """\
edge tls={edge.tls} mtls={edge.mtls} admin={edge.admin}

Call it (the certificates in {certs} are made for this run):
  .venv/bin/digit-serving classify PICTURE --target {edge.tls} --tls-ca {certs}/client-ca.pem
  curl --cacert {certs}/client-ca.pem https://{edge.tls}/v2/models/digits
  ... --target {edge.mtls} --tls-cert {certs}/client-cert.pem --tls-key {certs}/client-key.pem
Ctrl-C drains and ends all."""


class _Replica:
    """A server on ports that the kernel chooses."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self.grpc = self.http = ""
        """Its addresses; empty while it does not run."""

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "serving",
            "serve",
            "--port",
            "0",
            "--metrics-port",
            "0",
            "--http-port",
            "0",
        ]
        self._process = subprocess.Popen(
            command, stdout=subprocess.PIPE, text=True, start_new_session=True
        )
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            sys.exit(self._process.wait())  # it has said why
        facts = dict(word.split("=", 1) for word in line.split()[1:])
        self.grpc, self.http = facts["address"], facts["http"].removeprefix("http://")

    @property
    def is_dead(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def stop(self) -> None:
        """Drain it."""
        if self._process is not None and self._process.stdout is not None:
            self._process.terminate()
            self._process.wait()
            self._process.stdout.close()


def _restart_dead(replicas: Sequence[_Replica], folder: Path) -> None:
    for each in replicas:
        if each.is_dead:
            print(f"serve-edge: the replica {each.grpc} has died", file=sys.stderr)
            each.stop()
            each.start()
            write_replicas(folder, _grpc_of(replicas))
            write_replicas(folder, _http_of(replicas), "replicas-http")


def _grpc_of(replicas: Sequence[_Replica]) -> list[str]:
    return [each.grpc for each in replicas]


def _http_of(replicas: Sequence[_Replica]) -> list[str]:
    return [each.http for each in replicas]


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
