"""A connection of an event loop, by the bytes that come and those that it writes."""

import asyncio
import time

import pytest

from serving.client import transport
from serving.client.addresses import Address
from serving.client.credentials import Credentials
from serving.client.h2.event_loop import ReconnectingLoopChannel, TaskStream, _LoopConnection
from serving.client.h2.session import Session
from serving.client.h2.threads import ReconnectingChannel
from serving.http2 import frames
from serving.http2.frames import frame
from serving.protocols.status import Failure, StatusCode
from tests.serving.client.test_session import HELLO, OK, data, headers, of_call
from tests.support.fakes import called_soon


class Wire:
    """What the connection writes, in pieces."""

    def __init__(self):
        self.written, self.is_aborted = [], False

    def write(self, piece):
        assert piece
        if self.is_aborted:
            raise RuntimeError("it is closed")
        self.written.append(bytes(piece))

    def abort(self):
        self.is_aborted = True


class Setting:
    """A connection and its wire."""

    def __init__(self):
        self.session = Session("x:1", "http")
        self.connection = _LoopConnection(self.session)
        self.wire = Wire()

    def connected(self):
        self.connection.connection_made(self.wire)
        self.connection.data_received(HELLO)
        return self

    def start(self, timeout_s=20.0, **kind):
        deadline_s = asyncio.get_running_loop().time() + timeout_s
        return self.connection.start("/a.B/C", b"hi", (), deadline_s, **kind)

    def answer(self, call, *parts):
        self.connection.data_received(of_call(call, *parts))

    def kinds(self):
        """The kinds of the frames that were written since the last time, piece by piece."""
        found = []
        for piece in self.wire.written:
            at, kinds = 0, []
            piece = piece.removeprefix(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
            while at < len(piece):
                kinds.append(piece[at + 3])
                at += 9 + int.from_bytes(piece[at : at + 3], "big")
            found.append(kinds)
        self.wire.written = []
        return found


REQUEST = [frames.HEADERS, frames.DATA]


async def turns(number=5):
    for _ in range(number):
        await asyncio.sleep(0)


async def test_calls_of_a_turn_are_written_together():
    setting = Setting()
    early = setting.start()
    await turns()
    assert setting.kinds() == [], "it is not connected yet"
    setting.connected()
    kinds = [kind for piece in setting.kinds() for kind in piece]
    assert [kind for kind in kinds if kind in REQUEST] == REQUEST
    first, second = setting.start(), setting.start()
    assert setting.kinds() == []
    await turns()
    assert setting.kinds() == [REQUEST * 2]
    setting.answer(second, headers(), data(b"\0\0\0\0\1b"), OK)
    setting.answer(first, headers(), data(b"\0\0\0\0\1a"), OK)
    assert [await second.result(), await first.result()] == [b"b", b"a"]
    assert [*setting.session.calls.values()] == [early]
    third = setting.start()
    await turns()
    assert setting.kinds()[-1] == REQUEST
    third.cancel()


@pytest.mark.parametrize("way", ["cancel", "task"])
async def test_cancelled_call_is_reset(way):
    setting = Setting().connected()
    call = setting.start()
    await turns()
    setting.kinds()
    if way == "cancel":
        call.cancel()
        assert await call.result() == transport.CUT_OFF
    else:
        task = asyncio.ensure_future(call.result())
        await turns()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    await turns()
    assert setting.kinds() == [[frames.RST_STREAM]]
    assert not setting.session.calls


async def test_streams_go_on_message_by_message():
    setting = Setting().connected()
    call = setting.start(kind=TaskStream)
    parts = [data(b"\0\0\0\0\1" + each) for each in (b"a", b"b", b"c")]
    first = asyncio.ensure_future(call.next())
    await turns()
    assert not first.done()
    setting.answer(call, headers(), *parts[:2])
    assert [await first, await call.next()] == [b"a", b"b"]
    third = asyncio.ensure_future(call.next())
    await turns()
    assert not third.done()
    setting.answer(call, parts[2], OK)
    assert await third == b"c"
    for _ in range(2):
        end = await call.next()
        assert isinstance(end, Failure)
    call.cancel()
    assert not setting.session.calls


async def test_cancelled_stream_is_reset_once():
    setting = Setting().connected()
    call = setting.start(kind=TaskStream)
    await turns()
    setting.kinds()
    task = asyncio.ensure_future(call.next())
    await turns()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await turns()
    assert setting.kinds() == [[frames.RST_STREAM]], "by the end of the task that waited"
    call.cancel()
    await turns()
    assert setting.kinds() == []
    assert await call.next() == transport.CUT_OFF


async def test_late_calls_end_and_others_stay():
    setting = Setting().connected()
    stays, late = setting.start(), setting.start(timeout_s=0.01)
    assert await asyncio.wait_for(late.result(), 20.0) is transport.LATE
    assert [*setting.session.calls.values()] == [stays]
    later = setting.start(timeout_s=0.01)
    assert await asyncio.wait_for(later.result(), 20.0) is transport.LATE
    await turns()
    assert setting.kinds()[-1] == [frames.RST_STREAM]


@pytest.mark.parametrize(
    ("end", "text"),
    [
        (lambda each: each.connection_lost(None), "the server closed the connection"),
        (lambda each: each.connection_lost(OSError("cut")), "cut"),
        (lambda each: each.data_received(frame(frames.PING, 0, b"12345")), "the connection broke"),
    ],
    ids=["closed", "lost", "broken"],
)
async def test_connection_that_ends_ends_its_calls(end, text):
    setting = Setting().connected()
    calls = [setting.start(), setting.start(kind=TaskStream)]
    await turns()
    end(setting.connection)
    failures = await calls[0].result(), await calls[1].next()
    assert failures[0] == failures[1]
    assert failures[0].code is StatusCode.UNAVAILABLE
    assert failures[0].text.startswith(text)
    assert setting.wire.is_aborted
    assert setting.connection._timer.cancelled(), "nobody is looked at any more"
    assert (await setting.start().result()).code is StatusCode.UNAVAILABLE


async def test_silent_server_is_given_up(monkeypatch):
    setting = Setting().connected()
    monkeypatch.setattr(setting.session.keepalive, "due_s", time.monotonic)
    monkeypatch.setattr(Session, "is_alive", lambda self: False)
    call = setting.start()
    failure = await asyncio.wait_for(call.result(), 20.0)
    assert failure == Failure(StatusCode.UNAVAILABLE, "the server is silent")
    assert setting.wire.is_aborted


async def test_fault_of_our_own_ends_the_calls_and_is_reported(monkeypatch):
    setting, contexts = Setting().connected(), []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: contexts.append(context))
    call = setting.start()
    error = KeyError("a bug")
    monkeypatch.setattr(Session, "receive", lambda *_: (_ for _ in ()).throw(error))
    setting.connection.data_received(b"x")
    failure = await call.result()
    text = "the client failed: KeyError: 'a bug'"
    assert failure == Failure(StatusCode.UNAVAILABLE, text, is_permanent=True)
    assert contexts == [{"message": text, "exception": error, "protocol": setting.connection}]
    assert setting.wire.is_aborted


