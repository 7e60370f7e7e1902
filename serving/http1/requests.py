"""The server's side of a connection: requests in, one at a time, and answers out.

Heads and chunks are read by h11, which is strict. A head that repeats the last one, but for the
length of its body, is not read again.
"""

import re
from collections.abc import Iterable
from http import HTTPStatus

import h11

MAX_HEAD_BYTES = 16 << 10
"""As Node.js has it; a thousand peers can have 16 MiB kept."""
_MAX_LINES = 128
"""Lines of a head: each takes some microseconds."""
_MAX_PART_BYTES = 8 << 10
"""Bytes read at once of a body in chunks, and the longest head of a chunk."""
_MAX_FRAMING_BYTES = 8 << 10
"""Bytes of chunk framing in addition to the size of the body."""
_END = b"\r\n\r\n"
_HTTP2 = b"PRI * HTTP/2.0\r\n\r\n"
"""The beginning of HTTP/2's preface (RFC 9113, section 3.4)."""
_LENGTH = re.compile(rb"\r\ncontent-length: ?([0-9]{1,18})\r\n", re.IGNORECASE)

Headers = Iterable[tuple[str, str]]


class BadRequest(Exception):
    """The peer sent bytes that are not HTTP, or too many; the connection ends with this answer."""

    def __init__(self, status: HTTPStatus, text: str) -> None:
        super().__init__(text)
        self.status = status
        self.text = text


class Request:
    """The head of a request."""

    __slots__ = ("_event", "expects_continue", "fields", "is_last", "is_old", "method", "num_bytes",
                 "target")  # fmt: skip

    def __init__(self, event: h11.Request) -> None:
        self.method = event.method.decode("ascii")
        self.target = event.target.decode("ascii")
        fields = list(event.headers)
        self.fields = [field for field in fields if field[0] != b"content-length"]
        """The headers but for the length: lower-case names, and values."""
        self.is_old = is_old = event.http_version < b"1.1"
        """Whether it is of HTTP/1.0, which knows no chunks."""
        options = b",".join(self.all(b"connection")).lower().split(b",")
        self.is_last = is_old or b"close" in map(bytes.strip, options)
        """Whether the caller wants the connection closed behind the answer."""
        self.expects_continue = not is_old and self.get(b"expect").lower() == b"100-continue"
        length = next((value for name, value in fields if name == b"content-length"), None)
        self.num_bytes = int(length or 0)
        """The length of the body; -1 if it comes in chunks."""
        if self.get(b"transfer-encoding"):
            if length is not None:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "expected one length, got two")
            self.num_bytes = -1

    def get(self, name: bytes) -> bytes:
        """Return the first header of a name; empty if there is none."""
        return next((value for each, value in self.fields if each == name), b"")

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of every header of a name."""
        return [value for each, value in self.fields if each == name]


class RequestReader:
    """The bytes of one connection, as far as they were read."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._searched = 0
        """How many of its first bytes can't begin the end of a head."""
        self.head = b""
        """The bytes of the last head."""
        self._rest = b""
        """The request without the length of its body."""
        self._request: Request | None = None
        self._chunks: h11.Connection | None = None
        self._body = bytearray()
        self._num_framed = 0
        """The bytes of chunks that were read of the body in progress."""

    @property
    def around_length(self) -> tuple[bytes, bytes] | None:
        """The bytes of the last head before and behind the length of its body, if it has one."""
        length = _LENGTH.search(self.head) if self._rest else None
        return length and (self.head[: length.start(1)], self.head[length.end(1) :])

    def receive(self, data: bytes) -> None:
        """Process bytes from the peer."""
        self._data += data

    @property
    def num_waiting(self) -> int:
        """The bytes that wait to be read."""
        return len(self._data) + self._num_framed

    def read_head(self) -> Request | None:
        """Read the head of the next request; None if it has not come whole.

        Raises:
            BadRequest: it is malformed or too long.
        """
        if self._data.startswith(b"\r\n"):  # of callers that end bodies with it: RFC 9112, 2.2
            del self._data[:2]
        end = self._data.find(_END, self._searched)
        if end < 0:
            if self._data and self._data[0] < ord("!") and self._data != b"\r":  # TLS, for one
                raise BadRequest(HTTPStatus.BAD_REQUEST, "malformed HTTP: expected a request")
            self._searched = max(0, len(self._data) - len(_END) + 1)
        if max(end, self._searched) > MAX_HEAD_BYTES:
            text = f"expected a head of at most {MAX_HEAD_BYTES} bytes"
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        if end < 0:
            return None
        end += len(_END)
        head = bytes(self._data[:end])
        del self._data[:end]
        self._searched = 0
        if head == self.head and self._request is not None:
            return self._request
        length = _LENGTH.search(head)
        rest = head if length is None else head[: length.start(1)] + head[length.end(1) :]
        if rest == self._rest and self._request is not None and length is not None:
            self._request.num_bytes = int(length[1])
        else:
            self._request = self._parse(head)
            is_clear = length is not None and rest.lower().count(b"\r\ncontent-length") == 1
            self._rest = rest if is_clear else b""
        self.head = head
        return self._request

    def _parse(self, head: bytes) -> Request:
        if head.count(b"\n") > _MAX_LINES:
            text = f"expected a head of at most {_MAX_LINES} lines"
            raise BadRequest(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, text)
        if head.count(b"\n") != head.count(b"\r\n"):  # others may see other lines
            raise BadRequest(HTTPStatus.BAD_REQUEST, "expected lines that end with CR and LF")
        if head == _HTTP2:
            text = "expected HTTP/1.1, got HTTP/2; gRPC has a port of its own"
            raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, text)
        connection = h11.Connection(h11.SERVER, max_incomplete_event_size=_MAX_PART_BYTES)
        try:
            connection.receive_data(head)
            event = connection.next_event()
        except h11.RemoteProtocolError as err:
            raise _malformed(err) from err
        assert isinstance(event, h11.Request)
        if event.http_version[:1] != b"1":
            raise BadRequest(HTTPStatus.HTTP_VERSION_NOT_SUPPORTED, "expected HTTP/1.1")
        request = Request(event)
        if request.num_bytes < 0:
            self._chunks = connection
        return request

    def read_body(self, request: Request, max_bytes: int) -> bytes | None:
        """Read the body of a request; None if it has not come whole.

        Raises:
            BadRequest: it is malformed, or longer than `max_bytes`.
        """
        size = request.num_bytes
        if size > max_bytes:
            raise _too_long(max_bytes, str(size))
        if size < 0:
            return self._read_chunks(max_bytes)
        if len(self._data) < size:
            return None
        body = bytes(self._data[:size])
        del self._data[:size]
        return body

    def _read_chunks(self, max_bytes: int) -> bytes | None:
        assert self._chunks is not None
        data, self._data = bytes(self._data), bytearray()
        for begin in range(0, len(data), _MAX_PART_BYTES):
            part = data[begin : begin + _MAX_PART_BYTES]
            self._num_framed += len(part)
            is_whole = self._read_part(part)
            if len(self._body) > max_bytes:
                raise _too_long(max_bytes, "more")
            if is_whole:
                self._data += self._chunks.trailing_data[0] + data[begin + _MAX_PART_BYTES :]
                self._request, self._chunks = None, None  # h11 has to read the next head
                self._num_framed = 0
                body, self._body = bytes(self._body), bytearray()
                return body
            if self._num_framed > 2 * len(self._body) + _MAX_FRAMING_BYTES:
                raise BadRequest(HTTPStatus.BAD_REQUEST, "expected chunks of more bytes")
        return None

    def _read_part(self, part: bytes) -> bool:
        """Read a part of a body in chunks; return whether it is the last."""
        assert self._chunks is not None
        try:
            self._chunks.receive_data(part)
            while isinstance(event := self._chunks.next_event(), h11.Data):
                self._body += event.data
        except h11.RemoteProtocolError as err:
            raise _malformed(err) from err
        return isinstance(event, h11.EndOfMessage)


