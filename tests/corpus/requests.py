"""HTTP/1.1 as a table, bytes in and answers out: framing, smuggling, limits, hosts, pipelining.

Three runners read the rows: the engine alone (tests/serving/http1/test_requests.py), a simulated
server (tests/simulation/test_requests.py) and a server's process
(tests/serving/http/test_requests.py). None of them needs a model.
"""

import json
from typing import NamedTuple

OPEN, CLOSED, WAITS = "open", "closed", "waits"
"""The end of a connection: the next request would be answered; the server has closed it; or the
last request has not come whole."""
MAX_INDEX_BYTES, MAX_QUERY_BYTES = 4096, 64 << 10
"""The longest body of a question for the index, and of others."""


class Case(NamedTuple):
    """A row of the table."""

    name: str
    data: bytes
    """The caller's bytes."""
    answers: tuple[str, ...]
    """The status of each answer and, of an error, its detail from the start."""
    end: str = OPEN
    is_routed: bool = False
    """Whether the routing closes it, of which the engine alone knows nothing."""

    def fault(self, answers: list[str], end: str) -> str:
        """Say how a server's answers differ, if they do."""
        is_same = len(answers) == len(self.answers) and all(
            found.startswith(each) for found, each in zip(answers, self.answers, strict=True)
        )
        if is_same and end == self.end:
            return ""
        return f"expected {list(self.answers)} and then {self.end}, got {answers} and then {end}"


def get(path=b"/v2/health/live", *fields, host=b"localhost", method=b"GET", version=b"1.1"):
    """A request without a body."""
    lines = (b"%b %b HTTP/%b" % (method, path, version), b"Host: " + host, *fields, b"", b"")
    return b"\r\n".join(lines)


def post(body=b"{}", *fields, length=None):
    """A question for the index of models, of which the body is an object."""
    size = b"Content-Length: %d" % (len(body) if length is None else length)
    return get(b"/v2/repository/index", size, *fields, method=b"POST") + body


def chunked(body, *fields):
    """The same, its body in chunks as they are given."""
    return (
        get(b"/v2/repository/index", b"Transfer-Encoding: chunked", *fields, method=b"POST") + body
    )


def field(line):
    """A request with one more line in its head."""
    return get(b"/v2/health/live", line)


LIVE = get()
LONG = field(b"a: " + b"x" * ((16 << 10) + 4 - len(field(b"a: "))))
OK, BAD = "200", "400 "
LONG_HEAD, TOO_LONG = "431 expected a head of at most ", "413 expected a body of at most "
MALFORMED = "400 malformed HTTP: "
NO_HOST = "421 no server "
BARE = "400 expected lines that end with CR and LF"
TWO_LENGTHS = "400 expected one length, got two"
FRAMING = "400 expected chunks of more bytes"
LAST = b"0\r\n\r\n"

