"""Attacks that would end, fill or stall h2: others are answered, and memory is freed."""

import gzip
import os
import resource
import signal
import struct
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from typing import Any, NamedTuple

import pytest
from hyperframe.frame import (
    DataFrame,
    HeadersFrame,
    PingFrame,
    RstStreamFrame,
    SettingsFrame,
    WindowUpdateFrame,
)

from digit_classifier import PRETRAINED
from digit_classifier.predictions import DIGITS
from digit_classifier.wire import encode_request
from serving.oip import inference_pb
from serving.protocols import varint
from tests.reliability.attacks.beside import MAX_WAIT_S, beside, num_files, resident
from tests.reliability.attacks.polite import polite_caller
from tests.support.raw import CLASSIFY, REFLECTION, STREAM
from tests.support.servers import running_server, wait_until
from tests.support.wire import PREFACE, Connection, Reply, message, request_headers

TIMEOUT_S = 60.0
FLOOD_S = float(os.environ.get("FLOOD_S", "3"))
HELD_S = 1.0
"""How long attackers make the server keep its buffers."""
TOKEN = "a-token-of-some-length-for-tests"
INFER = f"/{inference_pb.SERVICE}/ModelInfer"
REQUEST = message(encode_request(bytes(DIGITS.image_bytes)))
BOMB = message(gzip.compress(encode_request(bytes(8000 * DIGITS.image_bytes))), flag=1)
WHOLE = DataFrame(1, REQUEST, flags=["END_STREAM"])
MIB = 1 << 20


@pytest.fixture(scope="module")
def victim():
    with running_server(PRETRAINED, "--transport", "h2", "--reflection") as server:
        yield server
        assert server.stop() == 0
        assert "ERROR" not in server.process.stderr.read()


@pytest.fixture(scope="module")
def guarded(tmp_path_factory):
    """A server whose callers need a token."""
    tokens = tmp_path_factory.mktemp("tokens") / "tokens"
    tokens.write_text(TOKEN + "\n")
    with running_server(PRETRAINED, "--transport", "h2", "--token-file", str(tokens)) as server:
        yield server


def attackers(server, number, stack, **settings):
    connections = []
    for _ in range(number):
        connection = stack.enter_context(Connection(server.address, TIMEOUT_S))
        connection.open(**settings)
        connections.append(connection)
    return connections


def push(connection, data, limit_s=10.0):
    """Send as much as the server takes in time, and drop the answers."""
    sock = connection.socket
    sock.setblocking(False)
    view, end_s = memoryview(data), time.monotonic() + limit_s
    while view and time.monotonic() < end_s:
        moved = False
        with suppress(BlockingIOError):
            view = view[sock.send(view[: 1 << 18]) :]
            moved = True
        with suppress(BlockingIOError):
            if not sock.recv(1 << 20):
                return
            moved = True
        if not moved:
            time.sleep(0.001)


def push_all(connections, datas, limit_s=20.0):
    def one(pair):
        with suppress(OSError):
            push(*pair, limit_s)

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(one, zip(connections, datas, strict=True)))
    time.sleep(HELD_S)


def flood(server, number, data_of, **settings):
    """Attack for a while by a number of connections, each made again when it was closed."""
    end_s = time.monotonic() + FLOOD_S

    def attack(_):
        times = 0
        while time.monotonic() < end_s:
            with suppress(OSError), Connection(server.address, TIMEOUT_S) as connection:
                connection.open(**settings)
                push(connection, data_of(connection), end_s - time.monotonic())
            times += 1
        return times

    with ThreadPoolExecutor(number) as pool:
        print(f"{sum(pool.map(attack, range(number)))} connections")


def calls(connection, number, *parts, **changed):
    """Encode calls of the same headers: each its HEADERS frame, and then the parts."""
    headers = request_headers(**changed)
    first = connection.headers(1, headers).serialize()
    again = connection.headers(1, headers).serialize()  # all of it is in HPACK's table by now
    rest = [part.serialize() for part in parts]
    frames: list[Any] = []
    for stream in range(1, 2 * number, 2):
        at = struct.pack(">I", stream)
        for frame in (first if stream == 1 else again, *rest):
            frames += (frame[:5], at, frame[9:])
    return b"".join(frames)


