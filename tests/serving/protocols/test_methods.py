"""The five kinds of methods, by a call that keeps what happens to it."""

import asyncio
from typing import Any

import pytest

from serving.errors import InvalidRequest, ModelError
from serving.protocols.method import (
    BatchedStream,
    BatchedUnary,
    Elsewhere,
    Method,
    Replies,
    Unary,
    Watch,
)

POOL: Any = "the pool"


class FakeCall:
    """Has a caller's messages, and notes what a method does with the call, in order."""

    def __init__(self, *messages):
        self.messages, self.did = list(messages), []

    async def message(self):
        return self.messages.pop(0) if self.messages else None

    async def send(self, message):
        self.did.append(("send", message))

    async def send_framed(self, response):
        self.did.append(("send framed", response))

    async def run(self, rows, encoder):
        self.did.append(("run", rows, encoder))
        return b"answer of " + rows

    async def work(self, function, *args, pool=None):
        self.did.append(("work", pool))
        return function(*args)

    async def answer_in_order(self, rows, refused):
        error = rows if isinstance(rows, Exception) else InvalidRequest("late")
        self.did.append(("in order", rows, refused(error)))

    def post(self, message):
        self.did.append(("post", message))

    async def left(self):
        self.did.append("left")
        raise asyncio.CancelledError


def handled(method, *messages):
    call = FakeCall(*messages)
    asyncio.run(method.handle(call))
    return call.did


def read(message) -> Any:
    if message == b"bad":
        raise InvalidRequest("it is bad")
    if message == b"bug":
        raise KeyError("a bug")
    return message.upper(), "encoder"


FACTS: dict[str, Any] = {"path": "/a.B/C", "name": "C"}


def read_short(found) -> Any:
    return b"<" + found + b">", "other"


ELSEWHERE = Elsewhere(
    lambda message: len(message) > 3, lambda message: message[:2], read_short, POOL
)
KINDS: dict[str, tuple[Method, tuple[bool, bool, bool]]] = {
    "unary": (Unary(**FACTS, answer=bytes.upper), (True, True, False)),
    "batched": (BatchedUnary(**FACTS, read=read), (True, True, True)),
    "stream": (BatchedStream(**FACTS, read=read), (False, False, False)),
    "replies": (Replies(**FACTS, replies=lambda message: []), (False, False, False)),
    "watch": (Watch(**FACTS, subscribe=lambda *_: lambda: None), (True, False, False)),
}


@pytest.mark.parametrize("kind", KINDS)
def test_kinds_say_what_transports_ask(kind):
    method, expected = KINDS[kind]
    assert (method.takes_one, method.sends_one, method.is_counted_by_run) == expected
    assert (method.path, method.name) == ("/a.B/C", "C")
    assert method.is_open is False, "a method that needs no token says so"


def test_unary_is_answered_at_once_or_on_a_thread():
    assert handled(Unary(**FACTS, answer=bytes.upper), b"a") == [("send", b"A")]
    slow = Unary(**FACTS, answer=bytes.upper, is_slow=True)
    assert handled(slow, b"a") == [("work", None), ("send", b"A")]


def test_rows_are_run_and_long_messages_are_read_elsewhere():
    near, far = (
        BatchedUnary(**FACTS, read=read),
        BatchedUnary(**FACTS, read=read, elsewhere=ELSEWHERE),
    )
    for method in near, far:
        assert handled(method, b"abc") == [
            ("run", b"ABC", "encoder"), ("send framed", b"answer of ABC")]  # fmt: skip
    assert handled(far, b"abcd") == [
        ("work", POOL), ("run", b"<ab>", "other"), ("send framed", b"answer of <ab>")]  # fmt: skip
    with pytest.raises(InvalidRequest):
        handled(near, b"bad")


def test_stream_is_answered_in_order_and_refusals_among_them(caplog):
    def encoded(request, error):
        return request + b": " + str(error).encode()

    method = BatchedStream(**FACTS, read=read, elsewhere=ELSEWHERE, error_message=encoded)
    first, bad, long, bug = handled(method, b"abc", b"bad", b"abcd", b"bug")[:2] + handled(
        method, b"abcd", b"bug")[1:]  # fmt: skip
    assert first == ("in order", (b"ABC", "encoder"), b"abc: late")
    assert (str(bad[1]), bad[2]) == ("it is bad", b"bad: it is bad")
    assert bad[1].__traceback__ is None, "it would keep the message"
    assert long == ("in order", (b"<ab>", "other"), b"abcd: late")
    assert (type(bug[1]), bug[2]) == (ModelError, b"bug: internal error")
    assert caplog.messages == ["a method failed"] * 2
    plain = BatchedStream(**FACTS, read=read)
    assert handled(plain, b"bad")[0][2] is None, "the stream ends with the error"


def test_replies_follow_each_message():
    method = Replies(**FACTS, replies=lambda message: [message, message.upper()][: len(message)])
    assert handled(method, b"a", b"", b"bc") == [
        ("send", b"a"), ("send", b"bc"), ("send", b"BC")]  # fmt: skip


def test_watch_ends_with_its_call():
    call = FakeCall(b"a")

    def subscribe(request, send):
        send(request.upper())
        return lambda: call.did.append("over")

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(Watch(**FACTS, subscribe=subscribe).handle(call))
    assert call.did == [("post", b"A"), "left", "over"]


def test_methods_that_take_rows_know_none_at_first_and_share_nothing():
    first, second = BatchedUnary(**FACTS, read=read), BatchedStream(**FACTS, read=read)
    assert first.known == second.known == {}
    assert first.known is not second.known
    assert (first.elsewhere, second.elsewhere) == (None, None)
    base = Method(**FACTS)
    assert (base.is_open, base.takes_one, base.sends_one, base.is_counted_by_run) == (
        False, True, True, False)  # fmt: skip


def test_watch_ends_once_though_its_call_fails():
    call = FakeCall(b"a")

    async def left():
        raise RuntimeError("a bug")

    call.left = left

    def subscribe(request, send):
        return lambda: call.did.append("over")

    with pytest.raises(RuntimeError, match="a bug"):
        asyncio.run(Watch(**FACTS, subscribe=subscribe).handle(call))
    assert call.did == ["over"]
