"""Tensors out of messages: where they lie, and the bytes that must be between them."""

import numpy as np
import pytest

from serving.batching.layout import Layout, Piece
from serving.errors import InvalidRequest

LAYOUT = Layout(
    (Piece(7, 15, np.dtype("<f4"), (2, 1)), Piece(1, 5, np.dtype(bool), (2, 2))),
    ((0, b"<"), (5, b"::"), (15, b">>>")),
)
GOOD = b"<\0\1\1\0::" + np.array([1.5, -2], "<f4").tobytes() + b">>>"


@pytest.mark.parametrize("kind", [bytes, memoryview])
@pytest.mark.parametrize("number", [1, 2, 5])
def test_inputs_of_all_messages_are_joined_in_their_order(number, kind):
    messages = []
    for at in range(number):
        message = bytearray(GOOD)
        message[7:11] = np.float32(at).tobytes()
        messages.append(kind(bytes(message)))
    numbers, flags = LAYOUT.arrays(messages)
    assert numbers.dtype == np.float32
    assert flags.dtype == bool
    assert numbers.tolist() == [each for at in range(number) for each in ([at], [-2.0])]
    assert flags.tolist() == [[False, True], [True, False]] * number


@pytest.mark.parametrize("at", [0, 5, 6, 15, 16, 17])
@pytest.mark.parametrize("which", [0, 1])
def test_other_bytes_between_them_are_refused(at, which):
    """Each of them, in each message."""
    wrong = GOOD[:at] + b"?" + GOOD[at + 1 :]
    messages = [GOOD, GOOD]
    messages[which] = wrong
    with pytest.raises(InvalidRequest, match="expected tensors of the sizes that their shapes"):
        LAYOUT.arrays(messages)


@pytest.mark.parametrize("at", [1, 2, 3, 4])
@pytest.mark.parametrize("byte", [2, 255])
def test_truth_values_are_0_or_1(at, byte):
    wrong = GOOD[:at] + bytes((byte,)) + GOOD[at + 1 :]
    with pytest.raises(InvalidRequest, match="expected bytes of 0 or 1 as truth values, got oth"):
        LAYOUT.arrays([GOOD, wrong])
