"""Two replicas and Envoy in front of them, on this machine: `make serve-edge`."""

import argparse
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from deploy.edge import running_envoy, write_configuration

ENVOY = Path(".venv-edge/bin/envoy")


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
        servers = [stack.enter_context(_replica()) for _ in range(options.replicas)]
        write_configuration(folder, servers, (options.port, mtls_port))
        edge = stack.enter_context(running_envoy(options.envoy, folder))
        stack.callback(edge.drain)
        print(_HOW_TO_CALL.format(edge=edge, certs=folder / "certs"), flush=True)
        signal.pause()
    return 0


_HOW_TO_CALL = """\
edge tls={edge.tls} mtls={edge.mtls} admin={edge.admin}

Call it (the certificates in {certs} are made for this run):
  .venv/bin/digit-serving classify PICTURE --target {edge.tls} --tls-ca {certs}/client-ca.pem
  ... --target {edge.mtls} --tls-cert {certs}/client-cert.pem --tls-key {certs}/client-key.pem
Ctrl-C drains and ends all."""


@contextmanager
def _replica() -> Iterator[str]:
    """Start a server, yield its address, drain it."""
    command = [sys.executable, "-m", "serving", "serve", "--port", "0", "--metrics-port", "0",
               "--http-port", "off"]  # fmt: skip
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    assert process.stdout is not None
    try:
        line = process.stdout.readline()
        if not line:
            sys.exit(process.wait())  # it has said why
        yield dict(word.split("=", 1) for word in line.split()[1:])["address"]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


def _interrupt(*_: object) -> None:
    raise KeyboardInterrupt


if __name__ == "__main__":
    sys.exit(main())