CASES = [Case(*row) for row in (
    # One request after the other
    ("a request", LIVE, (OK,)),
    ("three requests at once", LIVE * 3, (OK,) * 3),
    ("an empty line before a request", b"\r\n" + LIVE + b"\r\n" + LIVE, (OK, OK)),
    ("a request and a part of the next", LIVE + LIVE[:30], (OK,), WAITS),
    ("a head that has not come whole", LIVE[:-1], (), WAITS),
    ("nothing but an empty line", b"\r\n", ()),
    ("HEAD", get(method=b"HEAD"), (OK,)),
    ("OPTIONS of no page", get(method=b"OPTIONS"), ("405 not by OPTIONS",)),
    ("a method of one's own", get(method=b"BREW"), ("405 not by BREW",)),
    ("a method in lower case", get(method=b"get"), ("405 not by get",)),
    ("an unknown path", get(b"/nothing"), ("404 no such path: /nothing",)),
    ("an unknown path, and a known one", get(b"/nothing") + LIVE, ("404 no such path", OK)),
    ("a coded path", get(b"/v2/health/%6cive"), (OK,)),
    ("a path that goes up", get(b"/v2/../v2/health/live"), ("404 no such path",)),
    ("a slash behind a path", get(b"/v2/health/live/"), (OK,)),
    ("a fragment", get(b"/v2/health/live#a"), ("404 no such path",)),
    ("a query", get(b"/v2/health/live?a=%00&b"), (OK,)),
    ("a query of too many fields", get(b"/v2/health/live?" + b"a&" * 101),
     ("400 malformed target: ",), CLOSED, True),
    ("a target that is no address", get(b"http://[/v2"), ("400 malformed target: ",), CLOSED, True),
    ("the target *", get(b"*", method=b"OPTIONS"), ("404 no such path",)),
    ("a target for proxies", get(b"http://localhost/v2/health/live", host=b"x"), (OK,)),
    ("a target for proxies, of another host", get(b"http://evil.example/v2/health/live"),
     (NO_HOST,)),
    ("CONNECT", get(b"localhost:80", method=b"CONNECT"), ("404 no such path",)),
    # Connections that end
    ("close", get(b"/v2", b"Connection: close") + LIVE, (OK,), CLOSED),
    ("Close among others", get(b"/v2", b"Connection: a", b"Connection: b, Close") + LIVE, (OK,),
     CLOSED),
    ("keep-alive", get(b"/v2", b"Connection: keep-alive") + LIVE, (OK, OK)),
    ("closed is no close", get(b"/v2", b"Connection: closed") + LIVE, (OK, OK)),
    ("HTTP/1.0", get(version=b"1.0") + LIVE, (OK,), CLOSED),
    ("HTTP/1.0 with keep-alive", get(b"/v2", b"Connection: keep-alive", version=b"1.0") + LIVE,
     (OK,), CLOSED),
    ("an upgrade that nobody takes", get(b"/v2", b"Connection: upgrade", b"Upgrade: h2c") + LIVE,
     (OK, OK)),
    # Hosts
    ("no host", b"GET /v2 HTTP/1.1\r\n\r\n", (MALFORMED,), CLOSED),
    ("no host in HTTP/1.0", b"GET /v2 HTTP/1.0\r\n\r\n", (OK,), CLOSED),
    ("two hosts", get(b"/v2", b"Host: localhost"), (MALFORMED,), CLOSED),
    ("an empty host", get(host=b""), (OK,)),
    ("a port", get(host=b"LOCALHOST:80"), (OK,)),
    ("an address", get(host=b"10.0.0.1:1"), (OK,)),
    ("an address of version 6", get(host=b"[::1]:8080"), (OK,)),
    ("a foreign host", get(host=b"evil.example"), (NO_HOST,)),
    ("a foreign host, and ours", get(host=b"evil.example") + LIVE, (NO_HOST, OK)),
    ("a foreign host that ends as an address", get(host=b"1.2.3.4.evil.example"), (NO_HOST,)),
    ("a foreign host that begins as ours", get(host=b"localhost.evil.example"), (NO_HOST,)),
    ("a user before a host", get(b"http://a@localhost/v2"), (NO_HOST,)),
    # Pages of other sites
    ("a foreign page", field(b"Origin: https://evil.example"), ("403 pages of ",)),
    ("a page without a site", field(b"Origin: null"), ("403 pages of ",)),
    ("our page", field(b"Origin: http://localhost"), (OK,)),
    # Bodies with a length
    ("a body", post(), (OK,)),
    ("a body, and the next request", post() + LIVE, (OK, OK)),
    ("bodies of other lengths", post() + post(b"{ }") + post(b"{}"), (OK,) * 3),
    ("a length with zeros before it", post(b"{}", length=2).replace(b": 2", b": 002"), (OK,)),
    ("a body that has not come whole", post(length=3), (), WAITS),
    ("a body that is too long", post(length=MAX_INDEX_BYTES + 1), (TOO_LONG,), CLOSED),
    ("a body that is longer than any", post(length=10**17), (TOO_LONG,), CLOSED),
    ("a body of a GET", get(b"/v2", b"Content-Length: 3") + b"abc" + LIVE, (OK, OK)),
    ("a body that looks like a request", post(LIVE), (BAD,)),
    ("no JSON", post(b"nonsense"), (BAD,)),
    ("a length below 0", post(length=-1), (MALFORMED,), CLOSED),
    ("a length with a sign", post().replace(b": 2", b": +2"), (MALFORMED,), CLOSED),
    ("a length in hexadecimal", post().replace(b": 2", b": 0x2"), (MALFORMED,), CLOSED),
    ("an empty length", post().replace(b": 2", b":"), (MALFORMED,), CLOSED),
    ("a length of 20 digits", post().replace(b": 2", b": 1" + b"0" * 19), (TOO_LONG,), CLOSED),
    ("a space before the colon", post().replace(b"Length:", b"Length :"), (MALFORMED,), CLOSED),
    ("two lengths", post(b"{}", b"Content-Length: 3"), (MALFORMED,), CLOSED),
    ("a length twice", post(b"{}", b"Content-Length: 2"), (OK,)),
    ("two lengths in a line", post().replace(b": 2", b": 2, 3"), (MALFORMED,), CLOSED),
    ("two lengths behind one that is known",
     post() + post(b"{}", b"Content-Length: 3"), (OK, MALFORMED), CLOSED),
    ("two lengths behind one that comes twice",
     post(b"{}", b"Content-Length: 2") + post(b"{ }", b"Content-Length: 2"), (OK, MALFORMED),
     CLOSED),
    # Bodies in chunks
    ("chunks", chunked(b"1\r\n{\r\n1\r\n}\r\n" + LAST) + LIVE, (OK, OK)),
    ("chunks with extensions and trailers", chunked(b"1;a=b\r\n{\r\n1\r\n}\r\n0\r\nx: y\r\n\r\n")
     + LIVE, (OK, OK)),
    ("a chunk in capitals", chunked(b"A\r\n{        }\r\n" + LAST), (OK,)),
    ("a head that repeats, and other chunks", chunked(b"2\r\n{}\r\n" + LAST)
     + chunked(b"3\r\n{ }\r\n" + LAST) + LIVE, (OK,) * 3),
    ("chunks that have not come whole", chunked(b"2\r\n{}\r\n0\r\n"), (), WAITS),
    ("a chunk without a length", chunked(b"x\r\n"), (MALFORMED,), CLOSED),
    ("a chunk that is longer than it says", chunked(b"1\r\n{}\r\n" + LAST), (MALFORMED,), CLOSED),
    ("a chunk with a sign", chunked(b"+2\r\n{}\r\n" + LAST), (MALFORMED,), CLOSED),
    ("a chunk with 0x", chunked(b"0x2\r\n{}\r\n" + LAST), (MALFORMED,), CLOSED),
    ("a chunk of 25 digits", chunked(b"f" * 25 + b"\r\n"), (MALFORMED,), CLOSED),
    ("a long extension", chunked(b"1;" + b"x" * 20_000 + b"\r\na\r\n"), (BAD,), CLOSED),
    ("many extensions", chunked((b"1;" + b"x" * 1000 + b"\r\na\r\n") * 100), (FRAMING,), CLOSED),
    ("tiny chunks", chunked(b"1\r\na\r\n" * 4000), (FRAMING,), CLOSED),
    ("trailers without end", chunked(b"0\r\n" + b"x: y\r\n" * 10_000), (BAD,), CLOSED),
    ("chunks that are too long",
     chunked(b"1000\r\n" + bytes(MAX_INDEX_BYTES) + b"\r\n1\r\nx\r\n"), (TOO_LONG,), CLOSED),
    # What one server takes for one request, and another for two
    ("a length and chunks", chunked(b"{}", b"Content-Length: 2"), (TWO_LENGTHS,), CLOSED),
    ("chunks and a length", post(b"{}", b"Transfer-Encoding: chunked"), (TWO_LENGTHS,), CLOSED),
    ("chunks in HTTP/1.0", chunked(b"2\r\n{}\r\n" + LAST).replace(b"1.1", b"1.0"), (OK,), CLOSED),
    ("another coding", get(b"/v2", b"Transfer-Encoding: gzip"), (BAD,), CLOSED),
    ("another coding beside chunks", get(b"/v2", b"Transfer-Encoding: gzip, chunked"), (BAD,),
     CLOSED),
    ("chunks twice", chunked(b"", b"Transfer-Encoding: chunked"), (BAD,), CLOSED),
    ("chunks behind a tab", chunked(LAST).replace(b": chunked", b":\tchunked") + LIVE, (OK, OK)),
    ("chunked in quotes", chunked(LAST).replace(b": chunked", b': "chunked"'), (BAD,), CLOSED),
    ("chunks, and a request inside of the last", chunked(b"2\r\n{}\r\n" + LAST + LIVE),
     (OK, OK)),
    # Lines and their ends
    ("lines that end with LF alone", LIVE.replace(b"\r", b"") + LIVE, (BARE,), CLOSED),
    ("a line that ends with LF alone", LIVE.replace(b"1.1\r", b"1.1"), (BARE,), CLOSED),
    ("a field that ends with LF alone", get(b"/v2", b"a: b\nc: d"), (BARE,), CLOSED),
    ("a CR inside of a field", field(b"a: b\rc: d"), (MALFORMED,), CLOSED),
    ("a field that goes on in the next line", field(b"a: b\r\n c"), (OK,)),
    ("a space before the first field", get().replace(b"Host", b" Host"), (MALFORMED,), CLOSED),
    ("a zero byte in a field", field(b"a: \0"), (MALFORMED,), CLOSED),
    ("a byte above 127 in a field", field(b"a: \xff"), (OK,)),
    ("a byte above 127 in a name", field(b"\xff: a"), (MALFORMED,), CLOSED),
    ("a field without a name", field(b": a"), (MALFORMED,), CLOSED),
    ("a field without a colon", field(b"a"), (MALFORMED,), CLOSED),
    ("a field without a value", field(b"a:"), (OK,)),
    ("two spaces in the first line", LIVE.replace(b" HTTP", b"  HTTP"), (MALFORMED,), CLOSED),
    ("no version", LIVE.replace(b" HTTP/1.1", b""), (MALFORMED,), CLOSED),
    ("a first line of three words", LIVE.replace(b"HTTP/1.1", b"HTTP/1.1 x"), (MALFORMED,), CLOSED),
    ("no request behind one", LIVE + b"nonsense\r\n\r\n", (OK, MALFORMED), CLOSED),
    # Other protocols
    ("HTTP/0.9", b"GET /v2\r\n\r\n", (MALFORMED,), CLOSED),
    ("HTTP/2", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", ("505 expected HTTP/1.1, got HTTP/2",), CLOSED),
    ("HTTP/9.9", get(version=b"9.9"), ("505 expected HTTP/1.1",), CLOSED),
    ("TLS", b"\x16\x03\x01\x02\x00", ("400 malformed HTTP: expected a request",), CLOSED),
    ("TLS behind a request", LIVE + b"\x16\x03\x01", (OK, "400 malformed HTTP: expected a request"),
     CLOSED),
    ("another's greeting", b"hello\r\n\r\n", (MALFORMED,), CLOSED),
    # Limits
    ("a head of 16 KiB and its end", LONG, (OK,)),
    ("a head of a byte more", LONG.replace(b"x", b"xx", 1), (LONG_HEAD,), CLOSED),
    ("a head that has no end", LONG[:-4] + b"x" * 9, (LONG_HEAD,), CLOSED),
    ("many lines", get(b"/v2", *[b"x: y"] * 100), (OK,)),
    ("too many lines", get(b"/v2", *[b"x: y"] * 200), (LONG_HEAD,), CLOSED),
)]  # fmt: skip


def answers_of(received):
    """Return the answers in a server's bytes, and whether the last one says that it closes."""
    answers, is_last = [], False
    while received:
        head, _, rest = received.partition(b"\r\n\r\n")
        first, *lines = head.decode("latin-1").lower().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        # An answer to HEAD has the length of a body that does not come.
        size = 0 if rest.startswith(b"HTTP/1.1 ") else int(fields["content-length"])
        body, received = rest[:size], rest[size:]
        status = first.split()[1]
        if body and fields["content-type"] == "application/problem+json":
            problem = json.loads(body)
            status += f" {problem['detail'] if problem['status'] == int(status) else problem}"
        answers.append(status)
        is_last = fields.get("connection") == "close"
    return answers, is_last
