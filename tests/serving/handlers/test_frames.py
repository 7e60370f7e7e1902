"""Frames between the server and a handler's process arrive as sent, in pieces of any size."""

import socket
import struct

import numpy as np
import pytest

from serving.handlers import frames
from serving.handlers.frames import BrokenFrame, FrameReader


def objects(values):
    array = np.empty(len(values), object)
    for at, each in enumerate(values):
        array[at] = each
    return array


ARRAYS = [
    np.arange(6, dtype=np.float32).reshape(2, 3),
    np.array(True),
    np.zeros((0, 4), np.int8),
    np.arange(20)[::2],
    np.array([1.5], np.float16),
    objects(["grüße", "", "a\0b"]),
    objects([b"\xff\0", b""]),
    objects([]),
    objects(["a", "b"]).reshape(2, 1),
    objects([np.full((2, 3, 3), 7, np.uint8), np.zeros((1, 1, 3), np.uint8)]),
]


def same(found, sent):
    if sent.dtype == object and sent.size and isinstance(sent.flat[0], np.ndarray):
        return all(np.array_equal(a, b) for a, b in zip(found.flat, sent.flat, strict=True))
    return found.shape == sent.shape and found.tolist() == sent.tolist()


def received(data, step):
    """Read bytes that come in pieces."""
    ours, its = socket.socketpair()
    found = []
    with ours, its:
        reader = FrameReader(ours)
        ours.setblocking(False)
        for at in range(0, len(data), step):
            its.sendall(data[at : at + step])
            while True:
                try:
                    found += reader.read()
                except BlockingIOError:
                    break
    return found


@pytest.mark.parametrize("step", [1, 7, 64, 1 << 16])
def test_frames_arrive_whole_in_any_pieces(step):
    first = b"".join(frames.encode({"kind": "a", "text": "grüße"}, ARRAYS))
    second = b"".join(frames.encode({"kind": "b"}))
    one, two, three = received(first + second + first, step)
    assert one.fields == three.fields == {"kind": "a", "text": "grüße"}
    assert two == ({"kind": "b"}, [])
    for found in (one, three):
        assert all(map(same, found.arrays, ARRAYS))
        assert all(each.flags.aligned for each in found.arrays)
        dtypes = [each.dtype for each in found.arrays]
        assert dtypes == [each.dtype for each in ARRAYS]


def test_long_frames_are_read_into_their_place():
    array = np.random.default_rng(0).integers(0, 256, 3 << 20, np.uint8)
    (found,) = received(b"".join(frames.encode({"kind": "x"}, [array])), 1 << 17)
    np.testing.assert_array_equal(found.arrays[0], array)


def test_end_is_an_error():
    ours, its = socket.socketpair()
    its.close()
    with ours, pytest.raises(EOFError):
        list(FrameReader(ours).read())


@pytest.mark.parametrize(
    "data",
    [
        b"\xff" * 64,
        b"\2\0\0\0" + bytes(24) + b"{}",
        b"\2\0\0\0" + bytes(24) + b"[]",
        b"\4\0\0\0" + bytes(24) + b"nope",
        b"".join(frames.encode({"kind": "x"}, [np.arange(4)])).replace(b"[4]", b"[5]"),
        b"".join(frames.encode({"kind": "x"}, [objects(["a"])])).replace(b"[1]", b"[2]"),
    ],
)
def test_anything_else_is_broken(data):
    with pytest.raises(BrokenFrame):
        received(data, 1 << 16)


