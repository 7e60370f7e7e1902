"""Envoy with the configuration of `deploy/envoy`, as a process."""

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import trustme

_CONFIGURATION = Path(__file__).parent / "envoy"
_START_TIMEOUT_S = 30.0
_DRAIN_S = 10.0


@dataclass(frozen=True, slots=True)
class Edge:
    """A running Envoy."""

    process: subprocess.Popen[bytes]
    folder: Path
    """Its configuration, certificates, and log files."""
    admin: str
    """HOST:PORT of its administration."""

    @property
    def tls(self) -> str:
        """HOST:PORT where callers need no certificate."""
        return self._listener("tls")

    @property
    def mtls(self) -> str:
        """HOST:PORT where callers need a certificate."""
        return self._listener("mtls")

    def ask(self, path: str, data: bytes | None = None) -> str:
        """Ask the administration; POST if there is `data`, which may be empty."""
        with urllib.request.urlopen(f"http://{self.admin}{path}", data, timeout=5) as answer:
            return str(answer.read(), "utf-8")

    def statistic(self, name: str) -> int:
        """Return one of Envoy's counters or gauges; 0 before it is first counted."""
        found = re.search(rf"(?m)^{re.escape(name)}: (\d+)$", self.ask("/stats?filter=" + name))
        return int(found[1]) if found else 0

    def healthy(self) -> set[str]:
        """Return the addresses of the replicas that get calls."""
        flags = re.findall(r"(?m)^replicas::(\S+)::health_flags::healthy$", self.ask("/clusters"))
        return set(flags)

    def failed_calls(self) -> list[str]:
        """Return the lines of the access log that are not about an answered call."""
        lines = (self.folder / "access.log").read_text().splitlines()
        return [line for line in lines if '"status":"OK"' not in line]

    def drain(self) -> None:
        """Ask callers to leave, and wait until their calls have ended."""
        self.ask("/drain_listeners?graceful&skip_exit", b"")
        deadline_s = time.monotonic() + _DRAIN_S
        while self.statistic("http.edge.downstream_rq_active") and time.monotonic() < deadline_s:
            time.sleep(0.05)

    def _listener(self, name: str) -> str:
        listeners = json.loads(self.ask("/listeners?format=json"))["listener_statuses"]
        address = next(each for each in listeners if each["name"] == name)["local_address"]
        return f"localhost:{address['socket_address']['port_value']}"


def write_configuration(
    folder: Path, replicas: Sequence[str], ports: tuple[int, int], http: Sequence[str] = ()
) -> None:
    """Copy `deploy/envoy` with other ports, and make the certificates.

    Args:
        folder: where to; must exist.
        replicas: their addresses, IP:PORT.
        ports: of TLS and of mTLS; 0 lets the kernel choose.
        http: the addresses of their HTTP.
    """
    shutil.copytree(_CONFIGURATION, folder, dirs_exist_ok=True)
    path = folder / "envoy.yaml"
    text = path.read_text()
    for written, wanted in ((8443, ports[0]), (8444, ports[1]), (9901, 0)):
        assert text.count(f"port_value: {written}") == 1
        text = text.replace(f"port_value: {written}", f"port_value: {wanted}")
    path.write_text(text)
    write_replicas(folder, replicas)
    write_replicas(folder, http, "replicas-http")
    (folder / "certs").mkdir()
    write_certificates(folder / "certs", trustme.CA())


def write_replicas(folder: Path, addresses: Sequence[str], cluster: str = "replicas") -> None:
    """Name the replicas, or those of "replicas-http"; a running Envoy takes them over."""
    resource = {
        "@type": "type.googleapis.com/envoy.config.endpoint.v3.ClusterLoadAssignment",
        "cluster_name": cluster,
        "endpoints": [{"lb_endpoints": [_endpoint(address) for address in addresses]}],
    }
    _replace(folder / f"{cluster}.yaml", json.dumps({"resources": [resource]}).encode())


def write_certificates(folder: Path, authority: trustme.CA) -> None:
    """Make a certificate for Envoy and one for a client; a running Envoy takes them over."""
    ours = authority.issue_cert("localhost", "127.0.0.1")
    client = authority.issue_cert("client.example.org")
    _replace(folder / "client-ca.pem", authority.cert_pem.bytes())
    for prefix, issued in (("client-", client), ("", ours)):
        chain = b"".join(blob.bytes() for blob in issued.cert_chain_pems)
        _replace(folder / f"{prefix}key.pem", issued.private_key_pem.bytes())
        _replace(folder / f"{prefix}cert.pem", chain)


@contextmanager
def running_envoy(envoy: Path, folder: Path, *options: str) -> Iterator[Edge]:
    """Start Envoy in a folder that `write_configuration` made; end it at once afterwards."""
    command = [
        str(envoy.resolve()),
        "--config-path",
        "envoy.yaml",
        "--admin-address-path",
        "admin",
        "--disable-hot-restart",
        "--drain-time-s",
        "5",
        "--file-flush-interval-msec",
        "1000",
        *options,
    ]
    with (folder / "access.log").open("wb") as out, (folder / "envoy.log").open("wb") as log:
        process = subprocess.Popen(
            command, cwd=folder, stdout=out, stderr=log, start_new_session=True
        )
        try:
            yield Edge(process, folder, _wait_for_admin(process, folder))
        finally:
            process.terminate()
            process.wait()


def _wait_for_admin(process: subprocess.Popen[bytes], folder: Path) -> str:
    """Wait until Envoy is live; its health checks have been answered then."""
    deadline_s = time.monotonic() + _START_TIMEOUT_S
    while process.poll() is None and time.monotonic() < deadline_s:
        try:
            admin = (folder / "admin").read_text()
            with urllib.request.urlopen(f"http://{admin}/ready", timeout=5):
                return admin
        except (OSError, URLError, ValueError):
            time.sleep(0.05)
    sys.exit("Envoy did not start:\n" + (folder / "envoy.log").read_text()[-2000:])


def _endpoint(address: str) -> dict[str, object]:
    host, _, port = address.rpartition(":")
    socket_address = {"address": host, "port_value": int(port)}
    return {"endpoint": {"address": {"socket_address": socket_address}}}


def _replace(path: Path, content: bytes) -> None:
    """Write a file whole, as those who watch it need."""
    new = path.with_name(path.name + ".new")
    new.write_bytes(content)
    new.rename(path)
