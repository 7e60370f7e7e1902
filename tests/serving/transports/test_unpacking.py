"""Requests compressed with gzip, over gRPC and HTTP: read as others are, and bounded as others."""

import gzip
import json
import struct
import threading
import zlib
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import grpc
import numpy as np
import pytest
from grpc import StatusCode

from digit_classifier.wire import encode_request
from serving.errors import InvalidRequest, TooLarge
from serving.transports import unpacking
from serving.transports.byte_budget import Budget
from tests.serving.http.peer import HttpPeer
from tests.support.fakes import FakeClock
from tests.support.raw import CLASSIFY, HEALTH, STREAM, TIMEOUT_S, status_of
from tests.support.servers import Footprint, running_server
from tests.support.wire import Connection, message

MIB = 1 << 20
PIXELS = 784
GZIP = grpc.Compression.Gzip
MAX_BYTES = 2 * 4096 * PIXELS + 4096
"""The longest message of a server of digits."""


@pytest.fixture(scope="module", params=["h2", "grpcio"])
def any_server(request, models):
    options = ("--transport", request.param, "--http-port", "0")
    with running_server(models, *options) as server:
        yield server


@pytest.fixture
def channel(any_server):
    with grpc.insecure_channel(any_server.address) as channel:
        yield channel


def packed_call(data):
    """Frame a message with the flag for compression."""
    return message(data, flag=1)


@pytest.mark.parametrize("number", [1, 3, 4096], ids=["small", "odd", "on a thread"])
def test_compressed_calls_are_answered_as_others(channel, images, number):
    request = encode_request(np.resize(images, (number, PIXELS)).tobytes())
    ask = channel.unary_unary(CLASSIFY)
    answer = ask(request, timeout=TIMEOUT_S, compression=GZIP)
    assert answer == ask(request, timeout=TIMEOUT_S)


def test_streams_of_compressed_messages_are_answered_in_order(channel, images):
    requests = [encode_request(np.resize(images, (n, PIXELS)).tobytes()) for n in (1, 900, 2, 60)]
    ask = channel.stream_stream(STREAM)
    answers = [*ask(iter(requests), timeout=TIMEOUT_S, compression=GZIP)]
    assert answers == [*ask(iter(requests), timeout=TIMEOUT_S)]
    assert len(answers) == 4


def test_other_methods_take_compressed_messages(channel):
    assert channel.unary_unary(HEALTH)(b"", timeout=TIMEOUT_S, compression=GZIP) == b"\x08\x01"


def test_another_compression_is_refused(channel):
    ask = channel.unary_unary(CLASSIFY)
    request = encode_request(bytes(50 * PIXELS))
    refused = status_of(
        lambda: ask(request, timeout=TIMEOUT_S, compression=grpc.Compression.Deflate)
    )
    assert refused[0] is StatusCode.UNIMPLEMENTED


def test_limit_of_messages_holds_unpacked(channel):
    ask = channel.unary_unary(CLASSIFY)
    bomb = encode_request(bytes(100 * MIB))
    code, _ = status_of(lambda: ask(bomb, timeout=TIMEOUT_S, compression=GZIP))
    assert code is StatusCode.RESOURCE_EXHAUSTED


REQUEST = encode_request(bytes(PIXELS))
PACKED = gzip.compress(REQUEST)
MANY = gzip.compress(encode_request(bytes(4000 * PIXELS)))
BAD = {
    "no gzip": (b"x" * 30, "INVALID_ARGUMENT"),
    "too short": (PACKED[:10], "INVALID_ARGUMENT"),
    "cut off": (PACKED[:-9] + PACKED[-8:], "INVALID_ARGUMENT"),
    "claims less": (PACKED[:-4] + struct.pack("<I", 10), "INVALID_ARGUMENT"),
    "claims less, on a thread": (MANY[:-4] + struct.pack("<I", 100_000), "INVALID_ARGUMENT"),
    "claims more": (PACKED[:-4] + struct.pack("<I", 5000), "INVALID_ARGUMENT"),
    "claims what it can't hold": (PACKED[:-4] + struct.pack("<I", 6 * MIB), "INVALID_ARGUMENT"),
    "claims more than the limit": (
        PACKED[:-4] + struct.pack("<I", MAX_BYTES + 1), "RESOURCE_EXHAUSTED",
    ),
    "two members": (PACKED + PACKED, "INVALID_ARGUMENT"),
    "another checksum": (PACKED[:-8] + bytes(4) + PACKED[-4:], "INVALID_ARGUMENT"),
    "zlib's format": (zlib.compress(REQUEST), "INVALID_ARGUMENT"),
}  # fmt: skip


@pytest.mark.parametrize("kind", BAD)
def test_malformed_compression_is_refused_and_the_connection_goes_on(server, kind):
    data, status = BAD[kind]
    with Connection(server.address, TIMEOUT_S) as connection:
        connection.open()
        assert connection.ask(1, packed_call(data), grpc_encoding="gzip").status == status
        assert connection.ask(3, packed_call(data), __path=STREAM, grpc_encoding="gzip").status == (
            status
        )
        assert connection.ask(5, packed_call(PACKED), grpc_encoding="gzip").status == "OK"
        assert connection.ask(7, packed_call(PACKED)).status == "UNIMPLEMENTED"


