"""A server under systemd: it takes the sockets that were opened for it, and says how it is."""

import errno
import http.client
import os
import signal
import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

import pytest

from digit_classifier import Classifier
from serving.errors import ConfigurationError
from serving.system.addresses import cannot_listen, with_port
from serving.system.listening import bind
from serving.system.shared_port import reserved_port
from tests.support.servers import ended, program, serve_command, started

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
        with Classifier.connect(target, timeout_s=60) as client:
            early = caller.submit(client.classify, images[:2])  # it waits in the socket
            serve = serve_command(models, "--transport", "h2", "--host", "192.0.2.1")
            command = ["bash", "-c", ACTIVATED.format(listener.fileno()), "bash", *serve]
            with started(command, pass_fds=[listener.fileno()]) as server:
                assert server.address == target
                assert len(early.result(60)) == 2
                assert server.stop() == 0


def test_socket_of_systemd_is_for_one_process(models):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        serve = serve_command(models, "--workers", "2")
        command = ["bash", "-c", ACTIVATED.format(listener.fileno()), "bash", *serve]
        result = ended(command, pass_fds=[listener.fileno()])
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.endswith("a socket of systemd's serves one process: leave out --workers\n")


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
            with Classifier.connect(f"127.0.0.1:{port.getsockname()[1]}") as client:
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


# Why an address can't be listened on, in words that help


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("example.invalid", "can't listen on example.invalid:0: the name 'example.invalid' can't"),
        ("a..b", "can't listen on a..b:0: the name 'a..b' can't be resolved"),
    ],
)
def test_reason_is_named(host, reason):
    with pytest.raises(ConfigurationError) as caught:
        bind(host, 0)
    assert str(caught.value).startswith(reason)


def test_missing_permission_is_named():  # root may, so the error is made up
    error = cannot_listen("127.0.0.1", 80, OSError(errno.EACCES, "Permission denied"))
    assert "127.0.0.1:80: permission denied, ports below 1024 need root" in str(error)
    assert str(cannot_listen("::1", 8080, OSError(errno.EPERM, ""))).endswith("not permitted")


def test_reserved_port_is_taken_though_nobody_listens_yet():
    with reserved_port("127.0.0.1", 0) as (ours, _):
        port = ours.getsockname()[1]
        with pytest.raises(ConfigurationError, match="the port is taken"), \
                reserved_port("127.0.0.1", port):  # fmt: skip
            pass


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_port_with_connections_in_time_wait_can_be_reserved(option):
    """Those of a server with workers, and of one without."""
    with ExitStack() as stack:
        if option == socket.SO_REUSEPORT:
            listener, _ = stack.enter_context(reserved_port("127.0.0.1", 0))
            listener.setblocking(True)
            listener.listen()
        else:
            listener = stack.enter_context(bind("127.0.0.1", 0, backlog=9))
        address = listener.getsockname()
        callers = [stack.enter_context(socket.create_connection(address)) for _ in range(8)]
        for _ in callers:
            listener.accept()[0].close()  # first: the wait is on this side
        for caller in callers:
            caller.close()
    host, port = address
    with reserved_port(host, port) as (ours, _):
        assert ours.getsockname() == address


def test_ipv6_gets_brackets():
    assert with_port("::1", 7) == "[::1]:7"
    assert with_port("localhost", 7) == "localhost:7"


@pytest.mark.parametrize(
    "options",
    [("--host", "192.0.2.7"), ("--host", "192.0.2.7", "--workers", "2"),
     ("--metrics-host", "192.0.2.7")],
)  # fmt: skip
def test_server_says_it_in_one_line(models, options):
    command = serve_command(models, *options)
    done = ended(command)
    assert (done.returncode, done.stdout) == (2, "")
    *warnings, line = done.stderr.splitlines()
    assert line.endswith("can't listen on 192.0.2.7:0: this machine has no such address")
    assert all("other machines can reach" in warning for warning in warnings)
