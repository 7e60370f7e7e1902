"""The handler of a request, once its host, origin and token are right; answers, and errors."""

import json
import math
import re
from collections.abc import Callable, Coroutine, Iterable
from email.utils import formatdate
from http import HTTPStatus
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qs, unquote, urlsplit

from serving.errors import (
    InvalidRequest,
    Overloaded,
    ServingError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from serving.http1.requests import (
    BadRequest,
    Headers,
    Request,
    encode_head,
    encode_lines,
    encode_status,
)
from serving.http2 import Pieces
from serving.protocols.known import KnownRequest
from serving.protocols.status import RETRY_AFTER_S, TABLE, row_of
from serving.system.addresses import is_named

if TYPE_CHECKING:
    from serving.security.tokens import TokenCheck

# Answers and errors

JSON = "application/json"
EVENTS = "text/event-stream"
_REASONS = {HTTPStatus.REQUEST_ENTITY_TOO_LARGE: TABLE[TooLarge].reason}
"""Reasons of statuses that have one on gRPC, too."""
_NAMES: dict[int, str] = {row.http.value: row.code.name for row in reversed(TABLE.values())}
"""Of several errors with one status, the first of the table counts."""
TIMEOUT_HEADER = "request-timeout"
"""The caller's timeout in seconds, such as 0.25."""
_MAX_TIMEOUT_S = 1e6
_MAX_QUERY_BYTES = 64 << 10
"""The longest body of a request that has no use for one."""
_GUARDED = ("/v2", "/v1")
"""Paths that need a token, if tokens are configured; health, the page and its files do not."""
_OPEN = ("/v2/health/live", "/v2/health/ready")
_MAX_HEADS = 64
"""Heads of answers that are kept: callers choose some of their headers."""
_HEADERS = [
    ("content-security-policy", "default-src 'self'; frame-ancestors 'none'; base-uri 'none'"),
    ("x-content-type-options", "nosniff"),
    ("referrer-policy", "no-referrer"),
]
_ALLOWED = [
    ("access-control-allow-methods", "GET, POST, PUT"),
    ("access-control-allow-headers",
     "authorization, content-encoding, content-type, inference-header-content-length, "
     "request-timeout, x-request-id"),
    ("access-control-expose-headers", "inference-header-content-length, retry-after, x-request-id"),
    ("access-control-max-age", "600"),
]  # fmt: skip


class Answer(NamedTuple):
    """An answer to a request."""

    body: bytes | Pieces
    kind: str = JSON
    """The type of the body; if empty, the body is what `encode_rest` has written."""
    status: int = 200
    headers: Headers = ()
    """Beside those of every answer."""
    code: str = ""
    """The gRPC status that the call is counted under; if empty, by the status: see `name_of`."""


class HttpError(Exception):
    """A request that is refused for a reason that only HTTP has."""

    def __init__(self, status: HTTPStatus, text: str, headers: Headers = ()) -> None:
        super().__init__(text)
        self.status = status
        self.headers = headers


def _headers_of(error: ServingError) -> Headers:
    """Return the headers of an error's answer, beside those of every answer."""
    if isinstance(error, Unauthenticated):
        return [("www-authenticate", "Bearer")]
    if not isinstance(error, Overloaded | Unavailable):
        return ()
    pause_s = RETRY_AFTER_S if error.retry_after_s is None else error.retry_after_s
    return [("retry-after", str(max(1, math.ceil(pause_s))))]  # whole seconds


def as_json(content: Any, status: int = 200) -> Answer:
    """Write an answer of JSON."""
    return Answer(json.dumps(content, separators=(",", ":")).encode(), status=status)


def problem(error: ServingError | HttpError) -> Answer:
    """Write the problem document of an error, with its text as the detail.

    The member `reason` is stable: that of gRPC, or the name of a status that only HTTP has.
    The member `error` repeats the detail, for clients of the Open Inference Protocol.
    """
    if isinstance(error, HttpError):
        status, headers, code = error.status, error.headers, name_of(error.status)
        reason = _REASONS.get(status, status.name)
    else:
        row = row_of(error)
        is_answer = isinstance(error, TooLarge) and error.is_answer
        status = HTTPStatus.INTERNAL_SERVER_ERROR if is_answer else row.http
        reason, headers = row.reason, _headers_of(error)
        code = row.code.name
    content = {
        "type": "about:blank",
        "title": status.phrase,
        "status": status.value,
        "reason": reason,
        "detail": str(error),
        "error": str(error),
    }
    body = json.dumps(content).encode()
    return Answer(body, "application/problem+json", status.value, headers, code)


def as_event(answer: Answer) -> Answer:
    """Write a problem document as the server-sent event that ends an answer in parts."""
    found = json.loads(bytes(answer.body))
    facts = {name: found[name] for name in ("error", "reason")}
    text = json.dumps(facts, separators=(",", ":"))
    return answer._replace(body=f"data: {text}\n\n".encode(), kind=EVENTS)


def name_of(status: int) -> str:
    """Return the gRPC status under which calls with this status of HTTP are counted."""
    return _NAMES.get(status, "OK" if status < 400 else "INVALID_ARGUMENT")


# Paths


Handler = Callable[[Any], Coroutine[Any, Any, Answer]]
"""Answers an `Exchange`."""


class Endpoint(NamedTuple):
    """The handler of a method on a path."""

    method: str
    path: str
    """With names of parts in braces, such as "/v2/models/{name}/infer"."""
    handler: Handler
    max_bytes: int | Callable[["RoutedRequest"], int] = _MAX_QUERY_BYTES
    """The longest body."""
    is_work: bool = False
    """Whether it is refused during a drain."""
    name: str = ""
    """The name under which its calls are counted, if it is none of the protocol's."""


class RoutedRequest:
    """The handling of a request, known from its head; the same for equal heads."""

    def __init__(self, request: Request) -> None:
        """Begin with the request's fields.

        Raises:
            BadRequest: its target is malformed.
        """
        self.request = request
        self.handler: Handler = _allow
        target, self.host = request.target, self.get("host")
        try:
            if target[:1] != "/":  # as proxies are asked, whose host counts
                parts = urlsplit(target)
                target, self.host = f"{parts.path}?{parts.query}", parts.netloc or self.host
            path, _, query = target.partition("?")
            self.query = parse_qs(query, keep_blank_values=True, max_num_fields=100)
        except ValueError as err:
            raise BadRequest(HTTPStatus.BAD_REQUEST, f"malformed target: {err}") from err
        self.path = unquote(path)
        self.name = _name_of(self.path)
        """The name under which it is counted."""
        self.route = ""
        """The path with names of parts in braces."""
        self.params: dict[str, str] = {}
        """The parts of the path that have names."""
        self.max_bytes = 0
        self.timeout_s = math.inf
        self.is_work = self.is_trusted = False
        self.is_packed = False
        """Whether the body is compressed with gzip."""
        self.headers: list[tuple[str, str]] = []
        """Headers of the answer."""
        self.known: KnownRequest | None = None
        """What is known of later requests with this head."""
        self.repeat: KnownRequest | None = None
        """The same of those that run without the handler: their head stands before their values."""

    def get(self, name: str) -> str:
        """Return a header; empty if there is none."""
        return self.request.get(name.encode()).decode("latin-1")


class App:
    """All routes, and who may use them."""

    def __init__(
        self,
        routes: Iterable[Endpoint],
        tokens: "TokenCheck | None",
        names: Iterable[str],
        origins: Iterable[str],
    ) -> None:
        """Take the routes.

        Args:
            routes: the paths.
            tokens: compares tokens; None if none are configured.
            names: of this server, beside localhost and addresses; "*" is any.
            origins: whose pages may ask, such as "https://example.org".
        """
        self._routes = [(_pattern(route.path), route) for route in routes]
        self.tokens = tokens
        self._names = {"localhost", *map(str.lower, names)}
        self._origins = set(origins)
        self._date = ""
        self._ok = b""
        """The first lines of an answer of status 200."""
        self._heads: dict[object, bytes] = {}
        """Heads of answers with the present date: most are the same."""
        self.set_date()

    def set_date(self) -> None:
        """Take the time that answers carry; called once a second or more often."""
        date = formatdate(usegmt=True)
        if date != self._date:
            self._date = date
            self._heads.clear()
            self._ok = encode_status(200) + encode_lines([("date", date)])

    def prepare(self, plan: RoutedRequest) -> None:
        """Find the handler of a request.

        Raises:
            ServingError: it is refused.
            HttpError: likewise.
        """
        request = plan.request
        names = (each.name for pattern, each in self._routes if each.name and pattern(plan.path))
        plan.name = next(names, plan.name)
        self._check_host(plan.host)
        self._check_origin(plan)
        if request.method == "OPTIONS" and plan.headers[1:]:  # a page asks whether it may ask
            return
        if self.tokens is not None:
            plan.is_trusted = self.tokens.accepts(request.all(b"authorization"))
            is_open = not plan.path.startswith(_GUARDED) or plan.path in _OPEN
            if not (plan.is_trusted or is_open):
                raise Unauthenticated("a valid bearer token is needed")
        route = self._find(plan)
        plan.handler, plan.is_work = route.handler, route.is_work
        plan.timeout_s = _timeout_s(plan.get(TIMEOUT_HEADER))
        encoding = plan.get("content-encoding").strip().lower()
        if encoding not in ("", "identity", "gzip", "x-gzip"):
            raise InvalidRequest(f"expected content-encoding gzip or none, got {encoding[:40]!r}")
        plan.is_packed = encoding.endswith("gzip")
        limit = route.max_bytes
        plan.max_bytes = limit if isinstance(limit, int) else limit(plan)

    def _find(self, plan: RoutedRequest) -> Endpoint:
        path = plan.path
        if len(path) > 1 and path.startswith(_GUARDED):
            path = path.rstrip("/")
        method = "GET" if plan.request.method == "HEAD" else plan.request.method
        matches = ((pattern(path), route) for pattern, route in self._routes)
        there = [(found, route) for found, route in matches if found]
        if not there:
            raise HttpError(HTTPStatus.NOT_FOUND, f"no such path: {plan.path[:80]}")
        for found, route in there:
            if route.method == method:
                plan.params, plan.route = found.groupdict(), route.path
                return route
        allowed = ", ".join(sorted({route.method for _, route in there}))
        text = f"not by {plan.request.method[:20]}"
        raise HttpError(HTTPStatus.METHOD_NOT_ALLOWED, text, [("allow", allowed)])

    def _check_host(self, host: str) -> None:
        """Check that the caller means this server; see `is_named`."""
        if host and not is_named(host, self._names):
            text = f"no server {host[:80]!r} here; see --http-host-name"
            raise HttpError(HTTPStatus.MISDIRECTED_REQUEST, text)

    def _check_origin(self, plan: RoutedRequest) -> None:
        """Check that the page that asks, if it is one, may do so."""
        origin = plan.get("origin")
        if not origin:
            return
        is_ours = origin.partition("://")[2].lower() == plan.host.lower()
        is_allowed = origin in self._origins
        if not (is_ours or is_allowed):
            text = f"pages of {origin[:80]!r} may not ask here; see --http-allow-origin"
            raise HttpError(HTTPStatus.FORBIDDEN, text)
        plan.headers = [("vary", "origin")]
        if is_allowed:
            plan.headers += [("access-control-allow-origin", origin), *_ALLOWED]

    def encode(
        self,
        answer: Answer,
        plan: RoutedRequest | None,
        *,
        is_last: bool,
        more: Iterable[tuple[str, str]] = (),
    ) -> bytes | Pieces:
        """Write an answer with the headers of every answer."""
        if not answer.kind:
            return self.finish(answer.body, is_last=is_last, more=more)
        headers = (*answer.headers, *more, *(() if plan is None else plan.headers))
        key = answer.status, answer.kind, is_last, headers
        head = self._heads.get(key)
        if head is None:
            first = ("date", self._date), ("content-type", answer.kind)
            head = encode_head(answer.status, (*first, *_HEADERS, *headers), is_last=is_last)
            if len(self._heads) < _MAX_HEADS:
                self._heads[key] = head
        with_body = plan is None or plan.request.method != "HEAD"
        head = b"%b%d\r\n\r\n" % (head, len(answer.body))
        if not with_body:
            return head
        return head + answer.body if isinstance(answer.body, bytes) else _joined(head, answer.body)

    def encode_begin(
        self,
        kind: str,
        plan: RoutedRequest,
        *,
        is_last: bool,
        in_chunks: bool,
        more: Iterable[tuple[str, str]] = (),
    ) -> bytes:
        """Write the head of an answer whose length is not known; see `encode`."""
        how = [("transfer-encoding", "chunked")] if in_chunks else []
        last = [("connection", "close")] if is_last else []
        first = ("date", self._date), ("content-type", kind), ("cache-control", "no-store")
        headers = (*first, *_HEADERS, *more, *plan.headers, *how, *last)
        return b"%b%b\r\n" % (encode_status(200), encode_lines(headers))

    def finish(
        self, rest: bytes | Pieces, *, is_last: bool, more: Iterable[tuple[str, str]] = ()
    ) -> bytes | Pieces:
        """Write an answer's first lines, which change, before what `encode_rest` has written."""
        if not is_last and not more:
            return self._ok + rest if isinstance(rest, bytes) else _joined(self._ok, rest)
        last = [("connection", "close")] if is_last else []
        return _joined(self._ok + encode_lines((*more, *last)), rest)


def _joined(head: bytes, body: bytes | Pieces) -> bytes | Pieces:
    """Return a head and what follows it, of which nothing long is copied."""
    if isinstance(body, bytes):
        return head + body
    body.prepend(head)
    return body


def encode_start(headers: Headers) -> bytes:
    """Write the headers of answers of JSON up to their length, which is `content-length` alone."""
    return encode_lines((("content-type", JSON), *_HEADERS, *headers))


def encode_rest(answer: Answer, more: Headers) -> bytes | Pieces:
    """Write an answer of status 200 but for its first lines: see `App.finish`."""
    length = "content-length", str(len(answer.body))
    headers = ("content-type", answer.kind), *_HEADERS, *answer.headers, *more, length
    head = b"%b\r\n" % encode_lines(headers)
    return head + answer.body if isinstance(answer.body, bytes) else _joined(head, answer.body)


async def _allow(_: Any) -> Answer:
    """Answer a page's question whether it may ask."""
    return Answer(b"")


def _pattern(path: str) -> Callable[[str], re.Match[str] | None]:
    parts = re.split(r"\{(\w+)\}", path)
    parts[::2] = map(re.escape, parts[::2])
    parts[1::2] = (f"(?P<{name}>[^/]+)" for name in parts[1::2])
    return re.compile("".join(parts)).fullmatch


def _name_of(path: str) -> str:
    if path.startswith("/v2"):
        return "HttpInfer" if path.rstrip("/").endswith("/infer") else "HttpQuery"
    return "other"


def _timeout_s(text: str) -> float:
    if not text:
        return math.inf
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"expected {TIMEOUT_HEADER} in seconds, above 0 and up to 1e6, got {text[:40]!r}"
        )
    return timeout_s