@pytest.mark.parametrize("kind", BAD)
def test_malformed_compression_over_http_is_refused(any_server, kind):
    data, status = BAD[kind]
    peer = HttpPeer(any_server.facts["http"])
    reply = peer.post("/v1/digits", data, content_encoding="gzip")
    assert reply.status == 400
    if status == "RESOURCE_EXHAUSTED":  # HTTP has another limit
        assert "can't hold" in reply.json["detail"]


@pytest.mark.parametrize("number", [1, 200])
def test_compressed_bodies_are_read(any_server, images, number):
    peer = HttpPeer(any_server.facts["http"])
    rows = np.resize(images, (number, PIXELS))
    shape = {"name": "images", "datatype": "UINT8", "shape": list(rows.shape)}
    body = json.dumps({"inputs": [{**shape, "data": rows.ravel().tolist()}]}).encode()
    path = "/v2/models/digits/infer"
    plain = peer.post(path, body)
    assert plain.status == 200
    for name in ("gzip", "x-gzip", "GZIP"):
        assert peer.post(path, gzip.compress(body), content_encoding=name).json == plain.json
    head = json.dumps({"inputs": [{**shape, "parameters": {"binary_data_size": rows.nbytes}}]})
    packed = gzip.compress(head.encode() + rows.tobytes())
    sizes = {"inference_header_content_length": str(len(head))}
    assert peer.post(path, packed, content_encoding="gzip", **sizes).json == plain.json


def test_limit_of_bodies_holds_unpacked(any_server):
    peer = HttpPeer(any_server.facts["http"])
    bomb = gzip.compress(bytes(40 * MIB))
    reply = peer.post("/v2/models/digits/infer", bomb, content_encoding="gzip")
    assert (reply.status, reply.json["reason"]) == (413, "TOO_LARGE")
    reply = peer.post("/v2/models/digits/infer", bomb, content_encoding="br")
    assert (reply.status, "gzip or none" in reply.json["detail"]) == (400, True)


def test_no_more_is_unpacked_than_a_request_claims(monkeypatch):
    made = []
    unpacker = zlib.decompressobj

    class Watched:
        def __init__(self, bits):
            self.inner = unpacker(bits)
            self.unused_data = b""

        def decompress(self, data, most):
            content = self.inner.decompress(data, most)
            made.append(len(content))
            return content

        eof = True

    monkeypatch.setattr(zlib, "decompressobj", Watched)
    with pytest.raises(InvalidRequest, match="its length is another one"):
        unpacking.unpack(gzip.compress(bytes(50 * MIB)), 1000)
    assert made == [1001]


def test_size_is_known_before_a_byte_is_unpacked():
    packed = gzip.compress(bytes(1000))
    assert unpacking.num_bytes_in(packed, 1000) == 1000
    with pytest.raises(TooLarge, match="at most 999 bytes, got 1000, unpacked"):
        unpacking.num_bytes_in(packed, 999)


class Held:
    """A call that has come."""

    def __init__(self, peer):
        self.peer = peer


def test_request_that_has_come_grows_once_there_is_room():
    budget = Budget(FakeClock(), lambda: None)
    budget.max_bytes = 100
    one, another = (Held(SimpleNamespace(address="a")) for _ in range(2))
    budget.hold(one, 10)
    assert budget.has_room(one, 1000), "one always may, or none would ever end"
    budget.hold(one, 70)
    assert not budget.has_room(another, 10)
    budget.hold(one, 0)
    assert budget.has_room(another, 10)


def test_bombs_take_turns_within_the_budget(models):
    """A fast twin of the attack in tests/reliability: 60 times 6 MB, of 6 KB each."""
    bomb = encode_request(bytes(8000 * PIXELS))
    answers = threading.Barrier(12)
    with running_server(models, "--max-buffered-bytes", "16M") as server:

        def attack(_):
            with grpc.insecure_channel(server.address) as channel:
                answers.wait()
                ask = channel.unary_unary(CLASSIFY)
                codes = []
                for _ in range(5):
                    call = ask.future(bomb, timeout=TIMEOUT_S, compression=GZIP)
                    codes.append(call.code())
                return codes

        before = Footprint.of(server.process.pid).resident_bytes
        peaks, has_ended = [before], threading.Event()

        def watch():
            while not has_ended.wait(0.01):
                peaks.append(Footprint.of(server.process.pid).resident_bytes)

        watcher = threading.Thread(target=watch)
        watcher.start()
        with ThreadPoolExecutor(12) as pool:
            found = {code for codes in pool.map(attack, range(12)) for code in codes}
        has_ended.set()
        watcher.join()
        with grpc.insecure_channel(server.address) as channel:
            assert channel.unary_unary(CLASSIFY)(REQUEST, timeout=TIMEOUT_S)
    assert found == {StatusCode.RESOURCE_EXHAUSTED}  # more than 4,096 rows, once they are read
    assert max(peaks) - before < 80 * MIB
