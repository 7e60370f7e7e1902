"""The same bytes, mutated in every way, are the same requests to our engine as to h11 alone."""

import random
from typing import Any, NamedTuple

import h11

from serving.http1.requests import BadRequest, RequestReader
from tests.conftest import SEED

MAX_BODY_BYTES = 1 << 20

GET = b"GET /v2?a=%00 HTTP/1.1\r\nHost: localhost\r\n\r\n"
POST = b"POST /v2/x HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\nA: b\r\n\r\n"
CHUNKED = b"PUT /y HTTP/1.1\r\nHost: [::1]:80\r\nTransfer-Encoding: chunked\r\n\r\n"
OLD = b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"
SEEDS = [
    GET, GET, OLD, *(POST % size + b"x" * size for size in (0, 1, 12, 12, 345)),
    CHUNKED + b"3\r\nabc\r\n10;a=b\r\n0123456789abcdef\r\n0\r\nTrailer: x\r\n\r\n",
    CHUNKED + b"0\r\n\r\n",
    b"HEAD / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n",
    b"CONNECT a:80 HTTP/1.1\r\nHost: a\r\n\r\n",
    b"GET / HTTP/1.1\r\nHost: a\r\nConnection: upgrade\r\nUpgrade: x\r\nA: b\r\n\r\n",
]  # fmt: skip
PIECES = [
    b"\r\n", b"\n", b"\r", b" ", b"\t", b":", b";", b",", b"0", b"-", b"\0", b"\xff", b"\x0b",
    b"\r\n ",
    b"Content-Length: 5\r\n", b"content-length:5\r\n", b"Content-Length : 1\r\n", b"\r\nX: y",
    b"Transfer-Encoding: chunked\r\n", b"Transfer-Encoding: chunked, identity\r\n", b", 12",
    b"Connection: close\r\n", b"Expect: 100-continue\r\n", b"Host: b\r\n", b"HTTP/2.0", b"ffffffff",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"\r\n\r\n", b"1;" + b"e" * 3000, b"H: " + b"h" * 3000,
]  # fmt: skip

STRICTER = (
    "expected lines that end with CR and LF",  # RFC 9112, 2.2: h11 takes LF alone
    "expected one length, got two",  # 6.3: such a request ought to be handled as an error
    "expected HTTP/1.1",  # h11 takes 0.9 to 9.9
    "expected a head of at most",  # h11 looks only while a head is not whole
    "expected chunks of more bytes",  # h11 has no bound of framing
    "malformed HTTP: Receive buffer too long",  # nor of trailers, as long as they come at once
    "expected a body of at most",
)
"""Refused by us and accepted by h11."""
LAXER = "no request line received"
"""Refused by h11 and accepted by us: an empty line before a request, see RFC 9112, 2.2."""


class Seen(NamedTuple):
    """Requests without their lengths, and the end: "more" may come, "last", or a refusal."""

    requests: list[tuple[str, str, list[tuple[bytes, bytes]], bytes]]
    end: str


def by_engine(parts):
    engine, requests, request = RequestReader(), [], None
    try:
        for part in parts:
            engine.receive(part)
            while request is not None or (request := engine.read_head()) is not None:
                body = engine.read_body(request, MAX_BODY_BYTES)
                if body is None:
                    break
                requests.append((request.method, request.target, request.fields, body))
                if request.is_last:
                    return Seen(requests, "last")
                request = None
    except BadRequest as err:
        return Seen(requests, err.text)
    return Seen(requests, "more")


def by_h11(data):
    connection, requests = h11.Connection(h11.SERVER, 1 << 14), list[Any]()
    connection.receive_data(data)
    try:
        while True:
            event = connection.next_event()
            if not isinstance(event, h11.Request):
                return Seen(requests, "more")
            request, body = event, b""
            while isinstance(event := connection.next_event(), h11.Data):
                body += event.data
            if not isinstance(event, h11.EndOfMessage):
                return Seen(requests, "more")
            method, target = request.method.decode(), request.target.decode()
            requests.append(
                (method, target, [h for h in request.headers if h[0] != b"content-length"], body)
            )
            answer = h11.Response(status_code=404, headers=[("Content-Length", "0")])
            connection.send(answer)
            connection.send(h11.EndOfMessage())
            if connection.our_state is h11.MUST_CLOSE:
                return Seen(requests, "last")
            connection.start_next_cycle()
    except h11.RemoteProtocolError as err:
        return Seen(requests, str(err))


def mutated(rng):
    """Join some requests, often equal but for their lengths, and change some bytes."""
    data = bytearray(b"".join(rng.choice(SEEDS) for _ in range(rng.randrange(1, 5))))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        at = rng.randrange(len(data) + 1)
        kind = rng.randrange(4)
        if kind == 0:
            data[at : at + 1] = bytes((rng.randrange(256),))
        elif kind == 1:
            data[at : at + rng.randrange(20)] = b""
        elif kind == 2:
            data[at:at] = rng.choice(PIECES) * rng.choice((1, 1, 1, 40))
        else:  # where lines begin
            at = data.find(b"\n", at) + 1
            data[at:at] = rng.choice(PIECES)
    return bytes(data)


def cut(data, rng):
    cuts = sorted(rng.randrange(len(data) + 1) for _ in range(rng.choice((0, 1, 3, len(data)))))
    return [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]


def compare(num_streams, seed):
    """Compare that many streams; return how often both agreed, or one was stricter."""
    rng, outcomes = random.Random(seed), {"equal": 0, "refused": 0, "stricter": 0, "laxer": 0}
    for _ in range(num_streams):
        data = mutated(rng)
        ours, theirs = by_engine(cut(data, rng)), by_h11(data)
        if ours == theirs:
            outcomes["equal"] += 1
            continue
        both = min(len(ours.requests), len(theirs.requests))
        assert ours.requests[:both] == theirs.requests[:both], data
        is_bare = data.count(b"\n") != data.count(b"\r\n") or data.endswith(b"\r")
        waits = ours.end == "more" and is_bare  # for a CR, or for the bytes after it
        if ours.end.startswith(STRICTER) or waits:
            assert len(ours.requests) <= len(theirs.requests) or theirs.end == LAXER, data
            outcomes["stricter"] += 1
        elif theirs.end == LAXER:
            outcomes["laxer"] += 1
        else:
            assert len(ours.requests) == len(theirs.requests), data
            assert ours.end.startswith("malformed HTTP: "), (ours.end, theirs.end, data)
            assert theirs.end not in ("more", "last"), (ours.end, theirs.end, data)
            outcomes["refused"] += 1
    return outcomes


def test_same_bytes_are_the_same_requests():
    outcomes = compare(800, SEED)
    assert min(outcomes.values()) > 1, outcomes  # each kind was tried
