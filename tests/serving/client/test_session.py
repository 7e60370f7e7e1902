"""A client's HTTP/2 without I/O: frames of a server in, outcomes and frames out."""

import math
import ssl
import time
from types import SimpleNamespace

import hpack
import pytest

from serving.client import transport
from serving.client.h2 import session
from serving.client.h2.session import ClientCall, Messages, Session, failure_of
from serving.http2 import ErrorCode, frames
from serving.http2.frames import frame, word
from serving.protocols.status import Failure, StatusCode
from serving.security.tls_probe import PLAINTEXT_SERVER
from tests.support.fakes import FakeClock

END = frames.END_STREAM
HELLO = frame(frames.SETTINGS, 0, bytes(4))
NO_MESSAGE = Failure(StatusCode.INTERNAL, "the answer is not one message without compression")
GONE = Failure(StatusCode.UNAVAILABLE, "the server takes no more calls on this connection")
LIMIT = 16 << 20


def headers(flags=0, **fields):
    """HEADERS of the status 200 or another one, and of further fields (_ for -)."""
    block = b"\x88" if "http" not in fields else b"\0" + text(":status") + text(fields.pop("http"))
    return frames.HEADERS, frames.END_HEADERS | flags, block + literals(fields)


def trailers(**fields):
    return frames.HEADERS, frames.END_HEADERS | END, literals(fields)


def literals(fields):
    return b"".join(
        b"\0" + text(name.replace("_", "-")) + text(value) for name, value in fields.items()
    )


def text(value):
    return bytes((len(value),)) + value.encode()


def data(payload, flags=0):
    return frames.DATA, flags, payload


def reset(code):
    return frames.RST_STREAM, 0, word(code)


def http(status, code, *, is_permanent=False):
    failure = Failure(code, f"the answer has HTTP status {status}", True, is_permanent=is_permanent)
    return (headers(END, http=status),), failure


def after_reset(code, status, reason=""):
    return (reset(code),), Failure(
        status, f"the server reset the call (HTTP/2 error {code:d})", reason=reason
    )


OK = trailers(grpc_status="0")
OUTCOMES = {
    "answer": ((headers(), data(b"\0\0\0\0\2hi"), OK), b"hi"),
    "in parts": ((headers(), data(b"\0\0"), data(b"\0\0\2h"), data(b"i"), OK), b"hi"),
    "prefix apart": ((headers(), data(b"\0\0\0\0\2"), data(b"hi"), OK), b"hi"),
    "empty": ((headers(), data(bytes(5)), OK), b""),
    "without a message": ((headers(), OK), NO_MESSAGE),
    "part of a prefix": ((headers(), data(bytes(4)), OK), NO_MESSAGE),
    "compressed": ((headers(), data(b"\1\0\0\0\2hi"), OK), NO_MESSAGE),
    "cut": ((headers(), data(b"\0\0\0\0\3hi"), OK), NO_MESSAGE),
    "two messages": ((headers(), data(b"\0\0\0\0\1a" * 2), OK), NO_MESSAGE),
    "refused": (
        (headers(END, grpc_status="5", grpc_message="no%20model"),),
        Failure(StatusCode.NOT_FOUND, "no model", True),
    ),
    "refused after a part": (
        (headers(), data(b"\0\0\0\0\2h"), trailers(grpc_status="13", grpc_message="oh")),
        Failure(StatusCode.INTERNAL, "oh", True),
    ),
    "status before trailers without one": (
        (headers(grpc_status="5"), trailers(x="y")), Failure(StatusCode.NOT_FOUND, "", True)
    ),
    "status of headers and of trailers": (
        (headers(grpc_status="5"), trailers(grpc_status="7")),
        Failure(StatusCode.PERMISSION_DENIED, "", True),
    ),
    "status, then a reset": (
        (headers(grpc_status="5"), reset(2)), Failure(StatusCode.NOT_FOUND, "", True)
    ),
    "unknown status": (
        (headers(END, grpc_status="x"),), Failure(StatusCode.UNKNOWN, "", True)
    ),
    "no status": (
        (headers(), data(b"\0\0\0\0\2hi", END)),
        Failure(StatusCode.UNKNOWN, "the answer has no status"),
    ),
    "no status in headers alone": (
        (headers(END),), Failure(StatusCode.UNKNOWN, "the answer has no status")
    ),
    "asked to come again": (
        (headers(END, grpc_status="14", grpc_retry_pushback_ms="250"),),
        Failure(StatusCode.UNAVAILABLE, "", False, "", 0.25),
    ),
    "asked to stay away": (
        (headers(END, grpc_status="14", grpc_retry_pushback_ms="no"),),
        Failure(StatusCode.UNAVAILABLE, "", False, "", -1.0),
    ),
    "refused stream": after_reset(ErrorCode.REFUSED_STREAM, StatusCode.UNAVAILABLE),
    "cancelled": after_reset(ErrorCode.CANCEL, StatusCode.CANCELLED),
    "too many": after_reset(
        ErrorCode.ENHANCE_YOUR_CALM, StatusCode.RESOURCE_EXHAUSTED, "OVERLOADED"
    ),
    "other reset": after_reset(ErrorCode.INTERNAL_ERROR, StatusCode.INTERNAL),
    "400": http("400", StatusCode.INTERNAL),
    "401": http("401", StatusCode.UNAUTHENTICATED),
    "403": http("403", StatusCode.PERMISSION_DENIED),
    "404": http("404", StatusCode.UNAVAILABLE, is_permanent=True),
    **{each: http(each, StatusCode.UNAVAILABLE) for each in ("429", "502", "503", "504")},
    "500": http("500", StatusCode.UNKNOWN),
}  # fmt: skip


