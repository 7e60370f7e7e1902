"""Each limit of a connection at its last value that is allowed, and at the first that is not."""

from dataclasses import asdict
from typing import Any

import h2.errors
import h2.settings
import hpack
import hyperframe.frame
import pytest

from serving.http2 import events, frames
from serving.http2.client import ClientConnection
from serving.http2.frames import (
    ACK,
    CONTINUATION,
    DATA,
    END_HEADERS,
    GOAWAY,
    HEADERS,
    PADDED,
    PING,
    RST_STREAM,
    WINDOW_UPDATE,
    ErrorCode,
    Http2Error,
    word,
)
from serving.http2.hpack import encode_literally
from serving.http2.limits import Limits
from serving.http2.pieces import Pieces
from serving.http2.server import ServerConnection
from serving.http2.streams import OpenCall
from tests.http2.frames import BLOCK, HELLO, OPEN, calls, headers, of, setting, update, window
from tests.support.pages import cells

ANSWERS = ((b":status", b"200"),), ((b"grpc-status", b"0"),)
ONE = word(1)


def started(**limits):
    server = ServerConnection(Limits(**limits), *ANSWERS)
    server.receive(HELLO, 0.0)
    server.data_to_send()
    return server


def parts_of(sent):
    """Yield kind, flags, stream and payload of each frame."""
    while sent:
        end = 9 + int.from_bytes(sent[:3], "big")
        yield sent[3], sent[4], int.from_bytes(sent[5:9], "big"), sent[9:end]
        sent = sent[end:]


def test_numbers_are_those_of_the_protocol():
    """As python-hyper has them."""
    assert {each.name: each.value for each in ErrorCode} == {
        each.name: each.value for each in h2.errors.ErrorCodes
        if each.name not in ("INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED")
    }  # fmt: skip
    kinds: Any = hyperframe.frame.FRAMES
    for number, name in enumerate(frames._NAMES):
        assert kinds[number].__name__.removesuffix("Frame").upper() == name.replace("_", "")
        assert getattr(frames, name) == number
    for code in h2.settings.SettingCodes:
        if code <= 6:
            assert getattr(frames, code.name) == code
    assert (frames.END_STREAM, ACK, END_HEADERS, PADDED, frames.PRIORITIZED) == (1, 1, 4, 8, 32)


def test_limits_that_a_server_announces():
    settings, update_ = parts_of(ServerConnection(Limits(), *ANSWERS).data_to_send())
    pairs = {settings[3][at + 1]: int.from_bytes(settings[3][at + 2 : at + 6], "big")
             for at in range(0, len(settings[3]), 6)}  # fmt: skip
    assert pairs == {3: 1024, 4: 1 << 20, 5: 1 << 18, 6: 16 << 10, 1: 4096}
    assert update_ == (WINDOW_UPDATE, 0, 0, word((1 << 30) - 65_535))
    sent = ClientConnection(Limits()).data_to_send()
    assert sent[24 + 9 :][:36][-6:] == b"\0\2" + bytes(4), "no push"


