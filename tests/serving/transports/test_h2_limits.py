"""The h2 transport's limits, each set so low that few frames reach it."""

import gc
import ssl
from contextlib import ExitStack, contextmanager, suppress

import pytest
import trustme
from hyperframe.frame import DataFrame, GoAwayFrame, RstStreamFrame, SettingsFrame

from digit_classifier import PRETRAINED, Classifier
from digit_classifier.wire import encode_request
from serving.config import SecurityConfig, ServerConfig
from serving.http2.limits import Limits as Http2Limits
from serving.transports import loop
from serving.transports.grpc_call import GrpcCall
from serving.transports.port_limits import PortLimits
from tests.support.h2_server import h2_server
from tests.support.raw import HEALTH, REFLECTION, STREAM, WATCH
from tests.support.servers import connected
from tests.support.wire import PREFACE, Connection, message, request_headers

MODEL = PRETRAINED / "digits"
SMALL_WINDOW = Http2Limits(stream_window_bytes=70_000)
TIMEOUT_S = 10.0
TOKEN = "a-token-of-some-length-for-tests"
MAX_MESSAGE_BYTES = 4_000_000
REQUEST = message(encode_request(bytes(range(256)) * 3 + bytes(16)))


@pytest.fixture(scope="module")
def served():
    with Classifier.load(MODEL, device="cpu") as classifier:
        yield classifier


def limits(**changed):
    return PortLimits(max_message_bytes=MAX_MESSAGE_BYTES, **changed)


def with_tokens():
    return ServerConfig(port=0, security=SecurityConfig(tokens=TOKEN))


@contextmanager
def limited(served, **limited):
    """A server with these limits, and a connection to it."""
    with (
        h2_server(served, limits(**limited)) as address,
        Connection(address, TIMEOUT_S) as connection,
    ):
        yield connection


def opened(stack, address):
    connection = stack.enter_context(Connection(address, TIMEOUT_S))
    connection.open()
    return connection


def assert_well(address, **headers):
    with Connection(address, TIMEOUT_S) as connection:
        connection.open()
        assert connection.ask(1, REQUEST, **headers).status == "OK"


def test_half_received_messages_share_one_budget_and_the_largest_goes(served):
    with limited(served, max_buffered_bytes=100_000) as connection:
        connection.open()
        sizes = {1: 20_000, 3: 40_000, 5: 10_000, 7: 20_000, 9: 15_000}
        for stream, size in sizes.items():
            body = message(b"", length=1_000_000) + bytes(size)
            connection.begin(
                stream, *(body[at : at + 10_000] for at in range(0, len(body), 10_000))
            )
        assert connection.reply(3).status == "RESOURCE_EXHAUSTED"
        connection.read()
        assert connection.answered == {3}
        assert_well(connection.address)


def test_streams_that_ended_are_not_kept_until_their_deadline(served):
    with limited(served) as connection:
        connection.open()
        for stream in range(1, 2 * 3000, 2):
            headers = request_headers(__path=STREAM, grpc_timeout="99999999H")
            connection.send(connection.headers(stream, headers), RstStreamFrame(stream, 8))
        assert connection.ask(2 * 3000 + 1, REQUEST).status == "OK"
        gc.collect()
        assert sum(isinstance(each, GrpcCall) for each in gc.get_objects()) < 2000


@pytest.mark.parametrize("path", [WATCH, HEALTH])
@pytest.mark.parametrize("ended", [True, False])
def test_connections_without_a_token_make_room_for_those_with_one(served, path, ended):
    """Calls that need no token don't keep them."""
    flags = ["END_STREAM"] if ended else []
    authorized = {"authorization": f"Bearer {TOKEN}"}
    with (
        h2_server(served, limits(max_connections=8), with_tokens()) as address,
        ExitStack() as stack,
    ):
        trusted = opened(stack, address)
        assert trusted.ask(1, REQUEST, **authorized).status == "OK"
        for _ in range(20):
            connection = opened(stack, address)
            connection.begin(1, __path=path)
            connection.send(DataFrame(1, message(b""), flags=flags))
            connection.read(quiet_s=0.02)
        assert_well(address, **authorized)
        assert trusted.ask(3, REQUEST, **authorized).status == "OK"


def test_connections_with_calls_are_not_closed_for_new_ones(served):
    with h2_server(served, limits(max_connections=4)) as address, ExitStack() as stack:
        busy = [opened(stack, address) for _ in range(4)]
        for connection in busy:
            connection.begin(1, REQUEST[:9])
            connection.read(quiet_s=0.02)
        waits = opened(stack, address)
        waits.call(1, REQUEST)
        assert not waits.read()
        for connection in busy:
            connection.end(1, REQUEST[9:])
            assert connection.reply(1).status == "OK"
        assert waits.reply(1).status == "OK"


