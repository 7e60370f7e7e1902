"""One connection: its socket, its state and its output; the same for each protocol."""

import math
import selectors
import socket
from collections.abc import Collection, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

from serving.batching.queue import ClientQueue, Queue

if TYPE_CHECKING:
    from serving.security.tls import Tls

TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_COST_PER_BYTE_S = TURN_S / LEAST_BYTES
"""The most that a byte may cost, in seconds."""
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE
_SECRET = {"authorization", "proxy-authorization", "cookie"}


class PeerEngine(Protocol):
    """A peer's protocol, without I/O."""

    @property
    def streams(self) -> Collection[Any]:
        """The calls in progress."""

    @property
    def is_established(self) -> bool:
        """Whether the peer has sent in time the bytes that it must begin with."""

    def data_to_send(self) -> bytes:
        """Return the bytes for the peer, once."""

    @property
    def due(self) -> Collection[Any]:
        """The calls of which there is more to send now, once these bytes were sent."""

    def forget(self) -> None:
        """Read calls again that repeat earlier ones."""

    def announce_end(self) -> None:
        """Say that new calls should be made on another connection."""

    def go_away(self) -> None:
        """Say that the connection is over."""


class State:
    """How far the life of a connection is; see `Peer`. An enum's members take longer to look up."""

    OPEN = 0
    RETIRED = 1
    LEAVING = 2
    LAST = 3
    SHUT = 4
    CLOSED = 5