ASK = message(b"\x22\x15grpc.health.v1.Health")
OVER = [DataFrame(1, message(b"", length=256 * MIB)), *[DataFrame(1, bytes(16_384))] * 2000]


def half(size):
    """A part of a message that is said to be longer."""
    data = message(b"", length=4_000_000) + bytes(size)
    return [DataFrame(1, data[at : at + 16_384]) for at in range(0, len(data), 16_384)]


class Held(NamedTuple):
    """Calls that attackers begin, and make the server keep."""

    connections: int
    each: int
    """Calls of a connection."""
    parts: list[DataFrame]
    changed: dict[str, str]
    peak_bytes: int | None = None
    due_s: float = 0.5
    reads: bool = True
    """Whether the attackers have windows for answers."""


PATHS = {name: {"__path": path} for name, path in (
    ("classify", CLASSIFY), ("stream", STREAM), ("infer", INFER), ("reflection", REFLECTION))
}  # fmt: skip
HELD = {
    # Refusing 1,000 calls of 30 bytes takes 10 ms, and each connection may have its turn first.
    "six bytes that claim four gigabytes": Held(
        80, 1000, [DataFrame(1, b"\0\xff\xff\xff\xff\0")], {}, due_s=2.0),
    "compressed messages": Held(80, 500, [DataFrame(1, message(bytes(1000), flag=1))],
                                {"grpc_encoding": "gzip"}, 128 * MIB),
    # 8,000 messages of 6 KB that are 50 GB unpacked
    **{f"gzip bombs, {name}": Held(80, 100, [DataFrame(1, BOMB, flags=["END_STREAM"])],
                                   {"grpc_encoding": "gzip", **path}, 340 * MIB, due_s=2.0)
       for name, path in PATHS.items()},
    # 512 MB are offered; only the bytes within HTTP/2's windows are held before the refusal.
    "messages over the limit": Held(16, 1, OVER, {}, 64 * MIB),
    "streams that send and do not read": Held(
        20, 100, [DataFrame(1, REQUEST * 20)] * 4, PATHS["stream"], 160 * MIB, reads=False),
    "reflection that is asked and not read": Held(
        20, 10, [DataFrame(1, ASK * 500)] * 4, PATHS["reflection"], 160 * MIB, reads=False),
    # Over 64 MiB in all
    **{f"halves of 60 kB, {name}": Held(20, 100, half(60_000), PATHS[name])
       for name in ("classify", "stream")},
    **{f"halves of 1 kB, {name}": Held(60, 1000, half(1_000), PATHS[name])
       for name in ("classify", "stream")},
    **{f"100,000 streams, {kind}, {name}": Held(100, 1000, part, PATHS[name], 200 * MIB)
       for name in ("classify", "stream")
       for kind, part in (("headers", []), ("half", [DataFrame(1, REQUEST[:400])]))},
}  # fmt: skip


@pytest.mark.parametrize("name", HELD)
def test_calls_that_are_held(victim, name):
    held = HELD[name]
    settings = {} if held.reads else {"INITIAL_WINDOW_SIZE": 0}
    with beside(victim, due_s=held.due_s, peak_bytes=held.peak_bytes), ExitStack() as stack:
        connections = attackers(victim, held.connections, stack, **settings)
        push_all(
            connections, [calls(c, held.each, *held.parts, **held.changed) for c in connections]
        )
        print(f"held: {resident(victim) >> 20} MiB")


def test_sixty_thousand_calls_without_a_token(guarded):
    with beside(guarded, TOKEN, due_s=0.5), ExitStack() as stack:
        connections = attackers(guarded, 60, stack)
        push_all(connections, [calls(c, 1000, WHOLE) for c in connections])


BEGUN = DataFrame(1, message(b"", length=4_000_000))
RESET = RstStreamFrame(1, error_code=8)


def frames(frame):
    """Begin a call, and send a frame again and again."""
    return lambda c: calls(c, 1, BEGUN) + frame.serialize() * 20_000


def resets(path):
    """Begin calls and reset them."""
    return lambda c: calls(c, 20_000, RESET, __path=path)


