"""Attacks by one peer over HTTP: callers of gRPC and HTTP, and memory, are not affected."""

import os
import random
import resource
import socket
import ssl
import struct
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from urllib.parse import urlsplit

import pytest
import trustme

from digit_classifier import PRETRAINED
from tests.conftest import SEED
from tests.reliability.attacks.beside import MIB, beside, num_files, resident
from tests.serving.http1.test_differential import PIECES, compare, mutated
from tests.support.servers import running_server, serve_command, started, wait_until

TOKEN = "a-token-of-some-length-for-tests"
TIMEOUT_S = 20.0
FLOOD_S = float(os.environ.get("FLOOD_S", "3"))
DUE_S = 0.3
"""The server's processor time while a polite call waits: rounds of some 10 ms, and threads."""
LIVE = b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n"
PAGE = LIVE.replace(b"/v2/health/live", b"/openapi.json")
DIGITS = b"POST /v1/digits HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer %s\r\n" % (
    TOKEN.encode()
)
CHUNKED = DIGITS + b"Transfer-Encoding: chunked\r\n\r\n1;"
JSON = DIGITS + b"Content-Type: application/json\r\n"


def sized(head, body, size=None):
    """Add a body, or as much of it as there is."""
    return head + b"Content-Length: %d\r\n\r\n" % (len(body) if size is None else size) + body


SMALL = sized(JSON, b'{"images": [[' + b"0," * 783 + b"7]]}")


@pytest.fixture(scope="module")
def tokens(tmp_path_factory):
    path = tmp_path_factory.mktemp("tokens") / "tokens"
    path.write_text(TOKEN)
    return str(path)


@pytest.fixture(scope="module")
def victim(tokens):
    with running_server(PRETRAINED, "--http-port", "0", "--token-file", tokens) as server:
        yield server
        assert server.stop() == 0
        log = logged(server)
        assert "ERROR" not in log
        assert log.count("bad HTTP requests") <= 10  # one a minute and port


def logged(server):
    return server.process.stderr.read()


def connect(server, fact="http", timeout_s=TIMEOUT_S):
    place = urlsplit(server.facts[fact] if fact == "http" else f"//{server.facts[fact]}")
    return socket.create_connection((place.hostname, place.port), timeout_s)


def ask(server, request):
    """Ask on a new connection; return the status."""
    with connect(server) as caller:
        caller.sendall(request)
        return int(caller.recv(1 << 16).split()[1])


def assert_served(server, times=5):
    for _ in range(times):
        assert ask(server, LIVE) == 200
        assert ask(server, SMALL) == 200


def push(caller, data, for_s=FLOOD_S, *, reads=True):
    """Send some bytes again and again, and read answers; return how many bytes were taken."""
    num_bytes, end_s = 0, time.monotonic() + for_s
    caller.setblocking(False)
    with suppress(ConnectionError):
        while time.monotonic() < end_s:
            with suppress(BlockingIOError):
                num_bytes += caller.send(data)
            with suppress(BlockingIOError):
                if reads and not caller.recv(1 << 20):
                    break
    return num_bytes


def is_closed(caller):
    with suppress(ConnectionError):
        while caller.recv(1 << 20):
            pass
    return True


ENDLESS = {
    "a field": b"GET / HTTP/1.1\r\nx: ", "fields": b"GET / HTTP/1.1\r\n",
    "a chunk's size": CHUNKED, "trailers": CHUNKED[:-2] + b"0\r\n",
}  # fmt: skip


def test_heads_that_never_end_are_cut_off(victim):
    """All at once, for each lasts until the server's patience is over."""

    def attack(begin):
        with connect(victim) as stranger:
            stranger.sendall(LIVE)
            assert stranger.recv(1000).startswith(b"HTTP/1.1 200")
            stranger.sendall(begin)
            line = b"x: y\r\n" if begin.endswith(b"\n") else b"x"
            push(stranger, line * 10_000, 12)
            stranger.settimeout(TIMEOUT_S)
            return is_closed(stranger)

    with beside(victim, TOKEN, due_s=DUE_S, peak_bytes=20 * MIB), ThreadPoolExecutor(4) as pool:
        ended = dict(zip(ENDLESS, pool.map(attack, ENDLESS.values()), strict=True))
    assert ended == dict.fromkeys(ENDLESS, True)


