"""A server takes the socket that systemd has opened, and answers callers who came before it."""

import socket
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from serving import Client
from serving.images import Images
from tests.support.servers import RunningServer, program, serve_command

ACTIVATED = 'exec 3<&{} && LISTEN_FDS=1 LISTEN_PID=$$ exec "$@"'
"""As systemd starts a service: the socket is file descriptor 3, the process id is the program's."""


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_UNIX])
def test_socket_of_systemd_is_taken(
    family: socket.AddressFamily, models: Path, images: Images, tmp_path: Path
) -> None:
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
            with program(command, pass_fds=[listener.fileno()], stdout=subprocess.PIPE) as process:
                assert process.stdout is not None
                server = RunningServer(process, process.stdout.readline())
                assert server.address == target
                assert len(early.result(60)) == 2
                assert server.stop() == 0


def test_socket_for_another_process_is_not_taken(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LISTEN_PID", "1")
    monkeypatch.setenv("LISTEN_FDS", "1")
    with program(serve_command(models), stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        server = RunningServer(process, process.stdout.readline())
        assert server.address.startswith("127.0.0.1:")
        assert server.stop() == 0
