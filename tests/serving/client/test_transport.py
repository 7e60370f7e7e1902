"""Which transport carries a client's calls, and rules for HTTP/2 of our own."""

import asyncio
import math
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest
import trustme

from digit_classifier import AsyncClassifier, Classifier
from digit_classifier.remote import RemoteDigits
from serving import Client
from serving.client import transport
from serving.client.addresses import address_for_h2, grpc_target
from serving.client.grpcio import _OPTIONS
from serving.client.h2 import session
from serving.client.h2.session import Keepalive
from serving.client.transport import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S
from serving.errors import ConfigurationError, DeadlineExceeded, ServingError, Unavailable
from serving.http2 import frames
from serving.http2.frames import frame
from serving.protocols.status import StatusCode
from tests.support.fakes import TIMEOUT_S
from tests.support.servers import MODEL_INFO, ONE
from tests.support.wire import peers


@pytest.mark.parametrize(
    ("target", "host"),
    [
        ("127.0.0.1:1", "127.0.0.1"),
        ("localhost:2", "localhost"),
        ("[::1]:3", "::1"),
        ("digits:4", None),  # a name may stand for several servers
        ("127.0.0.1:1,127.0.0.1:2", None),
        ("dns:///localhost:1", None),
        ("ipv4:127.0.0.1:1", None),
        ("unix:/run/digits", None),
        ("localhost", None),
    ],
)
def test_auto_is_h2_for_one_address(target, host):
    address = address_for_h2("auto", target)
    assert (address and address.host) == host


def test_auto_is_grpcio_on_windows(monkeypatch):
    monkeypatch.delattr("select.poll")
    assert address_for_h2("auto", "127.0.0.1:1") is None
    with pytest.raises(ConfigurationError, match="Windows"):
        Classifier.connect("127.0.0.1:1", transport="h2")


def test_auto_is_grpcio_behind_a_proxy(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:1")
    assert address_for_h2("auto", "127.0.0.1:1") is None


def test_h2_takes_a_name_and_refuses_what_only_grpcio_can():
    assert address_for_h2("h2", "digits:1") is not None
    for target in ("a:1,b:2", "dns:///a:1", "unix:/run/a"):
        with pytest.raises(ConfigurationError, match="grpcio"):
            Classifier.connect(target, transport="h2")
    with pytest.raises(ConfigurationError, match="auto, h2 or grpcio"):
        Classifier.connect("a:1", transport="quic")


def answer_all(peer):
    for stream, path in peer.calls():
        peer.answer(stream, MODEL_INFO if path.endswith("GetModel") else ONE)


def classify(address, image, **options):
    """Ask once with each client."""

    async def ask():
        async with AsyncClassifier.connect(address, transport="h2", **options) as client:
            return (await client.classify(image))[0].digit

    def ask_from_thread():
        with Classifier.connect(address, transport="h2", **options) as client:
            return client.classify(image)[0].digit

    outcomes: list[int | ServingError] = []
    for each in (ask_from_thread, lambda: asyncio.run(ask())):
        try:
            outcomes.append(each())
        except ServingError as err:
            outcomes.append(err)
    return outcomes


@pytest.mark.usefixtures("each_loop")
def test_call_behind_a_goaway_goes_to_the_next_connection(image):
    def answer_one_then_go(peer):
        calls = peer.calls()
        stream, _ = next(calls)
        peer.answer(stream, MODEL_INFO)
        next(calls)
        peer.http2.send_goaway(last_stream_id=stream)
        peer.flush()
        while peer.socket.recv(65_536):  # until the client has left
            pass

    scripts = (answer_one_then_go, answer_all)
    with peers(*scripts, *scripts) as address:
        assert classify(address, image) == [7, 7]


def test_connection_that_was_closed_while_idle_is_replaced(image):
    def answer_two(peer):
        calls = peer.calls()
        for message in (MODEL_INFO, ONE):
            peer.answer(next(calls)[0], message)

    with (
        peers(answer_two, answer_all) as address,
        Classifier.connect(address, transport="h2") as client,
    ):
        assert client.classify(image)[0].digit == 7
        assert client.classify(image)[0].digit == 7


def ending(*trailers):
    def refuse(peer):
        for stream, _ in peer.calls():
            peer.answer(stream, b"", trailers)

    return refuse


def answering(status):
    def refuse(peer):
        for stream, _ in peer.calls():
            peer.http2.send_response(stream, ((b":status", status),), end_stream=True)
            peer.flush()

    return refuse


def babble(peer):
    peer.socket.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n" * 9)
    while peer.socket.recv(65_536):
        pass


@pytest.mark.usefixtures("each_loop")
@pytest.mark.parametrize(
    "script",
    [
        *(ending(field) for field in
          ((b"grpc-status", b"x"), (b"grpc-status", b"4" * 5000), (b"other", b"0"))),
        *map(answering, (b"404", b"503", b"200")), babble,
    ],
)  # fmt: skip
def test_what_is_no_answer_of_grpc_is_unavailable(image, script, monkeypatch):
    # Past any deadline: the client asks once, and not again and again.
    monkeypatch.setattr("serving.client.retries._SHORTEST_BACKOFF_S", 3600.0)
    with peers(*[script] * 99) as address:
        for outcome in classify(address, image, timeout_s=TIMEOUT_S):
            assert isinstance(outcome, Unavailable)


@pytest.mark.usefixtures("each_loop")
def test_server_of_tls_without_http2_is_named_as_such(image, tmp_path):
    authority = trustme.CA()
    authority.cert_pem.write_to_path(tmp_path / "ca.pem")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)

    def shake_hands(peer):
        with context.wrap_socket(peer.socket, server_side=True) as sock:
            sock.recv(65_536)

    with peers(*[shake_hands] * 2, speaks_first=False) as address:
        outcomes = classify(address, image, tls_ca=tmp_path / "ca.pem")
    reason = "TLS handshake failed: handshake: the server does not speak HTTP/2"
    assert [str(outcome) for outcome in outcomes] == [f"{address}: {reason}"] * 2