def test_a_thousand_heads_that_end_late(victim):
    head = LIVE[:-2] + b"x: " + bytes([120]) * 16_000
    with ExitStack() as stack, beside(victim, TOKEN, due_s=DUE_S, peak_bytes=40 * MIB):
        for _ in range(1000):
            stack.enter_context(connect(victim)).sendall(head)
        assert_served(victim)
        stack.close()


def test_more_slow_connections_than_there_is_room_for(victim):
    with ExitStack() as stack, beside(victim, TOKEN, due_s=DUE_S, peak_bytes=40 * MIB):
        strangers = []
        for _ in range(1100):
            strangers.append(stack.enter_context(connect(victim)))
            strangers[-1].sendall(LIVE)
        for byte in LIVE[:3]:
            for stranger in strangers:
                with suppress(ConnectionError):
                    stranger.sendall(bytes([byte]))
            assert_served(victim)
            time.sleep(1)
        stack.close()


FLOODS = {
    "good": LIVE * 2000, "pages": PAGE * 1000, "unknown": LIVE.replace(b"live", b"x") * 2000,
    "digits": SMALL * 100, "no token": b"GET /v2 HTTP/1.1\r\nHost: localhost\r\n\r\n" * 2000,
    "bad": b"\r\n\r\n" * 1000, "continue": (DIGITS + b"Expect: 100-continue\r\n") * 10,
}  # fmt: skip


@pytest.mark.parametrize("reads", [True, False])
@pytest.mark.parametrize("name", FLOODS)
def test_floods_ahead_of_answers(victim, name, reads):
    def attack(_):
        times, end_s = 0, time.monotonic() + FLOOD_S
        while time.monotonic() < end_s:
            with connect(victim) as stranger:
                push(stranger, FLOODS[name], end_s - time.monotonic(), reads=reads)
            times += 1
        return times

    with beside(victim, TOKEN, due_s=DUE_S, peak_bytes=60 * MIB), ThreadPoolExecutor(16) as pool:
        attacks = [pool.submit(attack, number) for number in range(16)]
        assert_served(victim)
        print(sum(each.result() for each in attacks), "connections")


LONG = {
    "nested": sized(JSON, b'{"images": [' + b"[]," * 1_390_000 + b"[]]}"),
    "images": sized(JSON, b'{"images": [' + (b"[" + b"7," * 783 + b"7],") * 2000 + b"[]]}"),
    "tensors": sized(
        JSON.replace(b"/v1/digits", b"/v2/models/digits/infer"),
        b'{"inputs": [{"name": "images", "datatype": "UINT8", "shape": [2000, 784], "data": ['
        + b"7," * (2000 * 784 - 1) + b"7]}]}",
    ),
    "form": sized(
        DIGITS + b"Content-Type: multipart/form-data; boundary=x\r\n",
        (b"--x\r\nContent-Disposition: form-data\r\n\r\n" + bytes(300_000) + b"\r\n") * 99
        + b"--x--\r\n",
    ),
}  # fmt: skip
"""Bodies that take long to decode."""


@pytest.mark.parametrize("name", LONG)
def test_long_bodies_in_a_loop(victim, name):
    def attack(_):
        end_s = time.monotonic() + FLOOD_S
        while time.monotonic() < end_s:
            with suppress(ConnectionError):
                ask(victim, LONG[name])

    with beside(victim, TOKEN, due_s=DUE_S), ThreadPoolExecutor(4) as pool:
        attacks = [pool.submit(attack, number) for number in range(4)]
        for _ in range(5):
            assert ask(victim, LIVE) == 200
        for each in attacks:
            each.result()


def test_answers_that_nobody_reads_are_bounded(victim):
    with ExitStack() as stack, beside(victim, TOKEN, due_s=DUE_S, peak_bytes=200 * MIB):
        for _ in range(500):
            stranger = stack.enter_context(connect(victim))
            push(stranger, PAGE * 100, 0.01, reads=False)
        assert_served(victim)
        stack.close()