def begun(calls, timeout_s=10.0, now_s=None):
    call = ClientCall((time.monotonic() if now_s is None else now_s) + timeout_s)
    calls.start(call, "/a.B/C", b"hi", ())
    return call


def of_call(call, *parts):
    return b"".join(frame(kind, flags, call.stream, payload) for kind, flags, payload in parts)


@pytest.mark.parametrize("name", OUTCOMES)
def test_outcome_is_what_the_frames_say(name):
    parts, expected = OUTCOMES[name]
    calls = Session("x:1", "http")
    call, other = begun(calls), begun(calls)
    calls.receive(HELLO)
    *first, last = parts
    calls.receive(of_call(call, *first))
    assert call.outcome is None
    calls.receive(of_call(call, last))
    assert call.outcome == expected
    assert [*calls.calls.values()] == [other]


def test_request_has_the_fields_of_grpc_and_the_callers():
    calls = Session("x:1", "https")
    call = ClientCall(time.monotonic() + 9.0)
    calls.start(call, "/a.B/C", b"hi", (("authorization", "Bearer t"), ("x-tenant", "a")))
    sent = calls.data_to_send()
    begin = sent.index(b"\1\4" + call.stream)  # HEADERS, END_HEADERS
    end = begin + 6 + int.from_bytes(sent[begin - 3 : begin])
    fields = [
        (str(name), str(value)) for name, value in hpack.Decoder().decode(sent[begin + 6 : end])
    ]
    assert fields == [
        (":method", "POST"), (":scheme", "https"), (":authority", "x:1"), (":path", "/a.B/C"),
        ("grpc-timeout", "9000m"), ("te", "trailers"), ("content-type", "application/grpc"),
        ("authorization", "Bearer t"), ("x-tenant", "a"),
    ]  # fmt: skip
    assert sent[end:] == frame(frames.DATA, END, call.stream, b"\0\0\0\0\2hi")


def test_headers_of_many_paths_take_no_more_memory():
    calls, sizes = Session("x:1", "http"), []
    for number in range(600):
        calls.start(ClientCall(math.inf), f"/{number}", b"", ())
        calls.start(ClientCall(math.inf), f"/{number}", b"", ())  # the same again
        sizes.append(len(calls._headers))
    assert sizes[:256] == [*range(1, 257)]
    assert max(sizes) == 256


def test_longest_answer_is_taken_and_a_longer_one_is_reset(monkeypatch):
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", LIMIT)
    calls = Session("x:1", "http")
    longest, longer = begun(calls), begun(calls)
    calls.receive(HELLO)
    part = bytes(1 << 20)
    for call in (longest, longer):
        calls.receive(of_call(call, headers(), data(b"\0" + LIMIT.to_bytes(4, "big"))))
        for _ in range(16):
            calls.receive(of_call(call, data(part)))
        assert call.outcome is None
    calls.receive(of_call(longest, OK))
    assert longest.outcome == bytes(LIMIT)
    calls.data_to_send()
    calls.receive(of_call(longer, data(b"a")))
    assert longer.outcome == transport.too_long()
    assert frame(frames.RST_STREAM, 0, longer.stream, word(ErrorCode.CANCEL)) in (
        calls.data_to_send()
    )


def test_server_that_goes_answers_what_it_has_taken_and_nothing_else():
    calls = Session("x:1", "http")
    taken, unread = begun(calls), begun(calls)
    calls.receive(HELLO + frame(frames.GOAWAY, 0, bytes(4), taken.stream + word(0)))
    assert (taken.outcome, unread.outcome, calls.failure) == (None, GONE, GONE)
    late = begun(calls)
    assert late.outcome == GONE
    assert [*calls.calls.values()] == [taken]
    calls.receive(of_call(taken, *OUTCOMES["answer"][0]))
    assert taken.outcome == b"hi"