def continuations(flags):
    """Continue a block of headers; 4 ends it."""
    block = struct.pack(">I", 1000)[1:] + bytes((9, flags)) + struct.pack(">I", 1) + bytes(1000)
    return lambda c: HeadersFrame(1, c.encode(request_headers())).serialize() + block * 2000


FLOODS: dict[str, Callable[[Connection], bytes]] = {
    "ping": frames(PingFrame(0, bytes(8))),
    "window": frames(WindowUpdateFrame(0, window_increment=1)),
    "data of a byte": frames(DataFrame(1, b"\0")),
    **{f"resets {path}": resets(path) for path in (CLASSIFY, STREAM)},
    "continuations": continuations(0),
}
"""One that is answered, one that is not, data, calls, and headers. That the engine ends a
connection for frames of each kind is in tests/http2/frames.py, the rows `attacks`."""


@pytest.mark.parametrize("name", FLOODS)
def test_floods(victim, name):
    with beside(victim, due_s=0.5):
        flood(victim, 16, FLOODS[name])


def test_idle_connections_are_cheap(victim):
    number = 5000
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    before = resident(victim)
    with polite_caller(victim) as polite, ExitStack() as stack:
        connections = attackers(victim, number, stack)
        wait_until(lambda: num_files(victim) > number)
        for connection in connections[:: number // 100]:
            connection.read(quiet_s=0.01)
        time.sleep(1.0)
        growth = resident(victim) - before
    print(f"{growth / 1024 / number:.1f} KiB a connection; polite: {polite}")
    wait_until(lambda: num_files(victim) < 60)
    assert growth < number * 20 * 1024
    assert polite.max_computed_s < 1.0
    assert polite.max_s < MAX_WAIT_S


def dear_messages():
    """ModelInferRequests that take long to parse."""
    head = b"\x0a\x06digits"
    shape = b"\x0a\x01x\x12\x05UINT8\x18\x01\x18\x90\x06"
    typed = b"\x22" + varint(3_200_000) + b"\x01" * 3_200_000  # packed uint_contents
    contents = b"\x2a" + varint(len(typed)) + typed
    unpacked = b"\x20\x01" * 1_600_000
    loose = b"\x2a" + varint(len(unpacked)) + unpacked
    return {
        "outputs": head + b"\x32\x00" * 1_600_000,
        "typed": head + b"\x2a" + varint(len(shape + contents)) + shape + contents,
        "unpacked": head + b"\x2a" + varint(len(shape + loose)) + shape + loose,
        "parameters": head + b"\x22\x00" * 1_600_000,
        "inputs": head + b"\x2a\x00" * 1_600_000,
        "raw": head + b"\x3a\x00" * 1_600_000,
        "deep": head + nested(500),
        "groups": head + b"\x0b" * 1_600_000 + b"\x0c" * 1_600_000,
        "unknown": head + b"\x78\x01" * 1_600_000,
        "name": b"\x0a" + varint(3_200_000) + b"a" * 3_200_000,
        "names": b"\x0a\x00" * 1_600_000,
        "shape": head + b"\x2a" + varint(1_600_000) + b"\x18\x01" * 800_000,
        "bools": head + b"\x2a" + varint(3_000_004) + b"\x2a" + varint(3_000_000)
                 + b"\x08\x01" * 1_500_000,
    }  # fmt: skip


def nested(depth):
    data = b""
    for _ in range(depth):
        data = b"\x2a" + varint(len(data)) + data
    return data


@pytest.mark.parametrize("name", dear_messages())
@pytest.mark.parametrize("path", [INFER, f"/{inference_pb.SERVICE}/ModelStreamInfer"])
def test_messages_that_are_dear_to_parse(victim, name, path):
    body = message(dear_messages()[name])
    with beside(victim, due_s=0.1):
        for _ in range(3):
            with Connection(victim.address, TIMEOUT_S) as connection:
                connection.open(INITIAL_WINDOW_SIZE=2**31 - 1)
                connection.send(WindowUpdateFrame(0, window_increment=1 << 30))
                connection.acknowledge()
                connection.open_window(1, 1 << 20)
                connection.begin(1, __path=path)
                with suppress(AssertionError):
                    connection.send_body(1, body)
                status = connection.reply(1).status
    print(name, status)


def test_one_polite_caller_beside_eight_thousand_calls(victim):
    """It need not wait until all are answered: at most a third of that."""
    latencies, totals = [], []
    with ExitStack() as stack:
        polite = attackers(victim, 1, stack)[0]
        connections = attackers(victim, 8, stack)
        for connection in connections:
            connection.send(WindowUpdateFrame(0, window_increment=1 << 30))
            connection.read(quiet_s=0.05)
        polite.read(quiet_s=0.05)
        data = [calls(c, 1000, WHOLE) for c in connections]
        call = calls(polite, 1, WHOLE)
        victim.process.send_signal(signal.SIGSTOP)
        with ThreadPoolExecutor(9) as pool:
            sent = [pool.submit(c.send, d) for c, d in zip(connections, data, strict=True)]
            time.sleep(0.3)
            begin_s = time.monotonic()
            polite.send(call)
            victim.process.send_signal(signal.SIGCONT)
            reply = polite.replies[1] = Reply()
            while not reply.is_over:
                polite.receive()
            latencies.append(time.monotonic() - begin_s)
            for connection in connections:
                while len(connection.answered) < 1000:
                    connection.receive()
            totals.append(time.monotonic() - begin_s)
            for future in sent:
                future.result()
    print(f"polite {latencies[0] * 1e3:.1f} ms, all {totals[0] * 1e3:.1f} ms")
    assert latencies[0] < totals[0] / 3


def test_out_of_descriptors_those_that_are_there_are_served():
    with running_server(PRETRAINED, "--transport", "h2") as server, ExitStack() as stack:
        there = attackers(server, 1, stack)[0]
        assert there.ask(1, REQUEST).status == "OK"
        limit = num_files(server) + 20
        resource.prlimit(server.process.pid, resource.RLIMIT_NOFILE, (limit, limit))
        many = attackers(server, 60, stack)
        for stream in range(3, 30, 2):
            assert there.ask(stream, REQUEST).status == "OK"
            time.sleep(0.2)  # a few sweeps of the server
        waits = many[-1]
        waits.call(1, REQUEST)
        assert not waits.replies
        for connection in many[:-1]:
            connection.socket.close()
        assert waits.reply(1).status == "OK"
        assert server.stop() == 0
        log = server.process.stderr.read()
        print(log)
        assert log.count("new connections wait") == 1


def test_readers_that_stop_are_bounded(victim):
    """Large answers, to unary calls and on streams, which nobody takes."""
    request = message(encode_request(bytes(128 * DIGITS.image_bytes)))
    frames = [DataFrame(1, request[at : at + 16_384]) for at in range(0, len(request), 16_384)]
    end = DataFrame(1, b"", flags=["END_STREAM"])
    with beside(victim, due_s=0.5, peak_bytes=160 * MIB), ExitStack() as stack:
        connections = attackers(victim, 20, stack, INITIAL_WINDOW_SIZE=0)
        for c in connections:
            c.acknowledge()
        push_all(connections, [calls(c, 300, *frames, end) for c in connections], limit_s=10)
        connections = attackers(victim, 20, stack, INITIAL_WINDOW_SIZE=2**31 - 1)
        for c in connections:
            c.send(WindowUpdateFrame(0, window_increment=1 << 30))
            c.acknowledge()
        for c in connections:
            data = calls(c, 300, *frames, end)
            c.socket.setblocking(False)
            with suppress(BlockingIOError):
                while data:  # and nothing is read
                    data = data[c.socket.send(data) :]
        print(f"held: {resident(victim) >> 20} MiB")


def test_slow_peers_hold_up_nobody(victim):
    """One byte at a time: of the preface, of headers, of a body."""
    with beside(victim, due_s=0.5), ExitStack() as stack:
        slow = []
        for _ in range(50):
            connection = stack.enter_context(Connection(victim.address, TIMEOUT_S))
            slow.append(
                (connection, PREFACE + SettingsFrame(0).serialize() + calls(connection, 1, WHOLE))
            )
        for at in range(100):
            for connection, data in slow:
                connection.send(data[at : at + 1])
            time.sleep(0.02)
