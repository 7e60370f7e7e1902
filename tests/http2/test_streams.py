"""The states of a stream, and what moves it from one to the next."""

import pytest

from serving.http2.streams import CLOSED, NEXT, PEER_ENDS, WE_END, Stream, StreamPhase


def test_stream_moves_as_the_protocol_says():
    """RFC 9113, section 5.1: each state, each input, and no way back from CLOSED."""
    expected = {
        ("OPEN", "PEER_ENDS"): "HALF_CLOSED_REMOTE",
        ("OPEN", "WE_END"): "HALF_CLOSED_LOCAL",
        ("OPEN", "RESET"): "CLOSED",
        ("HALF_CLOSED_REMOTE", "WE_END"): "CLOSED",
        ("HALF_CLOSED_REMOTE", "RESET"): "CLOSED",
        ("HALF_CLOSED_LOCAL", "PEER_ENDS"): "CLOSED",
        ("HALF_CLOSED_LOCAL", "RESET"): "CLOSED",
    }
    moves = {
        (phase.name, each.name): after.name
        for phase, moved in NEXT.items()
        for each, after in moved.items()
    }
    assert moves == expected
    assert {*NEXT} == {*StreamPhase}


@pytest.mark.parametrize("first", [PEER_ENDS, WE_END])
def test_stream_is_over_once_both_sides_have_ended(first):
    stream = Stream(None, 0)
    assert not stream.ended
    stream.move(first)
    assert stream.ended == (first is PEER_ENDS)
    assert stream.move(WE_END if first is PEER_ENDS else PEER_ENDS) is CLOSED
    assert stream.ended