@pytest.fixture(scope="module")
def with_tls(tmp_path_factory):
    """A server's configuration with a certificate, and its callers' credentials."""
    folder = tmp_path_factory.mktemp("tls")
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    leaf.cert_chain_pems[0].write_to_path(folder / "cert.pem")
    security = SecurityConfig(tls_cert=folder / "cert.pem", tls_key=folder / "key.pem")
    tls = ssl.create_default_context()
    authority.configure_trust(tls)
    tls.set_alpn_protocols(["h2"])
    return ServerConfig(port=0, security=security), tls


def test_tls_connection_closed_for_a_new_one_in_its_own_round(served, with_tls):
    config, tls = with_tls
    with h2_server(served, limits(max_connections=4), config) as address, ExitStack() as stack:
        for _ in range(100):
            sockets = [stack.enter_context(connected(address, TIMEOUT_S)) for _ in range(8)]
            for sock in sockets:
                with suppress(OSError):
                    sock.sendall(b"\x16\x03\x01\x02")
            stack.close()
        with Connection(address, TIMEOUT_S, tls) as connection:
            connection.open()
            assert connection.ask(1, REQUEST).status == "OK"


def test_reader_that_stops_is_not_answered_any_more(served):
    """Its requests stay in the window; the answers that wait for it are bounded."""
    ask = message(b"\x22\x15grpc.health.v1.Health")
    with limited(served, max_stream_unread_bytes=10_000, http2=SMALL_WINDOW) as connection:
        connection.open(INITIAL_WINDOW_SIZE=0)
        connection.acknowledge()
        connection.open_window(1, 70_000)
        head = connection.headers(1, request_headers(__path=REFLECTION))
        connection.send(head, *[DataFrame(1, ask * 100)] * 24)
        connection.read()
        assert connection.windows[1] == 70_000  # nothing was given back
        assert_well(connection.address)


@pytest.fixture
def sweeps_often(monkeypatch):
    """Have the limits that are seconds looked at every 10 ms."""
    monkeypatch.setattr(loop, "_SWEEP_S", 0.01)


def test_goaway_that_names_a_call_leaves_it_alone(served):
    with limited(served) as connection:
        connection.open()
        connection.begin(1, REQUEST[:9])
        connection.send(
            GoAwayFrame(0, last_stream_id=1), DataFrame(1, REQUEST[9:], flags=["END_STREAM"])
        )
        assert connection.reply(1).status == "OK"
        connection.wait_closed()


@pytest.mark.usefixtures("sweeps_often")
def test_stream_may_be_idle_though_others_began_alike(served):
    """A stream without messages is no call whose message does not arrive."""
    with limited(served, message_s=0.05) as connection:
        connection.open()
        for stream in (1, 3, 5):
            assert connection.ask(stream, REQUEST, __path=STREAM).status == "OK"
        connection.begin(7, __path=STREAM)
        connection.begin(9)
        assert connection.reply(9).status == "DEADLINE_EXCEEDED"  # two sweeps later
        connection.end(7, REQUEST)
        assert connection.reply(7).status == "OK"


@pytest.mark.usefixtures("sweeps_often")
@pytest.mark.parametrize("part", [
    b"", PREFACE[:9], PREFACE, PREFACE + SettingsFrame(0, {3: 100}).serialize()[:-1],
])  # fmt: skip
def test_connection_whose_preface_does_not_arrive_is_closed(served, part):
    with (
        limited(served, handshake_s=0.5) as connection,
        Connection(connection.address, TIMEOUT_S) as slow,
    ):
        connection.open()
        slow.send(part)
        slow.wait_closed()
        assert connection.ask(1, REQUEST).status == "OK"


@pytest.mark.usefixtures("sweeps_often")
def test_connection_without_calls_is_closed_and_one_in_its_preface_is_not(served):
    with (
        h2_server(served, limits(idle_s=0.05, age_s=100.0)) as address,
        Connection(address, TIMEOUT_S) as slow,
        Connection(address, TIMEOUT_S) as idle,
    ):
        slow.send(PREFACE[:9])
        idle.open()
        idle.wait_closed()
        assert idle.goaways == [0]
        head = slow.headers(1, request_headers())
        call = (head, DataFrame(1, REQUEST, flags=["END_STREAM"]))
        slow.send(PREFACE[9:], SettingsFrame(0), *call)
        assert slow.reply(1).status == "OK"
