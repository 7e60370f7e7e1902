"""Requests that repeat one but for their rows are found, and no others."""

import json
import random
from typing import Any

import pytest

from serving.protocols.framing import PREFIX_BYTES, frame, frame_prefix
from serving.protocols.known import Known, KnownRequest, ValuesPlace


def test_frames_are_grpcs():
    assert frame(b"abc") == b"\0\0\0\0\3abc"
    assert frame_prefix(2**20) == b"\0\0\x10\0\0"
    assert PREFIX_BYTES == 5


@pytest.mark.parametrize("seed", range(20))
def test_messages_with_a_known_prefix_are_found_and_no_others(seed):
    draw, known, learned = random.Random(seed), Known(), {}
    for number in range(60):
        start = bytes(draw.choices(b"ab", k=draw.randrange(4)))
        rows = bytes(draw.choices(b"xy", k=draw.choice([1, 2, 4])))
        encoder: Any = number
        prefix = frame_prefix(len(start + rows)) + start
        if draw.random() < 0.3:
            known.learn(start + rows, len(rows), encoder)
            learned[prefix] = encoder
        fitting = [each for each in learned if frame(start + rows).startswith(each)
                   and len(each) >= PREFIX_BYTES]  # fmt: skip
        framed, plain = known.find_framed(frame(start + rows)), known.find(start + rows)
        assert (framed is None) == (plain is None) == (not fitting)
        if framed is not None:
            assert plain is not None
            at, found = framed
            assert learned[frame(start + rows)[:at]] is found
            assert (bytes(plain[0]), plain[1]) == (frame(start + rows)[at:], found)
        assert known.find(memoryview(start + rows)) == plain


def test_known_ones_are_bounded():
    known, encoder = Known(), object()
    long: Any = encoder
    known.learn(b"a" * 507 + b"rows", 4, long)
    known.learn(b"a" * 508 + b"rows", 4, long)
    assert [len(each) for each in known] == [512]
    for number in range(255):
        known.learn(b"%03d" % number + b"rows", 4, long)
    assert len(known) == 256
    known.learn(b"more rows", 4, long)
    assert [*known] == [frame(b"more rows")[:-4]]
    assert known.find(b"001rows") is None
    known.clear()
    assert known.find_framed(frame(b"more rows")) is None
    assert (known, known._starts) == ({}, {}), "callers choose lengths"


PLACE = ValuesPlace(b'{"a": 1, "data": ', b"}", "FP32", 8)


def test_rows_are_the_last_bytes():
    raw = ValuesPlace(b"head", b"", "", 3)
    assert raw.rows(b"headabc") == b"abc"
    for other in b"heatabc", b"headab", b"headabcd", b"abchead":
        assert raw.rows(other) is None


@pytest.mark.parametrize("values", [[1, 2, 3, 4, 5], [[1, 2], [3, 4], [5]], [[[1], [2]], [[3]]],
                                    [], [[]], [[[1, 2, 3]]]])  # fmt: skip
@pytest.mark.parametrize("num_bytes", [1, 5, 100])
def test_parts_are_lists_of_all_values_in_order(values, num_bytes):
    body = PLACE.before + json.dumps(values).encode() + PLACE.after
    parts = PLACE.parts(body, num_bytes)
    assert [value for part in parts for value in json.loads(part)] == values
    assert all(len(part) > num_bytes for part in parts[:-1])
    if num_bytes == 1 and len(values) > 2:
        assert len(parts) > 1
    assert num_bytes < 100 or len(parts) == 1


@pytest.mark.parametrize(
    "body",
    [b'{"a": 2, "data": [1]}', b'{"a": 1, "data": [1]]', b'{"a": 1, "data": 1}',
     b'{"a": 1, "data": [}', b'{"a": 1, "data": }'],
)  # fmt: skip
def test_bodies_that_may_differ_in_more_have_no_parts(body):
    assert PLACE.parts(body, 1) == []


def test_requests_of_any_length_have_their_body_read():
    encoder: Any = None
    known = KnownRequest(PLACE, encoder, (b"POST / length: ", b"\r\nhost: a\r\n\r\n"),
                         lambda place, body: body[1:])  # fmt: skip
    head = b"POST / length: 5\r\nhost: a\r\n\r\n"
    assert known.rows(head + b"[1,2]") == b"1,2]"
    for other in (
        head + b"[1,2",
        head + b"[1,2]]",
        head.replace(b"5", b"05") + b"[1,2]",
        head.replace(b": a", b": b") + b"[1,2]",
        b"X" + head + b"[1,2]",
        b"POST / length: 5",
    ):
        assert known.rows(other) is None
    plain = KnownRequest(ValuesPlace(b"head", b"", "", 3), encoder)
    assert (plain.rows(b"headabc"), plain.rows(b"headab"), plain.rows(b"heatabc")) == (
        b"abc", None, None)  # fmt: skip
