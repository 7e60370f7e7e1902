"""Why an address can't be listened on, in words that help."""

import errno
import socket
from contextlib import ExitStack

import pytest

from serving.errors import ConfigurationError, Unavailable
from serving.system.host import bind, cannot_listen, reserved_port, with_port
from tests.support.servers import ended, serve_command


@pytest.mark.parametrize(
    ("host", "reason"),
    [
        ("example.invalid", "can't listen on example.invalid:0: the name 'example.invalid' can't"),
        ("a..b", "can't listen on a..b:0: the name 'a..b' can't be resolved"),
        ("192.0.2.7", "can't listen on 192.0.2.7:0: this machine has no such address"),
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


def test_taken_port_is_named():
    with (
        socket.create_server(("127.0.0.1", 0)) as other,
        pytest.raises(Unavailable, match="the port is taken"),
    ):
        bind("127.0.0.1", other.getsockname()[1])


def test_reserved_port_is_taken_though_nobody_listens_yet():
    with reserved_port("127.0.0.1", 0, 2) as (first, _):
        port = first.getsockname()[1]
        with pytest.raises(Unavailable, match="the port is taken"), \
                reserved_port("127.0.0.1", port, 2):  # fmt: skip
            pass


@pytest.mark.parametrize("option", [socket.SO_REUSEADDR, socket.SO_REUSEPORT])
def test_port_with_connections_in_time_wait_can_be_reserved(option):
    """Those of a server with workers, and of one without."""
    with ExitStack() as stack:
        if option == socket.SO_REUSEPORT:
            (listener,) = stack.enter_context(reserved_port("127.0.0.1", 0, 1))
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
    with reserved_port(host, port, 2) as sockets:
        assert {each.getsockname() for each in sockets} == {address}


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
