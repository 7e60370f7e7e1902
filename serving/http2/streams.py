"""The streams of a connection: their states, as RFC 9113 has them in section 5.1."""

from enum import IntEnum
from typing import Any

from serving.http2.headers import SharedHeaders
from serving.http2.pieces import Pieces


class StreamPhase(IntEnum):
    """The state of a stream that has begun."""

    OPEN = 0
    """Both sides send."""
    HALF_CLOSED_REMOTE = 1
    """The peer has sent everything."""
    HALF_CLOSED_LOCAL = 2
    """We have sent everything, such as a client its request."""
    CLOSED = 3
    """The stream is over; frames of the peer may still be under way."""


class StreamInput(IntEnum):
    """What moves a stream from one state to the next."""

    PEER_ENDS = 0
    """A frame of the peer has END_STREAM."""
    WE_END = 1
    """A frame of ours has END_STREAM."""
    RESET = 2
    """Either side sends RST_STREAM."""


OPEN, HALF_CLOSED_REMOTE, HALF_CLOSED_LOCAL, CLOSED = StreamPhase
PEER_ENDS, WE_END, RESET = StreamInput
NEXT: dict[StreamPhase, dict[StreamInput, StreamPhase]] = {
    OPEN: {PEER_ENDS: HALF_CLOSED_REMOTE, WE_END: HALF_CLOSED_LOCAL, RESET: CLOSED},
    HALF_CLOSED_REMOTE: {WE_END: CLOSED, RESET: CLOSED},
    HALF_CLOSED_LOCAL: {PEER_ENDS: CLOSED, RESET: CLOSED},
    CLOSED: {},
}
"""The state after each input. An input that is missing is an error of the side that sends it;
`Connection` answers the peer's with STREAM_CLOSED, before it gets here."""


class Stream:
    """A stream that is more than one message in one piece."""

    phase = OPEN
    ended = False
    """Whether the peer has sent everything: HALF_CLOSED_REMOTE or CLOSED."""
    call: Any = None
    """The application's own state of the stream, until it has ended it."""
    send_credit = 0
    """The peer's additions to the stream's first window, minus the bytes sent: so a change of that
    window, which counts for all streams, need not touch them."""
    owed = 0
    """Bytes acknowledged and not yet returned to the window."""
    content_left: int | None = None
    """Bytes of data that are still to come by `content-length`."""
    unsent: bytes | bytearray | Pieces = b""
    trailers: bytes | None = None
    """The end of the stream after `unsent`: a header block, or only the flag."""

    def __init__(self, block: SharedHeaders | None, receive_window: int) -> None:
        """Begin an open stream.

        Args:
            block: the header block of the peer's message; None until it has come.
            receive_window: the bytes that the peer may send.
        """
        self.block = block
        self.receive_window = receive_window

    def move(self, by: StreamInput) -> StreamPhase:
        """Go to the next state, and return it."""
        self.phase = phase = NEXT[self.phase][by]
        self.ended = phase is HALF_CLOSED_REMOTE or phase is CLOSED
        return phase


class OpenCall:
    """The state of a stream of which only a known block has come, and perhaps its one message.

    Streams with the same block share it, so a call that repeats others needs no object of its own.
    It is OPEN, or HALF_CLOSED_REMOTE if the message has come; any other event makes it a `Stream`.
    """

    __slots__ = ("block", "ended", "send_credit")
    trailers = None
    """As in `Stream`: its answer has not begun."""

    def __init__(self, block: SharedHeaders, *, ended: bool, send_credit: int = 0) -> None:
        """Describe streams of one block.

        Args:
            block: the part of the header block that they share.
            ended: whether the peer has sent everything.
            send_credit: the bytes that the peer has added to each one's window.
        """
        self.block = block
        self.ended = ended
        self.send_credit = send_credit

    @property
    def call(self) -> Any:
        """The application's state of the block."""
        return self.block.call