@pytest.mark.parametrize(
    ("timeout_s", "text"),
    [(0.0, b"1m"), (0.0123, b"13m"), (9.9999, b"10000m"), (1e6, b"278H"), (math.inf, b"99999999H")],
)
def test_timeout_is_sent_with_two_digits(timeout_s, text, monkeypatch):
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: 5.0))
    calls = session.Session("x:1", "http")
    calls.start(session.ClientCall(5.0 + timeout_s), "/a.B/C", b"", ())
    assert b"grpc-timeout" + bytes((len(text),)) + text in calls.data_to_send()


def test_answer_that_is_too_long_ends_the_call_at_once(monkeypatch):
    """A server may never end it."""
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 1000)
    calls, call = session.Session("x:1", "http"), session.ClientCall(TIMEOUT_S)
    calls.start(call, "/a.B/C", b"", ())
    head = frame(frames.SETTINGS, 0, bytes(4)) + frame(
        frames.HEADERS, frames.END_HEADERS, call.stream, b"\x88"
    )
    part = frame(frames.DATA, 0, call.stream, bytes(300))
    calls.receive(head + part * 3)
    assert call.outcome is None
    calls.receive(part * 3)
    assert isinstance(call.outcome, tuple)
    assert call.outcome[0] is StatusCode.RESOURCE_EXHAUSTED
    assert not calls.calls


def test_answer_whose_prefix_says_that_it_is_too_long_is_not_awaited():
    calls, call = session.Session("x:1", "http"), session.ClientCall(TIMEOUT_S)
    calls.start(call, "/a.B/C", b"", ())
    prefix = b"\0" + (transport.MAX_ANSWER_BYTES + 1).to_bytes(4, "big")
    calls.receive(
        frame(frames.SETTINGS, 0, bytes(4))
        + frame(frames.HEADERS, frames.END_HEADERS, call.stream, b"\x88")
        + frame(frames.DATA, 0, call.stream, prefix)
    )
    assert call.outcome == transport.too_long()


def test_answers_without_a_status_are_none_however_often_they_come():
    calls = session.Session("x:1", "http")
    calls.receive(frame(frames.SETTINGS, 0, bytes(4)))
    for _ in range(3):
        call = session.ClientCall(time.monotonic() + TIMEOUT_S)
        calls.start(call, "/a.B/C", b"", ())
        calls.receive(
            frame(frames.HEADERS, frames.END_HEADERS, call.stream, b"\x88")
            + frame(frames.DATA, 0, call.stream, b"\0\0\0\0\2hi")
            + frame(frames.HEADERS, frames.END_HEADERS | 1, call.stream, b"\0\1x\1y")
        )
        assert isinstance(call.outcome, tuple)
        assert call.outcome[0] is StatusCode.UNKNOWN


def test_call_that_times_out_leaves_the_connection_to_others(image):
    """The thread that reads for all gives up; another one reads on."""
    hangs, has_come = threading.Event(), threading.Semaphore(0)

    def answer_later(peer):
        for number, (stream, path) in enumerate(peer.calls()):
            if path.endswith("GetModel"):
                peer.answer(stream, MODEL_INFO)
            elif number == 1:
                has_come.release()  # never answered: its thread reads
            else:
                has_come.release()
                hangs.wait(TIMEOUT_S)
                peer.answer(stream, ONE)

    with (
        peers(answer_later) as address,
        Client(address, transport="h2", timeout_s=0.5) as connection,
        ThreadPoolExecutor(2) as pool,
    ):
        client = RemoteDigits(connection)
        first = pool.submit(client.classify, image)
        has_come.acquire()
        connection._timeout_s = TIMEOUT_S
        second = pool.submit(client.classify, image)
        has_come.acquire()
        with pytest.raises(DeadlineExceeded):
            first.result(TIMEOUT_S)
        hangs.set()
        assert second.result(TIMEOUT_S)[0].digit == 7