def sized(size, number=0):
    """A header block of a length, in HEADERS and equal parts, the last with what is left."""
    block = b"\x20" * (size - len(BLOCK)) + BLOCK  # the table is made empty, again and again
    step = -(-size // (number + 1))
    parts = [block[at : at + step] for at in range(0, size, step)] or [b""]
    kinds = [HEADERS] + [CONTINUATION] * (len(parts) - 1)
    return b"".join(
        of(kind, part, END_HEADERS * (at == len(parts) - 1))
        for at, (kind, part) in enumerate(zip(kinds, parts, strict=True))
    )


def opened(number):
    """Calls that begin."""
    streams = range(1, 2 * number, 2)
    return b"".join(headers(END_HEADERS, b"\x83\x86\x04\x02/a", each) for each in streams)


def small(number):
    """Frames that cost more than they carry; SETTINGS were one."""
    return of(PING, bytes(8), ACK, 0) * (number - 1)


ROWS: list[tuple[str, Any, int, ErrorCode]] = [
    ("a block in one frame", sized, 64 << 10, ErrorCode.FRAME_SIZE_ERROR),
    ("a block in three frames", lambda size: sized(size, 2), 64 << 10, ErrorCode.ENHANCE_YOUR_CALM),
    ("continuations", lambda number: headers(0)
     + of(CONTINUATION) * (number - 1) + of(CONTINUATION, b"", END_HEADERS), 64,
     ErrorCode.ENHANCE_YOUR_CALM),
    ("a frame of data", lambda size: OPEN + of(DATA, bytes(size)), 1 << 18,
     ErrorCode.FRAME_SIZE_ERROR),
    ("small frames", small, 1000, ErrorCode.ENHANCE_YOUR_CALM),
    ("small frames, and three for each call", lambda number: small(1000) + opened(2)
     + small(number + 1), 6, ErrorCode.ENHANCE_YOUR_CALM),
    ("small frames, and one for each of data", lambda number: small(1000) + OPEN
     + of(DATA, bytes(64)) * 7 + small(number + 1), 10, ErrorCode.ENHANCE_YOUR_CALM),
    ("frames of 63 bytes of data", lambda number: OPEN + of(DATA, bytes(63)) * number, 1000,
     ErrorCode.ENHANCE_YOUR_CALM),
]  # fmt: skip


@pytest.mark.parametrize(
    ("make", "most", "code"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
def test_most_that_is_allowed_and_one_more(make, most, code):
    started().receive(make(most), 0.0)
    with pytest.raises(Http2Error) as refused:
        started().receive(make(most + 1), 0.0)
    assert refused.value.code == code


def test_data_of_64_bytes_are_not_small():
    started().receive(OPEN + of(DATA, bytes(64)) * 3000, 0.0)


@pytest.mark.parametrize(("seconds", "more"), [(0.01, 2), (1.0, 200), (100.0, 1000)])
def test_small_frames_are_allowed_again_with_time(seconds, more):
    for extra in (0, 1):
        server = started()
        server.receive(small(1000), 0.0)
        data = small(more + extra + 1)
        if not extra:
            server.receive(data, seconds)
            continue
        with pytest.raises(Http2Error, match="too many small frames"):
            server.receive(data, seconds)


@pytest.mark.parametrize(("seconds", "more"), [(0.0, 0), (0.0001, 2), (1.0, 5)])
def test_resets_are_allowed_again_with_time(seconds, more):
    """20,000 a second, up to the burst."""
    cancel = of(RST_STREAM, word(8))
    for extra in (0, 1):
        server = started(burst_resets=5)
        server.receive(calls(5, cancel), 0.0)
        again = b"".join(
            headers(END_HEADERS, stream=stream) + of(RST_STREAM, word(8), 0, stream)
            for stream in range(21, 21 + 2 * (more + extra), 2)
        )
        if not extra:
            server.receive(again, seconds)
            continue
        with pytest.raises(Http2Error, match="too many resets"):
            server.receive(again, seconds)


def test_frames_of_the_latest_streams_that_were_reset_are_ignored():
    """Of 4,096; those of older ones are errors."""
    server = started(max_streams=5000)
    server.receive(opened(4097), 0.0)
    for number in range(4097):
        server.reset(word(2 * number + 1), ErrorCode.CANCEL)
    server.data_to_send()
    server.receive(of(DATA, bytes(64), 0, 3), 0.0)
    assert not server.data_to_send()
    server.receive(of(DATA, bytes(64), 0, 1), 0.0)
    assert server.data_to_send() == of(RST_STREAM, word(ErrorCode.STREAM_CLOSED), 0, 1)


@pytest.mark.parametrize(
    ("asked", "longest"),
    [(None, 16_384), (20_000, 20_000), (65_537, 65_536), ((1 << 24) - 1, 65_536)],
)
def test_frames_are_as_long_as_the_peer_takes_them_and_no_longer(asked, longest):
    server = started()
    server.receive(window(1 << 20) + update(0, 1 << 20) + headers(), 0.0)
    if asked:
        server.receive(setting((5, asked)), 0.0)
    server.answer([ONE], [bytes(200_000)])
    sizes = [len(data) for kind, _, _, data in parts_of(server.data_to_send()) if kind == DATA]
    assert sizes[0] == longest
    assert sum(sizes) == 200_000
    assert set(sizes[:-1]) == {longest}


@pytest.mark.parametrize("padding", [None, 0, 7, 255])
def test_streams_window_is_opened_by_all_that_was_used(padding):
    """Data that the application has taken, and padding at once; a quarter may be owed."""
    server, used, given = started(stream_window_bytes=4000), 0, 0
    server.receive(OPEN, 0.0)
    for size in [100, 1, 700, 300, 64] * 20:
        payload, flags = bytes(size), 0
        if padding is not None:
            payload, flags = bytes((padding,)) + payload + bytes(padding), PADDED
        server.receive(of(DATA, payload, flags), 0.0)
        server.acknowledge(ONE, size)
        used += len(payload)
        for kind, _, stream, data in parts_of(server.data_to_send()):
            assert (kind, stream) == (WINDOW_UPDATE, 1)
            given += int.from_bytes(data, "big")
            assert int.from_bytes(data, "big") >= 1000
        assert 0 <= used - given < 1000


def block_of(size):
    """A block of a length that changes no table; the value is not in Huffman's code."""
    start = b"\x83\x86\x04\x02/a" + b"\0\1a"
    length = hpack.hpack.encode_integer(size - len(start) - 3, 7)
    return start + bytes(length) + b"x" * (size - len(start) - len(length))


@pytest.mark.parametrize(("size", "is_kept"), [(1023, True), (1024, True), (1025, False)])
def test_blocks_of_a_kibibyte_are_kept(size, is_kept):
    server, raw = started(), block_of(size)
    assert len(raw) == size
    server.receive(headers(END_HEADERS, raw), 0.0)
    assert (raw in server.reader.blocks) == is_kept
    assert server.streams[ONE].block.is_kept == is_kept


def test_32_blocks_and_kinds_are_kept():
    server = started()
    for number in range(100):
        path = encode_literally(((b":path", b"/%d" % number),))
        server.receive(headers(END_HEADERS, b"\x83\x86" + path, 2 * number + 1), 0.0)
        assert len(server.reader.blocks) == number % 32 + 1
        assert len(server.reader.kinds) == number % 32 + 1


@pytest.mark.parametrize(("size", "is_kept"), [(4096, True), (4097, False)])
def test_kinds_of_four_kibibytes_are_kept(size, is_kept):
    """Each field takes 128 bytes more."""
    fields = [(b":method", b"POST"), (b":scheme", b"http"), (b":path", b"/a")]
    used = sum(len(name + value) + 128 for name, value in fields)
    fields.append((b"a", b"x" * (size - used - 129)))
    server = started()
    server.receive(headers(END_HEADERS, encode_literally(fields)), 0.0)
    assert server.streams[ONE].block.kind.is_kept == is_kept
    assert len(server.reader.kinds) == is_kept


def test_goaway_names_the_last_stream_once():
    server = started()
    server.receive(OPEN + headers(stream=7), 0.0)
    server.go_away()
    server.go_away(ErrorCode.PROTOCOL_ERROR)
    (found,) = parts_of(server.data_to_send())
    assert found == (GOAWAY, 0, 0, word(7) + word(0))
    server.receive(headers(stream=9), 0.0)
    assert [*server.streams] == [ONE, word(7)]
    assert not server.data_to_send()


@pytest.mark.parametrize(("last", "code"), [(0, 0), (7, 5), ((1 << 31) - 1, (1 << 32) - 1)])
@pytest.mark.parametrize("reserved", [0, 1 << 31])
def test_goaway_is_read_with_its_stream_and_code(last, code, reserved):
    payload = word(last | reserved) + word(code) + b"why"
    (found,) = started().receive(of(GOAWAY, payload, 0, 0), 0.0)
    assert found == events.GoAway(word(last), code)


def test_resets_of_streams_that_are_over_are_counted_too():
    """They cost as much to read, and end no call."""
    cancel = of(RST_STREAM, word(8), 0, 1)
    server = started(burst_resets=5)
    server.receive(headers(END_HEADERS, stream=1) + 5 * cancel, 0.0)
    with pytest.raises(Http2Error, match="too many resets"):
        server.receive(cancel, 0.0)


def test_events_before_an_error_are_not_kept():
    """They have messages: the connection that broke may be kept until its answers have left."""
    server = started()
    with pytest.raises(Http2Error):
        server.receive(OPEN + frames.frame(PING, 0, bytes(4), b"12345"), 0.0)
    assert server.events == []


@pytest.mark.parametrize(
    ("begin", "text"),
    [
        ("rapid reset", f"{Limits().burst_resets:,} resets at once, {Limits().resets_per_s:,.0f} a "
         "second"),
        ("CONTINUATION flood", f"{Limits().max_continuations} frames and "
         f"{Limits().max_block_bytes >> 10} KiB for a header block"),
        ("floods of PING", f"{Limits().burst_small_frames:,} at once, "
         f"{Limits().small_frames_per_s:.0f} a second"),
        ("HPACK bomb", f"{Limits().max_header_list_bytes >> 10} KiB and "
         f"{Limits().max_header_fields} fields of headers, decoded"),
    ],
    ids=["resets", "blocks", "small frames", "headers"],
)  # fmt: skip
def test_limits_are_those_of_the_page(begin, text):
    assert cells("limits.md", begin, "Limits of the ports")[1].startswith(text)


OF_STREAMS = [
    (frames.DATA, 1), (frames.HEADERS, 1), (frames.PRIORITY, 5), (frames.RST_STREAM, 4),
    (frames.PUSH_PROMISE, 4), (frames.CONTINUATION, 1),
]  # fmt: skip
OF_THE_CONNECTION = [(frames.SETTINGS, 0), (frames.PING, 8), (frames.GOAWAY, 8)]


@pytest.mark.parametrize(
    ("kind", "length", "stream"),
    [*((*each, 1) for each in OF_STREAMS), *((*each, 0) for each in OF_THE_CONNECTION)],
)
def test_frame_belongs_on_streams_or_on_the_connection(kind, length, stream):
    """RFC 9113, section 6."""
    frames.check_header(kind, length, word(stream))
    with pytest.raises(Http2Error, match=rf"^{frames._NAMES[kind]} on a wrong stream") as refused:
        frames.check_header(kind, length, word(1 - stream))
    assert refused.value.code is ErrorCode.PROTOCOL_ERROR


def test_updates_of_windows_belong_on_both():
    for stream in (0, 1):
        frames.check_header(frames.WINDOW_UPDATE, 4, word(stream))


def test_default_limits_are_these():
    """Those that a page names are there, too; design.md has the others."""
    assert asdict(Limits()) == {
        "max_streams": 1024, "stream_window_bytes": 1_048_576,
        "connection_window_bytes": 1_073_741_824, "max_frame_bytes": 262_144,
        "announced_header_bytes": 16_384, "header_table_bytes": 4096,
        "max_header_list_bytes": 65_536, "max_header_fields": 256, "max_block_bytes": 65_536,
        "max_continuations": 64, "burst_resets": 100_000, "resets_per_s": 20_000.0,
        "burst_small_frames": 1_000, "small_frames_per_s": 200.0, "small_frames_per_request": 3,
        "small_bytes": 64,
    }  # fmt: skip


def test_server_that_forgets_reads_and_recognises_all_again():
    server = started()
    seen: list[str] = []

    class Recogniser:
        def __init__(self):
            self.runs: dict[bytes, Any] = {}

        def learn(self, block, literals): ...

        def read(self, raw):
            return None

        def wants_no_table(self, stream, block):
            return False

        def clear(self):
            seen.append("cleared")

    made: Any = Recogniser()
    server.recognise(lambda connection: made)
    server.receive(headers(END_HEADERS, b"\x83\x86\x04\x02/a"), 0.0)
    assert (len(server.reader.blocks), len(server.reader.kinds)) == (1, 1)
    server.forget()
    assert (server.reader.blocks, server.reader.kinds, seen) == ({}, {}, ["cleared"])


def test_application_reads_the_fields_that_it_names_once_for_all_who_share_them():
    server = ServerConnection(Limits(), *ANSWERS, b"", frozenset((b"own",)))
    server.receive(HELLO, 0.0)
    for stream, value in ((1, b"1"), (3, b"2"), (5, b"1")):
        block = b"\x83\x86" + encode_literally(((b":path", b"/a"), (b"own", value)))
        server.receive(headers(END_HEADERS, block, stream), 0.0)
    first, second, third = (server.streams[word(each)].block for each in (1, 3, 5))
    assert first.kind is third.kind is not second.kind
    assert (b"own", b"2") in second.kind.fields


def test_call_that_is_answered_is_nobodys_while_windows_keep_its_answer_back():
    server = started()
    server.receive(window(3) + headers(), 0.0)
    server.streams[ONE].call = "the application's"
    server.answer([ONE], [b"hello"])
    state = server.streams[ONE]
    assert (state.call, bytes(state.unsent), state.trailers is not None) == (None, b"lo", True)
    server.receive(update(1, 2), 0.0)
    assert ONE not in server.streams


def test_long_data_that_have_left_are_kept_no_longer():
    server = started()
    server.receive(window(1 << 20) + update(0, 1 << 20) + headers(), 0.0)
    server.respond(ONE)
    server.send(ONE, Pieces([b"x" * 10]))
    assert server.data_to_send().endswith(b"x" * 10)
    assert (server.streams[ONE].unsent, server.due, server.blocked) == (b"", {}, {})
    server.send(ONE, b"more")
    assert server.data_to_send() == of(DATA, b"more")


@pytest.mark.parametrize("size", [4096, 0])
def test_prepared_answers_are_few_and_end_with_the_table_that_they_were_made_with(size):
    server, most = started(), 0
    for number in range(200):
        stream = 2 * number + 1
        server.receive(headers(stream=stream), 0.0)
        server.answer([word(stream)], [bytes(number)])
        most = max(most, len(server._templates))
    assert 1 < most < 200
    assert server._templates
    server.receive(setting((1, size)), 0.0)
    assert server._templates == {}


def test_state_of_streams_that_share_a_block_has_no_credit_of_its_own():
    block: Any = object()
    for ended in (True, False):
        found = OpenCall(block, ended=ended)
        assert (found.block, found.ended, found.send_credit) == (block, ended, 0)