async def test_connection_without_calls_of_a_server_that_goes_is_closed():
    setting = Setting().connected()
    call = setting.start()
    await turns()
    goaway = frame(frames.GOAWAY, 0, bytes(4), call.stream + bytes(4))
    setting.connection.data_received(goaway)
    assert not setting.wire.is_aborted, "it answers what it has taken"
    setting.kinds()
    ping = frame(frames.PING, 0, bytes(4), b"12345678")
    answer = of_call(call, headers(), data(b"\0\0\0\0\1a"), OK)
    setting.connection.data_received(ping + answer)
    assert await call.result() == b"a"
    assert setting.wire.is_aborted
    assert setting.kinds()[0][0] == frames.PING, "it has its answer before"


async def test_late_call_is_late_though_the_server_is_silent_too(monkeypatch):
    setting = Setting().connected()
    late, stays = setting.start(timeout_s=-1.0), setting.start()
    monkeypatch.setattr(Session, "is_alive", lambda self: False)
    setting.connection._check()
    assert await late.result() is transport.LATE
    assert await stays.result() == Failure(StatusCode.UNAVAILABLE, "the server is silent")
    assert setting.wire.is_aborted


async def test_call_of_a_connection_that_is_lost_may_be_cancelled():
    setting = Setting().connected()
    setting.connection.connection_lost(None)
    call = setting.start()
    call.cancel()
    assert (await call.result()).text == "the server closed the connection"


async def test_later_call_does_not_put_off_the_deadline_of_an_earlier_one():
    setting = Setting().connected()
    now_s = asyncio.get_running_loop().time()
    calls = [setting.start(timeout_s=timeout_s) for timeout_s in (1.0, 20.0)]
    assert setting.connection._timer.when() <= now_s + 1.01
    calls.append(setting.start(timeout_s=0.5))
    assert setting.connection._timer.when() <= now_s + 0.51
    for call in calls:
        call.cancel()


@pytest.mark.parametrize("of", [ReconnectingLoopChannel, ReconnectingChannel])
async def test_channel_that_is_closed_opens_no_connection_for_streams(of):
    channel = of(Address("127.0.0.1", 1, "127.0.0.1:1"), Credentials(None, None, None, None))
    await channel.close()
    for begin in (channel.stream, channel.send):
        call = await begin("/a.B/C", b"", 5.0)
        assert (
            await (call.next() if begin == channel.stream else call.result()) is transport.CUT_OFF
        )


async def test_turn_writes_once_however_many_calls_it_begins(monkeypatch):
    setting = Setting().connected()
    flushes = called_soon(
        monkeypatch, lambda each: getattr(each, "__self__", None) is setting.connection
    )
    for _ in range(2):
        calls = [setting.start() for _ in range(3)]
        await turns()
        assert len(flushes) == 1
        for call in calls:
            call.cancel()
        await turns()
        assert len(flushes) == 2
        flushes.clear()


async def test_last_call_that_is_late_leaves_the_connection():
    setting = Setting().connected()
    late = setting.start(timeout_s=-1.0)
    setting.connection._check()
    assert await late.result() is transport.LATE
    assert (setting.session.failure, setting.wire.is_aborted) == (None, False)
    await turns()
    assert not setting.session.calls