def test_connection_ends_before_its_numbers_do():
    calls = Session("x:1", "http")
    calls._http2._next = 2**31 - 1 - 2 * 65_536
    last = begun(calls)
    assert calls.failure is None
    after = begun(calls)  # begun, too: it shows that the numbers end
    assert calls.failure == GONE
    assert [*calls.calls.values()] == [last, after]
    assert begun(calls).outcome == GONE


def test_lost_connection_ends_its_calls_and_later_ones():
    lost = Failure(StatusCode.UNAVAILABLE, "lost")
    calls = Session("x:1", "http")
    first, second = begun(calls), begun(calls)
    calls.fail_all(lost)
    assert [each.outcome for each in (first, second, begun(calls))] == [lost] * 3
    assert not calls.calls


@pytest.fixture
def clock(monkeypatch):
    clock = FakeClock(5.0)
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=clock))
    return clock


def test_silent_server_is_pinged_once_and_then_given_up(clock):
    calls = Session("x:1", "http")
    calls.receive(HELLO)
    begun(calls, now_s=clock())
    calls.data_to_send()
    ping = bytes((0, 0, 8, frames.PING, 0))
    clock.advance(transport.KEEPALIVE_TIME_S - 0.1)
    assert calls.is_alive()
    assert ping not in calls.data_to_send()
    clock.advance(0.1)
    assert calls.is_alive()
    assert calls.data_to_send().count(ping) == 1
    clock.advance(transport.KEEPALIVE_TIMEOUT_S - 0.1)
    assert calls.is_alive()
    assert not calls.data_to_send()
    clock.advance(0.1)
    assert not calls.is_alive()


@pytest.mark.parametrize(
    ("timeout_s", "sent"),
    [
        (0.001, b"1m"), (0.0991, b"100m"), (0.1, b"100m"), (0.101, b"110m"), (0.11, b"110m"),
        (99_000.0, b"99000000m"), (99_001.0, b"28H"), (3_600 * 99.5, b"100H"), (1e12, b"99999999H"),
    ],
)  # fmt: skip
def test_timeout_is_rounded_up_by_a_tenth_at_most(timeout_s, sent, monkeypatch):
    monkeypatch.setattr(session, "time", SimpleNamespace(monotonic=lambda: 0.0))
    calls = Session("x:1", "http")
    begun(calls, timeout_s, 0.0)
    assert b"grpc-timeout" + bytes((len(sent),)) + sent in calls.data_to_send()


def wrong_version():
    error = ssl.SSLError(1, "wrong version")
    error.reason = "WRONG_VERSION_NUMBER"
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ssl.SSLError(1, "bad certificate"), ("TLS handshake failed: bad certificate", True)),
        (ssl.SSLError("no number"), ("TLS handshake failed: no number", True)),
        (wrong_version(), (PLAINTEXT_SERVER, True)),
        (ssl.SSLEOFError(8, "EOF occurred"), ("can't connect: EOF occurred", False)),
        (OSError(0, "no number"), ("can't connect: no number", False)),
        (OSError(1, "its own text"), ("can't connect: Operation not permitted", False)),
        (OSError("nothing else"), ("can't connect: nothing else", False)),
    ],
)
def test_attempts_that_fail_in_tls_are_not_made_again(error, expected):
    failure = failure_of(error)
    assert failure.code is StatusCode.UNAVAILABLE
    assert (failure.text, failure.is_permanent) == expected
    assert not failure.is_answer


def framed(message):
    return b"\0" + len(message).to_bytes(4, "big") + message


def test_window_of_a_stream_is_opened_as_its_messages_are_taken():
    messages = Messages()
    assert messages.feed(framed(b"abc") + framed(b"de")[:4]) is None
    assert messages.feed(framed(b"de")[4:] + b"\0\0") is None
    assert [*messages.came] == [b"abc", b"de"]
    messages.came.popleft()
    assert messages.owed(3) == 8, "one waits still"
    messages.came.popleft()
    assert messages.owed(2) == 9, "all: the rest may be of a message longer than the window"
    assert messages.owed() == 0
    ok = Failure(StatusCode.OK, "")
    assert messages.end(ok) == Failure(
        StatusCode.INTERNAL, "the last message of the answer is cut off"
    )
    late = Failure(StatusCode.DEADLINE_EXCEEDED, "late")
    assert messages.end(late) == late
    assert messages.end(None) == Failure(StatusCode.UNKNOWN, "the answer has no status")
    assert Messages().end(ok) == ok


