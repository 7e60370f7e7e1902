"""Frames between the server and a handler's process arrive as sent, in pieces of any size."""

import socket

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
