"""The usual ports of HTTP and metrics when another program has them, and what else calls HTTP's."""

import socket
import ssl
import subprocess
import urllib.request
from contextlib import ExitStack, suppress
from urllib.error import URLError

import pytest
import trustme

from serving import Client
from serving.config import SecurityConfig, ServerConfig
from serving.errors import Unavailable
from tests.serving.http.peer import HttpPeer
from tests.support.h2_server import server_inside
from tests.support.servers import connected, running_server, serve_command

USUAL = (8080, 9090)
AUTO = ("--http-port", "auto", "--metrics-port", "auto")
TIMEOUT_S = 20.0


@pytest.fixture
def taken():
    """Take the usual ports, if no other program has them."""
    with ExitStack() as stack:
        for port in USUAL:
            other = stack.enter_context(socket.socket())
            other.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            with suppress(OSError):
                other.bind(("127.0.0.1", port))
                other.listen()
        yield


def ports_of(server):
    """The ports of HTTP and metrics."""
    return [int(server.facts[name].rpartition(":")[2]) for name in ("http", "metrics")]


@pytest.mark.parametrize("workers", ["1", "2"])
def test_next_free_port_replaces_a_usual_one_that_is_taken(models, taken, workers):
    with running_server(models, *AUTO, "--workers", workers) as server:
        found = ports_of(server)
        assert all(usual < port < usual + 100 for usual, port in zip(USUAL, found, strict=True))
        assert HttpPeer(server.facts["http"]).get("/v2/health/ready").status == 200
        assert HttpPeer(f"http://{server.facts['metrics']}").get("/readyz").status == 200
        assert server.stop() == 0
        log = server.process.stderr.read()
    for option, usual, port in zip(("http", "metrics"), USUAL, found, strict=True):
        expected = f"port {usual} is taken: using {port}; choose with --{option}-port\n"
        assert log.count(expected) == 1


def test_servers_that_start_at_once_all_serve_http(models):
    """None ends because another one took the usual port while both loaded the model."""
    with ExitStack() as stack:
        processes = [
            stack.enter_context(
                subprocess.Popen(
                    serve_command(models, *AUTO),
                    stdout=subprocess.PIPE,
                    stderr=subprocess.DEVNULL,
                    text=True,
                )
            )
            for _ in range(3)
        ]
        for process in processes:
            stack.callback(process.kill)
        lines = [process.stdout.readline() for process in processes if process.stdout]
    urls = {word for line in lines for word in line.split() if word.startswith("http=")}
    assert len(urls) == 3, lines


def test_usual_port_gives_way_to_one_that_was_asked_for():
    config = ServerConfig(
        port=9091, metrics_port=9090, http_port=9090, usual_ports=("metrics_port",)
    )
    assert config.ports_to_try("metrics_port")[:2] == [9092, 9093]
    assert config.ports_to_try("http_port") == [9090]


def test_workers_say_where_the_page_is(models):
    with running_server(models, "--http-port", "0", "--workers", "2") as server:
        url = server.facts["http"]
        assert server.process.stdout.readline() == f"try it: {url}\n"
        request = f"digit-serving infer digits --target {server.address} 'images=zeros[1,784]'"
        assert server.process.stdout.readline() == f"try it: {request}\n"
        assert HttpPeer(url).get("/v2/health/ready").status == 200


@pytest.mark.parametrize("transport", ["h2", "grpcio"])
def test_grpc_caller_on_this_port_fails_and_others_go_on(transport, models, monkeypatch):
    # Past any deadline: the client asks once, and not again and again.
    monkeypatch.setattr("serving.client.retries._SHORTEST_BACKOFF_S", 3600.0)
    with running_server(models, "--http-port", "0") as server:
        target = server.facts["http"].removeprefix("http://")
        with (
            Client(target, transport=transport, timeout_s=TIMEOUT_S) as client,
            pytest.raises(Unavailable) as refused,
        ):
            client.models()
        assert HttpPeer(server.facts["http"]).get("/v2/health/ready").status == 200
        with connected(server.facts["http"]) as sock:
            sock.sendall(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            received = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 505 ")
    assert b"gRPC has a port of its own" in received
    words = {"h2": "the peer speaks HTTP/1.1", "grpcio": "HTTP status 505"}
    assert words[transport] in str(refused.value)


# HTTPS with the certificates of gRPC, and client certificates


@pytest.fixture(scope="module")
def authority():
    return trustme.CA()


@pytest.fixture(scope="module")
def url(classifier, authority, tmp_path_factory):
    """A server that asks for client certificates."""
    folder = tmp_path_factory.mktemp("certificates")
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    both, ca = folder / "both.pem", folder / "ca.pem"
    security = SecurityConfig(tls_cert=both, tls_key=both, tls_client_ca=ca)
    with server_inside(classifier, http_port=0, security=security) as server:
        yield str(server.http_url)


def test_only_a_caller_with_a_certificate_is_answered(url, authority):
    def ask(url, context):
        with urllib.request.urlopen(f"{url}/v2", timeout=TIMEOUT_S, context=context) as reply:
            return reply.status

    context = ssl.create_default_context()
    authority.configure_trust(context)
    with pytest.raises((URLError, ssl.SSLError, ConnectionError)):
        ask(url, context)
    authority.issue_cert("a-client").configure_cert(context)
    assert ask(url, context) == 200


@pytest.mark.parametrize("request_line", ["GET /v2 HTTP/1.1", "POST /v1/digits HTTP/1.0"])
def test_caller_in_plaintext_reads_that_the_port_speaks_tls(request_line, url):
    with connected(url.replace("https", "http")) as sock:
        sock.sendall(f"{request_line}\r\nhost: a\r\n\r\n".encode())
        received = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert received.startswith(b"HTTP/1.1 400 ")
    assert received.endswith(b"\r\n\r\nthis port speaks TLS: call it by https://\n")


def test_bytes_that_are_neither_get_an_alert_alone(url):
    with connected(url.replace("https", "http")) as sock:
        sock.sendall(b"\0\1\2\3\4\5\6\7" * 4)
        received = b"".join(iter(lambda: sock.recv(65_536), b""))
    assert b"HTTP" not in received