def test_server_may_send_more_once_a_message_is_taken():
    """Else a stream of more than its window would stand still."""
    calls = Session("x:1", "http", session.STREAMS)
    call = ClientCall(time.monotonic() + 10.0, Messages())
    calls.start(call, "/a.B/C", b"hi", ())
    message, update = bytes(700_000), bytes((frames.WINDOW_UPDATE, 0)) + call.stream
    calls.receive(HELLO + of_call(call, headers()))
    for _ in range(3):
        calls.data_to_send()
        calls.receive(of_call(call, data(framed(message))))
        assert update not in calls.data_to_send(), "it waits"
        assert calls.take_message(call) == message
        assert update in calls.data_to_send()
        assert calls.take_message(call) is None


@pytest.mark.parametrize(("size", "is_taken"), [(8, True), (9, False)])
def test_message_of_a_stream_has_the_limit_of_an_answer(size, is_taken, monkeypatch):
    monkeypatch.setattr(transport, "MAX_ANSWER_BYTES", 8)
    assert Messages().feed(framed(bytes(size))[:5]) == (None if is_taken else transport.too_long())
    assert Messages().feed(b"\1" + framed(b"a")[1:]) == Failure(
        StatusCode.INTERNAL, "the answer is compressed"
    )


@pytest.mark.parametrize(
    ("start", "failure"),
    [
        (b"\1\0\0\0\1a", Failure(StatusCode.INTERNAL, "the answer is compressed")),
        (b"\0" + (transport.MAX_ANSWER_BYTES + 1).to_bytes(4, "big"), transport.too_long()),
        (
            b"\1" + (transport.MAX_ANSWER_BYTES + 1).to_bytes(4, "big"),
            Failure(StatusCode.INTERNAL, "the answer is compressed"),
        ),
    ],
    ids=["compressed", "too long", "both"],
)
def test_message_of_a_stream_that_can_not_be_taken_ends_it(start, failure):
    calls = Session("x:1", "http")
    call = ClientCall(time.monotonic() + 10.0, Messages())
    calls.start(call, "/a.B/C", b"hi", ())
    calls.receive(HELLO)
    calls.data_to_send()
    calls.receive(of_call(call, headers(), data(framed(b"good") + start)))
    assert [calls.take_message(call), call.outcome] == [b"good", failure]
    assert frame(frames.RST_STREAM, 0, call.stream, word(ErrorCode.CANCEL)) in calls.data_to_send()
    assert not calls.calls


def test_connection_whose_calls_have_their_answers_is_not_pinged(clock):
    calls = Session("x:1", "http")
    calls.receive(HELLO)
    answered = begun(calls, now_s=clock())
    calls.receive(of_call(answered, *OUTCOMES["answer"][0]))
    assert answered.outcome == b"hi"
    calls.data_to_send()
    clock.advance(100 * transport.KEEPALIVE_TIME_S)
    assert calls.is_alive()
    assert not calls.data_to_send()
    assert calls.keepalive.due_s() == math.inf


def test_values_that_change_from_call_to_call_fill_no_table():
    """The server would forget fields that come again, and read each block whole."""
    calls, decoder = Session("x:1", "http"), hpack.Decoder()
    changing = ("grpc-message", "x-request-id", "traceparent", "tracestate")
    for number in range(4):
        metadata = (*((name, f"{name} {number}") for name in changing), ("x-tenant", "a"))
        calls.data_to_send()
        call = ClientCall(time.monotonic() + 7.0 + number)
        calls.start(call, "/a.B/C", b"hi", metadata)
        sent = calls.data_to_send()
        begin = sent.index(b"\1\4" + call.stream)
        end = begin + 6 + int.from_bytes(sent[begin - 3 : begin], "big")
        fields = {str(name): str(value) for name, value in decoder.decode(sent[begin + 6 : end])}
        assert fields.items() >= dict(metadata).items()
    known = {bytes(name).decode() for name, _ in decoder.header_table.dynamic_entries}
    assert {"x-tenant", ":path", ":authority"} <= known
    assert known.isdisjoint((*changing, "grpc-timeout"))


def settings_of(limits):
    """What a connection tells its server of itself at first, by the numbers of HTTP/2."""
    sent = Session("x:1", "http", limits).data_to_send()
    sent = sent.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
    assert sent[3] == frames.SETTINGS
    pairs = sent[9 : 9 + int.from_bytes(sent[:3], "big")]
    return {
        int.from_bytes(pairs[at : at + 2], "big"): int.from_bytes(pairs[at + 2 : at + 6], "big")
        for at in range(0, len(pairs), 6)
    }


@pytest.mark.parametrize(
    ("limits", "window_bytes"), [(None, 1 << 30), (session.STREAMS, 1 << 20)], ids=["one", "many"]
)
def test_answers_in_parts_are_sent_ahead_by_a_mebibyte(limits, window_bytes):
    """And others whole; no frame is longer than a mebibyte."""
    found = settings_of(limits)
    initial_window, max_frame = 4, 5
    assert (found[initial_window], found[max_frame]) == (window_bytes, 1 << 20)