def test_uploads_that_stall_leave_room(victim):
    """Each is all that may be kept of a body, and several are more than of all together."""
    part, before = sized(DIGITS, bytes(31 * MIB), 32 * MIB), resident(victim)
    with ExitStack() as stack, beside(victim, TOKEN, due_s=DUE_S, peak_bytes=200 * MIB):
        for _ in range(8):
            stranger = stack.enter_context(connect(victim))
            with suppress(OSError):
                stranger.sendall(part)
            assert_served(victim)
        stack.close()
    wait_until(lambda: resident(victim) - before < 40 * MIB)


def test_silent_connections_leave_files_to_others(tokens):
    limited = ["bash", "-c", 'ulimit -n 256; exec "$@"', "serve"]
    options = ("--http-port", "0", "--token-file", tokens)
    with started([*limited, *serve_command(PRETRAINED, *options)]) as server, ExitStack() as stack:
        with beside(server, TOKEN, due_s=DUE_S):
            for fact in ("http", "metrics"):
                for _ in range(400):
                    with suppress(OSError):
                        stack.enter_context(connect(server, fact, 1.0))
            assert_served(server)
            stack.close()
        assert server.stop() == 0
        assert "new connections wait" not in logged(server)


def test_half_handshakes_are_closed_in_time(tmp_path_factory, tokens):
    folder = tmp_path_factory.mktemp("certificate")
    leaf = trustme.CA().issue_cert("127.0.0.1")
    leaf.private_key_and_cert_chain_pem.write_to_path(folder / "both.pem")
    both = str(folder / "both.pem")
    hello = ssl.MemoryBIO()
    half = ssl.create_default_context().wrap_bio(ssl.MemoryBIO(), hello, server_hostname="x")
    with suppress(ssl.SSLWantReadError):
        half.do_handshake()
    data = hello.read()
    with (
        running_server(
            PRETRAINED, "--http-port", "0", "--tls-cert", both, "--tls-key", both
        ) as server,
        ExitStack() as stack,
    ):
        before = num_files(server)
        strangers = [stack.enter_context(connect(server)) for _ in range(600)]
        for number, stranger in enumerate(strangers):
            stranger.sendall(data[: number % len(data)] if number % 2 else data)
        wait_until(lambda: num_files(server) <= before + 2)
        assert server.stop() == 0
        assert "ERROR" not in logged(server)


def test_resets_and_departures_in_the_middle(victim):
    rng = random.Random(SEED)
    with beside(victim, TOKEN, due_s=DUE_S, peak_bytes=60 * MIB):
        for _ in range(1500):
            with connect(victim) as stranger:
                data = rng.choice([SMALL, SMALL * 3, PAGE * 3, sized(DIGITS, b"no picture")])
                stranger.sendall(data[: rng.randrange(len(data) + 1)])
                how = rng.randrange(4)
                if how == 0:
                    stranger.setsockopt(
                        socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0)
                    )
                elif how == 1:
                    stranger.shutdown(socket.SHUT_WR)
                elif how == 2:
                    stranger.settimeout(0.005)
                    with suppress(OSError):
                        stranger.recv(10)
        assert_served(victim)


@pytest.mark.parametrize("fact", ["http", "metrics"])
def test_mutated_requests(victim, fact):
    rng = random.Random(SEED)
    with beside(victim, TOKEN, due_s=DUE_S, peak_bytes=60 * MIB):
        for _ in range(2000):
            with connect(victim, fact) as stranger, suppress(ConnectionError):
                data = mutated(rng)
                if rng.random() < 0.5:
                    at = rng.randrange(len(SMALL))
                    data = SMALL[:at] + rng.choice(PIECES) + SMALL[at + rng.randrange(3) :] + data
                stranger.sendall(data)
        assert_served(victim)


def test_twenty_thousand_streams_of_requests_are_read_as_h11_reads_them():
    print(compare(20_000, SEED + 1))


@pytest.fixture(scope="module", autouse=True)
def many_files():
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