def encode_head(status: int, headers: Headers, *, is_last: bool) -> bytes:
    """Write the head of an answer, up to the length of its body: number, CR, LF, CR, LF follow.

    Args:
        status: such as 200.
        headers: without the body's length.
        is_last: whether the connection is closed behind it.
    """
    last = [("connection", "close")] if is_last else []
    return b"%b%bcontent-length: " % (encode_status(status), encode_lines((*headers, *last)))


def encode_status(status: int) -> bytes:
    """Write the first line of an answer."""
    return f"HTTP/1.1 {status} {HTTPStatus(status).phrase}\r\n".encode("ascii")


LAST_CHUNK = b"0\r\n\r\n"


def encode_chunk(data: bytes) -> bytes:
    """Write a chunk of an answer whose length is not known."""
    return b"%x\r\n%b\r\n" % (len(data), data)


def encode_lines(headers: Headers) -> bytes:
    """Write headers."""
    return "".join(f"{name}: {value}\r\n" for name, value in headers).encode("latin-1")


def _malformed(error: h11.RemoteProtocolError) -> BadRequest:
    reason = " ".join(str(error).split())[:80]
    return BadRequest(HTTPStatus.BAD_REQUEST, f"malformed HTTP: {reason}")


def _too_long(max_bytes: int, got: str) -> BadRequest:
    text = f"expected a body of at most {max_bytes} bytes, got {got}"
    return BadRequest(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, text)
