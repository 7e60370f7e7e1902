"""Which handler a request of HTTP gets, why it is refused, and what an answer looks like."""

import json
import math
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import h11
import pytest

from serving.errors import (
    InvalidRequest,
    ModelError,
    Overloaded,
    ServingError,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from serving.http1.requests import BadRequest, Request
from serving.transports import http_routing
from serving.transports.http_routing import (
    Answer,
    App,
    Endpoint,
    HttpError,
    RoutedRequest,
    as_event,
    as_json,
    encode_rest,
    name_of,
    problem,
)

DATE = "Sun, 06 Nov 1994 08:49:37 GMT"
FIXED = (
    b"content-security-policy: default-src 'self'; frame-ancestors 'none'; base-uri 'none'\r\n"
    b"x-content-type-options: nosniff\r\nreferrer-policy: no-referrer\r\n"
)
"""Headers of every answer."""
TOKEN = "Bearer good"
TOKENS: Any = SimpleNamespace(accepts=lambda values: values == [TOKEN.encode()])


async def first(_: Any) -> Answer:
    return Answer(b"")


async def second(_: Any) -> Answer:
    return Answer(b"")


ROUTES = [
    Endpoint("POST", "/v2/models/{name}/infer", first, 100, is_work=True),
    Endpoint("GET", "/v2/models/{name}/versions/{version}", second),
    Endpoint("GET", "/v2/health/live", second),
    Endpoint("POST", "/v1/own", first, lambda plan: len(plan.path), name="Own", is_work=True),
    Endpoint("GET", "/", second),
    Endpoint("GET", "/a+b/{x}", second),
    Endpoint("GET", "/v2/health/ready", second),
]


def plan_of(method="GET", target="/", **headers):
    fields = [("Host", headers.pop("host", "localhost:80"))]
    fields += [(name.replace("_", "-"), value) for name, value in headers.items()]
    return RoutedRequest(Request(h11.Request(method=method, target=target, headers=fields)))


def app_of(tokens=None):
    return App(ROUTES, tokens, ["here.org"], ["https://page.org"])


def prepared(*args, tokens=None, **headers):
    plan = plan_of(*args, **headers)
    app_of(tokens).prepare(plan)
    return plan


@pytest.mark.parametrize(
    ("method", "target", "number", "params"),
    [
        ("POST", "/v2/models/iris/infer", 0, {"name": "iris"}),
        ("POST", "/v2/models/a%2Fb%20c/infer", None, {}),
        ("POST", "/v2/models/a%20c/infer/?x=1", 0, {"name": "a c"}),
        ("POST", "http://here.org/v2/models/iris/infer?x", 0, {"name": "iris"}),
        ("GET", "/v2/models/iris/versions/3", 1, {"name": "iris", "version": "3"}),
        ("HEAD", "/v2/models/iris/versions/3", 1, {"name": "iris", "version": "3"}),
        ("POST", "/v1/own", 3, {}),
        ("GET", "/", 4, {}),
        ("GET", "/?a=b", 4, {}),
        ("GET", "/a+b/c", 5, {"x": "c"}),
        ("GET", "/aab/c", None, {}),
        ("GET", "/a+b/c/", None, {}),
        ("GET", "/v2/models//versions/3", None, {}),
    ],
)
def test_path_has_its_handler(method, target, number, params):
    if number is None:
        with pytest.raises(HttpError, match=r"^no such path: /") as caught:
            prepared(method, target)
        assert caught.value.status is HTTPStatus.NOT_FOUND
        return
    plan, route = prepared(method, target), ROUTES[number]
    assert (plan.handler, plan.params, plan.route) == (route.handler, params, route.path)
    assert plan.is_work is route.is_work is (number in (0, 3))
    assert plan.max_bytes == {0: 100, 3: len("/v1/own")}.get(number, 64 << 10)
    assert plan.name == {0: "HttpInfer", 3: "Own", 4: "other", 5: "other"}.get(number, "HttpQuery")
    assert (plan.timeout_s, plan.is_packed, plan.is_trusted) == (math.inf, False, False)
    assert plan.headers == []


def test_query_is_read_and_a_long_one_refused():
    assert plan_of(target="/?a=1&a=2&b=").query == {"a": ["1", "2"], "b": [""]}
    plan_of(target="/?" + "&".join("a=1" for _ in range(100)))
    for target in "/?" + "&".join("a=1" for _ in range(101)), "http://[:/":
        with pytest.raises(BadRequest, match=r"^malformed target: ") as caught:
            plan_of(target=target)
        assert caught.value.status is HTTPStatus.BAD_REQUEST


def test_other_methods_are_named():
    with pytest.raises(HttpError, match=r"^not by DELETE$") as caught:
        prepared("DELETE", "/v1/own")
    assert caught.value.status is HTTPStatus.METHOD_NOT_ALLOWED
    assert caught.value.headers == [("allow", "POST")]


@pytest.mark.parametrize(
    ("host", "target", "is_ours"),
    [
        ("localhost:8080", "/", True), ("HERE.org", "/", True), ("10.0.0.1:80", "/", True),
        ("", "/", True), ("else.org", "/", False), ("here.org", "http://else.org/", False),
        ("else.org", "http://here.org/", True),
    ],
)  # fmt: skip
def test_host_is_this_one(host, target, is_ours):
    if is_ours:
        prepared(target=target, host=host)
        return
    with pytest.raises(
        HttpError, match=r"^no server 'else.org' here; see --http-host-name$"
    ) as caught:
        prepared(target=target, host=host)
    assert caught.value.status is HTTPStatus.MISDIRECTED_REQUEST


def test_request_that_is_refused_is_counted_by_the_name_of_its_path():
    for refusing in ({"host": "else.org"}, {"origin": "http://page.org"}, {"tokens": TOKENS}):
        tokens = refusing.pop("tokens", None)
        plan = plan_of("POST", "/v1/own", **refusing)
        assert plan.name == "other"
        with pytest.raises((HttpError, Unauthenticated)):
            app_of(tokens).prepare(plan)
        assert plan.name == "Own"


ALLOWED = [
    ("vary", "origin"), ("access-control-allow-origin", "https://page.org"),
    ("access-control-allow-methods", "GET, POST, PUT"),
    ("access-control-allow-headers",
     "authorization, content-encoding, content-type, inference-header-content-length, "
     "request-timeout, x-request-id"),
    ("access-control-expose-headers", "inference-header-content-length, retry-after, x-request-id"),
    ("access-control-max-age", "600"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("origin", "headers"),
    [("http://localhost:80", ALLOWED[:1]), ("http://LOCALHOST:80", ALLOWED[:1]),
     ("https://page.org", ALLOWED), ("http://localhost:81", None), ("http://page.org", None),
     ("null", None)],
)  # fmt: skip
def test_pages_that_may_ask(origin, headers):
    if headers is not None:
        assert prepared(origin=origin).headers == headers
        return
    with pytest.raises(HttpError, match=r"may not ask here; see --http-allow-origin$") as caught:
        prepared(origin=origin)
    assert caught.value.status is HTTPStatus.FORBIDDEN


def test_page_that_calls_another_server_learns_nothing_of_who_may_ask():
    with pytest.raises(HttpError, match=r"^no server 'else.org' here"):
        prepared(host="else.org", origin="http://page.org")


def test_question_of_a_page_needs_no_token_and_no_handler():
    plan = prepared("OPTIONS", "/v1/own", tokens=TOKENS, origin="https://page.org")
    assert plan.handler is http_routing._allow
    for headers in {}, {"origin": "http://localhost:80"}:
        with pytest.raises((HttpError, Unauthenticated)):
            prepared("OPTIONS", "/v1/own", tokens=TOKENS, **headers)


@pytest.mark.parametrize(
    ("method", "target", "is_open"),
    [("POST", "/v1/own", False), ("GET", "/v2/models/iris/versions/3", False),
     ("GET", "/v2/health/live", True), ("GET", "/v2/health/ready", True),
     ("GET", "/", True), ("GET", "/a+b/c", True),
     ("GET", "/v2/nothing", False)],
)  # fmt: skip
def test_guarded_paths_need_a_token(method, target, is_open):
    for sent in None, "Bearer bad":
        headers = {} if sent is None else {"authorization": sent}
        if is_open:
            assert prepared(method, target, tokens=TOKENS, **headers).is_trusted is False
        else:
            with pytest.raises(Unauthenticated):
                prepared(method, target, tokens=TOKENS, **headers)
    if target != "/v2/nothing":
        assert prepared(method, target, tokens=TOKENS, authorization=TOKEN).is_trusted is True


@pytest.mark.parametrize(
    ("text", "timeout_s"),
    [("", math.inf), ("0.25", 0.25), ("1e6", 1e6), ("1000001", None), ("0", None), ("-1", None),
     ("nan", None), ("inf", None), ("a", None)],
)  # fmt: skip
def test_timeout_is_in_seconds(text, timeout_s):
    headers = {"request_timeout": text} if text else {}
    if timeout_s is not None:
        assert prepared(**headers).timeout_s == timeout_s
    else:
        with pytest.raises(InvalidRequest, match=f"above 0 and up to 1e6, got '{text}'$"):
            prepared(**headers)


@pytest.mark.parametrize(
    ("encoding", "is_packed"),
    [("gzip", True), ("X-GZIP", True), ("identity", False), ("", False), ("br", None)],
)
def test_only_gzip_is_unpacked(encoding, is_packed):
    if is_packed is None:
        with pytest.raises(
            InvalidRequest, match=r"^expected content-encoding gzip or none, got 'br'"
        ):
            prepared(content_encoding=encoding)
    else:
        assert prepared(content_encoding=encoding).is_packed is is_packed


# Answers


@pytest.mark.parametrize(
    ("error", "status", "reason", "headers", "code"),
    [
        (InvalidRequest("x"), 400, "INVALID_REQUEST", (), "INVALID_ARGUMENT"),
        (TooLarge("x"), 413, "TOO_LARGE", (), "RESOURCE_EXHAUSTED"),
        (Unauthenticated("x"), 401, "UNAUTHENTICATED", [("www-authenticate", "Bearer")],
         "UNAUTHENTICATED"),
        (Overloaded("x"), 429, "OVERLOADED", [("retry-after", "1")], "RESOURCE_EXHAUSTED"),
        (Unavailable("x", retry_after_s=2.1), 503, "UNAVAILABLE", [("retry-after", "3")],
         "UNAVAILABLE"),
        (ModelError("x"), 500, "MODEL_ERROR", (), "INTERNAL"),
        (HttpError(HTTPStatus.NOT_FOUND, "x", [("a", "b")]), 404, "NOT_FOUND", [("a", "b")],
         "NOT_FOUND"),
        (HttpError(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, "x"), 413, "TOO_LARGE", (),
         "RESOURCE_EXHAUSTED"),
        (HttpError(HTTPStatus.METHOD_NOT_ALLOWED, "x"), 405, "METHOD_NOT_ALLOWED", (),
         "INVALID_ARGUMENT"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)  # fmt: skip
def test_problems_are_whole(error, status, reason, headers, code):
    answer = problem(error)
    assert json.loads(bytes(answer.body)) == {
        "type": "about:blank", "title": HTTPStatus(status).phrase, "status": status,
        "reason": reason, "detail": "x", "error": "x",
    }  # fmt: skip
    assert answer[1:] == ("application/problem+json", status, headers, code)
    event = as_event(answer)
    assert bytes(event.body) == f'data: {{"error":"x","reason":"{reason}"}}\n\n'.encode()
    assert event.kind == "text/event-stream"


def test_answer_that_is_too_large_is_the_servers_fault():
    error = TooLarge("x")
    error.is_answer = True
    answer = problem(error)
    assert (answer.status, answer.code, answer.headers) == (500, "RESOURCE_EXHAUSTED", ())


def test_errors_of_no_branch_are_internal():
    assert problem(ServingError("x")).status == 500


def test_statuses_are_counted_as_grpcs():
    found = {status: name_of(status) for status in (200, 204, 304, 400, 404, 418, 429, 500, 503)}
    assert found == {
        200: "OK", 204: "OK", 304: "OK", 400: "INVALID_ARGUMENT", 404: "NOT_FOUND",
        418: "INVALID_ARGUMENT", 429: "RESOURCE_EXHAUSTED", 500: "INTERNAL", 503: "UNAVAILABLE",
    }  # fmt: skip


@pytest.fixture
def app(monkeypatch):
    monkeypatch.setattr(http_routing, "formatdate", lambda usegmt: DATE if usegmt else "")
    return app_of()


def test_answers_are_whole(app):
    plan = prepared(origin="http://localhost:80")
    answer = as_json({"a": [1, 2]})._replace(headers=(("x-own", "1"),))
    head = (
        b"HTTP/1.1 200 OK\r\ndate: " + DATE.encode() + b"\r\ncontent-type: application/json\r\n"
        + FIXED + b"x-own: 1\r\nx-more: 2\r\nvary: origin\r\n"
    )  # fmt: skip
    more = (("x-more", "2"),)
    for _ in range(2):  # the second one from those that are kept
        assert app.encode(answer, plan, is_last=False, more=more) == (
            head + b'content-length: 11\r\n\r\n{"a":[1,2]}')  # fmt: skip
    assert app.encode(answer, plan, is_last=True, more=more) == (
        head + b'connection: close\r\ncontent-length: 11\r\n\r\n{"a":[1,2]}')  # fmt: skip
    asked = plan_of("HEAD", origin="http://localhost:80")
    asked.headers = plan.headers
    assert (
        app.encode(answer, asked, is_last=False, more=more) == head + b"content-length: 11\r\n\r\n"
    )
    assert app.encode(Answer(b"x", status=404), None, is_last=False).startswith(
        b"HTTP/1.1 404 Not Found\r\n")  # fmt: skip


def test_answers_of_unknown_length_are_whole(app):
    head = (
        b"HTTP/1.1 200 OK\r\ndate: " + DATE.encode() + b"\r\ncontent-type: text/event-stream\r\n"
        b"cache-control: no-store\r\n" + FIXED + b"a: b\r\n"
    )  # fmt: skip
    for is_last, in_chunks, more in (
        (False, True, b"transfer-encoding: chunked\r\n"),
        (True, False, b"connection: close\r\n"),
    ):
        found = app.encode_begin("text/event-stream", prepared(), is_last=is_last,
                                 in_chunks=in_chunks, more=(("a", "b"),))  # fmt: skip
        assert found == head + more + b"\r\n"


def test_answers_that_are_written_elsewhere_get_their_first_lines(app):
    rest = encode_rest(Answer(b"abc", "text/plain", headers=(("x-own", "1"),)), (("m", "2"),))
    assert rest == (b"content-type: text/plain\r\n" + FIXED
                    + b"x-own: 1\r\nm: 2\r\ncontent-length: 3\r\n\r\nabc")  # fmt: skip
    first_lines = b"HTTP/1.1 200 OK\r\ndate: " + DATE.encode() + b"\r\n"
    written = Answer(rest, kind="")
    assert app.encode(written, None, is_last=False) == first_lines + rest
    assert app.encode(written, None, is_last=True, more=(("a", "b"),)) == (
        first_lines + b"a: b\r\nconnection: close\r\n" + rest)  # fmt: skip


def test_date_follows_the_clock(app, monkeypatch):
    before = app.encode(Answer(b""), None, is_last=False)
    monkeypatch.setattr(http_routing, "formatdate", lambda usegmt: "later")
    assert app.encode(Answer(b""), None, is_last=False) == before
    app.set_date()
    later = before.replace(DATE.encode(), b"later")
    assert app.encode(Answer(b""), None, is_last=False) == later
    assert app.finish(b"", is_last=False) == b"HTTP/1.1 200 OK\r\ndate: later\r\n"


def test_heads_that_are_kept_are_bounded(app):
    for number in range(200):
        answer = Answer(b"", headers=(("x", str(number)),))
        assert b"\r\nx: %d\r\n" % number in app.encode(answer, None, is_last=False)
    assert len(app._heads) <= 64, "callers choose some of their headers"


def test_route_and_answer_that_say_little_are_these():
    route = Endpoint("GET", "/", second)
    assert route == ("GET", "/", second, 65_536, False, "")
    assert Answer(b"x") == (b"x", "application/json", 200, (), "")
    assert as_json({"a": 1}) == Answer(b'{"a":1}')
    assert as_json([1, 2], 503) == Answer(b"[1,2]", status=503)