def test_heads_of_like_calls_are_the_same_bytes_and_nobody_changes_those_of_others():
    def sent(job, **more):
        fields = {"kind": "job", "job": job, "rows": 1, **more}
        return b"".join(frames.encode(fields, [objects(["ab"])]))

    assert sent(1)[:12] + sent(1)[20:] == sent(2)[:12] + sent(2)[20:]
    one, two = received(sent(1) + sent(1 << 40), 1 << 16)
    assert (one.fields["job"], two.fields["job"]) == (1, 1 << 40)
    one.fields["rows"] = 7
    (three,) = received(sent(3, options={"parameters": {"top": 1}}), 1 << 16)
    three.fields["options"]["parameters"]["top"] = 2
    four, five = received(sent(4) + sent(5, options={"parameters": {"top": 1}}), 1 << 16)
    assert four.fields == {"kind": "job", "rows": 1, "job": 4}
    assert five.fields["options"] == {"parameters": {"top": 1}}


def head(fields_bytes, body_bytes):
    """The begin of a frame of these lengths."""
    return struct.pack("<IQQQ", fields_bytes, body_bytes, 0, 0)


def test_length_of_a_frame_is_bounded():
    """What a process says it will send is reserved."""
    most = 16 << 20
    assert received(head(most, 0), 1 << 16) == []
    assert received(head(2, 1 << 26), 1 << 16) == []
    for lengths in ((most + 1, 0), (2, (8 << 30) + 1)):
        with pytest.raises(BrokenFrame, match=r"^a frame is too long$"):
            received(head(*lengths), 1 << 16)


@pytest.mark.parametrize("number", [1, 16, 17])
def test_few_texts_and_many_arrive_alike(number):
    texts = objects([f"é{each}" for each in range(number)])
    (found,) = received(b"".join(frames.encode({"kind": "x"}, [texts])), 1 << 16)
    assert found.arrays[0].tolist() == texts.tolist()


def test_numbers_of_a_frame_are_in_its_head():
    encoded = b"".join(frames.encode({"kind": "x", "job": 5, "request": 6}))
    assert struct.unpack_from("<IQQQ", encoded)[2:] == (5, 6)
    assert received(encoded, 1 << 16) == [({"kind": "x", "job": 5, "request": 6}, [])]
    assert received(b"".join(frames.encode({"kind": "x"})), 1 << 16) == [({"kind": "x"}, [])]


def test_heads_that_are_known_are_forgotten_when_they_are_many(monkeypatch):
    monkeypatch.setattr(frames, "_known_fields", {})
    for number in range(512):
        received(b"".join(frames.encode({"kind": f"k{number}"})), 1 << 16)
    assert len(frames._known_fields) == 512
    received(b"".join(frames.encode({"kind": "more"})), 1 << 16)
    assert len(frames._known_fields) == 1
    received(b"".join(frames.encode({"kind": "x" * 600})), 1 << 16)
    received(b"".join(frames.encode({"kind": "x", "options": {"a": 1}})), 1 << 16)
    assert len(frames._known_fields) == 1, "long ones, and those that a handler may change"


@pytest.mark.parametrize(
    "text",
    [
        b"nope", b"{}", b"[]", b"1", b'{"arrays": 1}', b'{"arrays": [1]}', b"[" * 200_000,
        b'{"arrays": [["q", [1], null, 1]]}', b'{"arrays": [["text", [3], null, 2]]}', b"\xff",
        b'{"arrays": [["<f4", [2], null, 3]]}',
    ],
    ids=lambda text: text[:40].decode("latin-1"),
)  # fmt: skip
def test_fields_of_a_frame_that_are_none_are_broken(text):
    """The server ends a process that says something else, and never its own loop."""
    with pytest.raises(BrokenFrame):
        received(head(len(text), 0) + text, 1 << 16)


def test_pictures_of_several_sizes_stay_apart():
    pixels = [np.arange(h * w * 3, dtype=np.uint8).reshape(h, w, 3) for h, w in ((1, 2), (3, 1))]
    sent = objects(pixels)
    (found,) = received(b"".join(frames.encode({"kind": "x"}, [sent, np.arange(2)])), 1 << 16)
    assert [each.tolist() for each in found.arrays[0]] == [each.tolist() for each in pixels]
    assert found.arrays[1].tolist() == [0, 1]