class Peer:
    """One peer: its socket, and the loop's facts about it; used by the loop's thread only.

    Its state only grows, and only its own methods change it:

        state     entered by                            its bytes are   it ends with
        OPEN      `__init__`                            calls           any of those below
        RETIRED   `retire`: asked to connect again      calls           a sweep that sees no call
        LEAVING   `note_leaving`: opens no more calls   calls           the last answer: LAST
        LAST      `end_reading`: the end follows the    dropped         the last byte written: SHUT
                  answers, after errors, when idle
        SHUT      `flush`: our end was sent             dropped         the peer's end, or as much
                                                                        time as a handshake has
        CLOSED    `close`

    Closed by us before the peer, the connection would be reset where bytes are under way, and the
    peer might lose the last answers (RFC 9112, section 9.6): hence SHUT.
    """

    __slots__ = (
        "_clock", "active_s", "address", "behind_s", "cost_per_byte_s", "engine", "gave_up_s",
        "is_paused", "jitter",
        "mask", "opened_s", "output", "port", "queues", "socket", "start_tag_s", "state", "streams",
        "swept_s", "swept_stream", "swept_unsent", "tls", "trusted", "unread",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, engine: Any, tls: "Tls | None", port: Any) -> None:
        """Take over a socket that does not block; without `tls` it is read in plaintext."""
        self.socket = sock
        self.tls = tls
        self.port = port
        """The `Port` that has accepted it."""
        self.engine = engine
        """A `PeerEngine`, which its port knows more of."""
        self.streams: Any = engine.streams
        """The calls in progress."""
        self.state: int = State.OPEN
        self.address = host_of(sock)
        """Where the peer is, without its port."""
        self.queues: dict[Queue, ClientQueue] = {}
        """The calls that wait in each queue."""
        self.gave_up_s = -math.inf
        """When it last cancelled a call that waited, in monotonic seconds."""
        self.output: bytes | memoryview = b""
        """Bytes that the socket has not accepted yet."""
        self._clock = port.host.clock
        self.opened_s = self.active_s = self.swept_s = self._clock()
        """When it came, or shut down; when it last sent a call, or took bytes that had waited for
        it; when its calls were swept."""
        self.swept_stream: Any = b""
        """The last stream that was open at the last sweep."""
        self.swept_unsent: dict[Any, int] = {}
        """How many bytes of each long answer were left at the last sweep."""
        self.jitter = port.host.random.uniform(0.9, 1.1)
        """Spreads the work of connections of the same age over time."""
        self.unread: dict[Any, None] = {}
        """Calls whose callers do not read their answers, in the order in which that was seen."""
        self.trusted = False
        """Whether the peer has shown a valid token."""
        self.cost_per_byte_s = MAX_COST_PER_BYTE_S
        """The cost of each byte that it sends, in seconds: a moving average, which starts
        cautiously, for small frames can cost a hundred times as much as large messages."""
        self.start_tag_s = 0.0
        """When its next turn is due, on `Loop`'s clock of turns."""
        self.mask = READ
        """The events that the selector waits for; 0 for none."""
        self.behind_s = math.inf
        """Since when each read has left bytes unread, as far as is known; infinite if none are:
        how long the bytes read now may have waited, here and at their sender."""
        self.is_paused = False
        """Whether its port takes no more for now."""

    # Its life

    def retire(self) -> None:
        """Ask it to make its next calls on another connection."""
        if self.state < State.RETIRED:
            self.state = State.RETIRED
        self.engine.announce_end()

    def note_leaving(self) -> None:
        """Note that it opens no more calls here."""
        self.state = max(self.state, State.LEAVING)

    def end_reading(self) -> None:
        """Read nothing more; the end follows the answers."""
        self.state = max(self.state, State.LAST)

    def close(self) -> None:
        """Close the socket."""
        self.state = State.CLOSED
        self.socket.close()

    # Its answers

    def flush(self) -> bool:
        """Write the output, as far as the socket takes it.

        Returns:
            False if the connection is over.
        """
        if self.state >= State.SHUT:
            return True
        is_rest = bool(self.output)
        try:
            if not is_rest:
                output = self.engine.data_to_send()
                if self.unread:  # now that windows were used, they may have been read
                    unread, self.unread = self.unread, {}
                    self.port.resume(self, unread)
                    output += self.engine.data_to_send()
                self.output = output if self.tls is None else self.tls.encrypt(output)
            while self.output:
                sent = self.socket.send(self.output)
                self.output = memoryview(self.output)[sent:] if sent < len(self.output) else b""
                if is_rest:  # it reads, however slowly
                    self.active_s = self._clock()
            if is_rest and not self.engine.due:  # answers may have come since
                return self.flush()
            if self.engine.due:  # of a long answer: others have their turn, and it is read again
                self.port.schedule_flush(self)
            if self.state and self._has_ended():
                self.socket.shutdown(socket.SHUT_WR)
                self.state, self.opened_s = State.SHUT, self._clock()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _has_ended(self) -> bool:
        if self.state == State.LEAVING and not self.streams:
            self.end_reading()
        return self.state == State.LAST and not self.port.is_pending(self)

    def metadata(self, stream: Any) -> Mapping[str, str]:
        """Return the headers of a call, but for those of the transport and secrets."""
        return public_headers(self.port.headers_of(self, stream))

    @property
    def is_busy(self) -> bool:
        """Whether calls are in progress, or answers on their way."""
        return bool(self.streams or self.output or self.engine.due)


def public_headers(headers: Iterable[tuple[str, str]]) -> dict[str, str]:
    """Return the headers of a call that its handler may see."""
    return {
        name: value
        for name, value in headers
        if name not in _SECRET and not name.startswith((":", "grpc-")) and name != "te"
    }


def host_of(sock: socket.socket) -> str:
    """Return a peer's address without its port; none of a Unix socket's."""
    if sock.family == socket.AF_UNIX:
        return ""
    host: str = sock.getpeername()[0]
    return host.removeprefix("::ffff:")  # IPv4, on a socket for both


def peer_of(sock: socket.socket) -> str:
    """Write a peer's address and port as gRPC does, such as "ipv4:127.0.0.1:50051"."""
    host = host_of(sock)
    if not host:
        return "unix:"
    port = sock.getpeername()[1]
    return f"ipv6:%5B{host}%5D:{port}" if ":" in host else f"ipv4:{host}:{port}"
