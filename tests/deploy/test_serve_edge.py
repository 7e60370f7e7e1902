"""`make serve-edge`: its processes, its output, and that nothing is left behind."""

import os
import signal
import subprocess
import sys
import urllib.request
from contextlib import suppress
from pathlib import Path

import pytest

from digit_classifier import Classifier
from serving.errors import Unavailable
from tests.support.servers import ended, started, wait_until

COMMAND = [sys.executable, "-m", "deploy.serve_edge", "--port", "0"]


def test_calls_are_answered_and_interrupt_ends_all(envoy, images):
    with started([*COMMAND, "--envoy", str(envoy)]) as edge:
        folder = Path([edge.process.stdout.readline() for _ in range(3)][-1].split()[-1]).parent
        tls, mtls = edge.facts["tls"], edge.facts["mtls"]
        with Classifier.connect(tls, tls_ca=folder / "client-ca.pem") as client:
            assert len(client.classify(images[:2])) == 2
        cert, key = folder / "client-cert.pem", folder / "client-key.pem"
        with Classifier.connect(
            mtls, tls_ca=folder / "client-ca.pem", tls_cert=cert, tls_key=key
        ) as client:
            assert len(client.classify(images[:2])) == 2
        children = children_of(edge)
        assert len(children) == 3
        assert edge.stop(signal.SIGINT) == 0
    assert not [pid for pid in children if Path(f"/proc/{pid}").exists()]
    assert not folder.exists()
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://{edge.facts['admin']}/ready", timeout=5)


def test_replica_that_dies_is_started_again(envoy, images):
    with started([*COMMAND, "--envoy", str(envoy), "--replicas", "1"]) as edge:
        folder = Path([edge.process.stdout.readline() for _ in range(3)][-1].split()[-1]).parent
        with Classifier.connect(edge.facts["tls"], tls_ca=folder / "client-ca.pem") as client:

            def is_answered():
                with suppress(Unavailable):  # by Envoy, while nobody listens behind it
                    return len(client.classify(images[:2])) == 2

            assert is_answered()
            (replica,) = (pid for pid in children_of(edge) if "serving" in command_of(pid))
            os.kill(replica, signal.SIGKILL)
            wait_until(lambda: replica not in children_of(edge))
            wait_until(is_answered)
        assert edge.stop() == 0


def command_of(pid):
    return Path(f"/proc/{pid}/cmdline").read_text()


def children_of(server):
    output = subprocess.check_output(["pgrep", "-P", str(server.process.pid)], text=True)
    return [int(pid) for pid in output.split()]


def test_missing_envoy_is_one_line(tmp_path):
    done = ended([*COMMAND, "--envoy", str(tmp_path / "envoy")])
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