def test_silence_is_death_once_a_question_has_no_answer():
    keepalive = Keepalive()
    keepalive.begin(0.0)
    keepalive.begin(1.0)  # the first one timed out
    assert keepalive.due_s() == KEEPALIVE_TIME_S
    assert not keepalive.should_ping(keepalive.due_s() - 0.1)
    assert keepalive.should_ping(keepalive.due_s())
    assert not keepalive.should_ping(keepalive.due_s())
    assert keepalive.due_s() == KEEPALIVE_TIME_S + KEEPALIVE_TIMEOUT_S <= 3.0
    assert not keepalive.is_dead(keepalive.due_s() - 0.1)
    assert keepalive.is_dead(keepalive.due_s())


def test_silence_begins_again_while_calls_wait():
    keepalive = Keepalive()
    keepalive.begin(0.0)
    assert keepalive.should_ping(keepalive.due_s())
    keepalive.end(2.0, num_calls=2)  # the ping's answer
    assert keepalive.due_s() == 2.0 + 2 * KEEPALIVE_TIME_S
    assert not keepalive.is_dead(100.0)
    keepalive.end(100.0, num_calls=1)  # a call's
    assert keepalive.due_s() == 100.0 + KEEPALIVE_TIME_S
    keepalive.end(101.0, num_calls=0)
    assert keepalive.due_s() == math.inf


# Addresses as people write them, as gRPC's targets


@pytest.mark.parametrize(
    "address",
    ["digits:50051", "dns:///digits:50051", "dns://10.0.0.1/a,b:1", "unix:/run/a,b", "[::1]:50051"],
)
def test_one_address_is_left_to_grpc(address):
    assert grpc_target(address) == (address, None)


@pytest.mark.parametrize(
    ("address", "target"),
    [
        ("10.0.0.1:1,10.0.0.2:2", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("10.0.0.1:1, 10.0.0.2:2,", "ipv4:10.0.0.1:1,10.0.0.2:2"),
        ("[::1]:1,[fe80::2]:2", "ipv6:[::1]:1,[fe80::2]:2"),
        ("10.0.0.1:1,[::1]:2", "ipv6:[::ffff:10.0.0.1]:1,[::1]:2"),
    ],
)
def test_several_become_a_list(address, target):
    assert grpc_target(address) == (target, address.split(",")[0])


def test_grpcs_own_list_gets_an_authority():
    assert grpc_target("ipv4:10.0.0.1:1,10.0.0.2:2") == ("ipv4:10.0.0.1:1,10.0.0.2:2", "10.0.0.1:1")


@pytest.mark.parametrize("address", ["a,b:1", "a:1,b", "a:1,:2", "a:1,b:x"])
def test_each_of_several_needs_a_port(address):
    with pytest.raises(ConfigurationError, match="host:port"):
        grpc_target(address)


def test_name_without_an_address_is_named():
    with pytest.raises(Unavailable, match=r"nowhere\.invalid:2"):
        grpc_target("127.0.0.1:1,nowhere.invalid:2")


@pytest.mark.parametrize(
    "target", ["http://127.0.0.1:50051", "https://models", "127.0.0.1", "localhost", "", "a:1,b"]
)
def test_what_is_no_address_is_refused_at_once(target):
    with pytest.raises(
        ConfigurationError, match=r"expected HOST:PORT, such as 127\.0\.0\.1:50051, got"
    ):
        Classifier.connect(target)


def test_cancelled_call_resets_its_stream_and_no_other():
    calls = session.Session("x:1", "http")
    first, second = (session.ClientCall(time.monotonic() + TIMEOUT_S) for _ in range(2))
    for call in (first, second):
        calls.start(call, "/a.B/C", b"", ())
    calls.data_to_send()
    calls.cancel(first)
    assert calls.data_to_send() == frame(frames.RST_STREAM, 0, first.stream, b"\0\0\0\x08")
    assert list(calls.calls.values()) == [second]
    calls.cancel(first)  # twice is once
    assert calls.data_to_send() == b""


def test_core_has_our_times_and_a_connection_for_each_client():
    options: dict[str, Any] = dict(_OPTIONS)
    assert options["grpc.keepalive_time_ms"] == 1000 * KEEPALIVE_TIME_S
    for name in ("grpc.keepalive_timeout_ms", "grpc.http2.ping_timeout_ms"):
        assert options[name] == 1000 * KEEPALIVE_TIMEOUT_S
    assert options["grpc.http2.max_pings_without_data"] == 0, "waiting calls send no data"
    assert options["grpc.use_local_subchannel_pool"] == 1
    assert options["grpc.initial_reconnect_backoff_ms"] <= options["grpc.max_reconnect_backoff_ms"]


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (OSError("no errno"), "can't connect: no errno"),
        (ConnectionRefusedError(111, "asyncio's own text"), "can't connect: Connection refused"),
        (OSError(-2, "Name or service not known"), "can't connect: Name or service not known"),
        (TimeoutError(), "no answer to the attempt to connect"),
    ],
)
def test_connection_that_failed_has_the_systems_reason(error, text):
    assert session.failure_of(error).text == text
