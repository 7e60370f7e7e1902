"""A server under systemd: it takes the sockets that were opened for it, and says how it is."""

import http.client
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor

import pytest

from serving import Client
from tests.support.servers import program, serve_command, started

ACTIVATED = 'exec 3<&{} && LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
"""As systemd starts a service: the socket is file descriptor 3, the process id is the program's."""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_socket_of_systemd_is_taken(family, models, images, tmp_path):
    path = str(tmp_path / "socket")
    with socket.socket(family) as listener, ThreadPoolExecutor(1) as caller:
        listener.bind(path if family == socket.AF_UNIX else ("127.0.0.1", 0))
        listener.listen(16)
        name = listener.getsockname()
        target = f"unix:{name}" if family == socket.AF_UNIX else f"127.0.0.1:{name[1]}"
        with Client(target, timeout_s=60) as client:
            early = caller.submit(client.classify, images[:2])  # it waits in the socket
            serve = serve_command(models, "--transport", "h2", "--host", "192.0.2.1")
            command = ["bash", "-c", ACTIVATED.format(listener.fileno()), "bash", *serve]
            with started(command, pass_fds=[listener.fileno()]) as server:
                assert server.address == target
                assert len(early.result(60)) == 2
                assert server.stop() == 0


def test_socket_for_another_process_is_not_taken(models, monkeypatch):
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    with started(serve_command(models)) as server:
        assert server.address.startswith("127.0.0.1:")
        assert server.stop() == 0


def test_each_socket_of_two_has_its_protocol(models, images):
    with socket.create_server(("127.0.0.1", 0)) as http_port, \
            socket.create_server(("127.0.0.1", 0)) as port:  # fmt: skip
        shell = (
            f"exec 13<&{http_port.fileno()} 14<&{port.fileno()} && exec 3<&13 4<&14 && "
            'LISTEN_FDS=2 LISTEN_FDNAMES=http:grpc LISTEN_PID=$$ exec "$@"'
        )
        serve = serve_command(models, "--http-port", "0")
        files = [http_port.fileno(), port.fileno()]
        command = ["bash", "-c", shell, "bash", *serve]
        with started(command, pass_fds=files) as server:
            with Client(f"127.0.0.1:{port.getsockname()[1]}") as client:
                assert len(client.classify(images[:2])) == 2
            asked = http.client.HTTPConnection("127.0.0.1", http_port.getsockname()[1])
            asked.request("GET", "/v2/health/ready")
            assert asked.getresponse().status == 200
            assert server.stop() == 0


def test_systemd_is_told_what_happens(models, tmp_path):
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as systemd:
        systemd.bind(str(tmp_path / "notify"))
        systemd.settimeout(60)

        def wait_for(state):
            while (told := systemd.recv(1000).decode().split("\n"))[0] != state:
                assert told == ["WATCHDOG=1"]
            assert len(told) == 1 + (state == "RELOADING=1")

        told_to = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "30000"}
        env = {**os.environ, **told_to}
        with program(serve_command(models), stdout=subprocess.PIPE, env=env) as process:
            for state in ("READY=1", "WATCHDOG=1"):
                wait_for(state)
            process.send_signal(signal.SIGHUP)
            for state in ("RELOADING=1", "READY=1", "WATCHDOG=1"):
                wait_for(state)
            process.send_signal(signal.SIGTERM)
            wait_for("STOPPING=1")
            assert process.wait(60) == 0
