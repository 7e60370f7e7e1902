"""One peer of any protocol: its socket, and the loop's facts about it."""

import math
import socket
from collections.abc import Callable, Collection
from typing import Any

from serving.batching.queue import Line, Queue
from serving.credentials.tls import Tls
from serving.system.host import Host

TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
_LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_COST_PER_BYTE_S = TURN_S / _LEAST_BYTES
"""The most that a byte may cost, in seconds."""


class Peer:
    """The loop's state of one peer; used by the loop's thread only."""

    __slots__ = (
        "_clock", "active_s", "address", "cost_per_byte_s", "data_to_send", "gave_up_s", "home",
        "is_dirty", "is_last", "is_leaving", "is_open", "is_shut", "is_writing", "jitter", "lines",
        "opened_s", "output", "retired", "socket", "start_tag_s", "streams", "swept_s", "tls",
        "trusted", "unread",
    )  # fmt: skip

    home: Any
    """The `Connections` that it is one of."""
    streams: Collection[Any]
    """The calls in progress."""
    data_to_send: Callable[[], bytes]
    """Returns the protocol's bytes to send."""

    def __init__(self, sock: socket.socket, tls: Tls | None, host: Host) -> None:
        """Take over a socket that does not block; without `tls` it is read in plaintext."""
        self.socket = sock
        self.tls = tls
        self.address = host_of(sock)
        """Where the peer is, without its port."""
        self.lines: dict[Queue, Line] = {}
        """The calls that wait in each queue."""
        self.gave_up_s = -math.inf
        """When it last cancelled a call that waited, in monotonic seconds."""
        self.output: bytes | memoryview = b""
        """Bytes that the socket has not accepted yet."""
        self._clock = host.clock
        self.opened_s = self.active_s = self.swept_s = host.clock()
        self.jitter = host.random.uniform(0.9, 1.1)
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
        self.is_leaving = False
        """Whether the peer opens no more calls here."""
        self.retired = False
        """Whether the peer was asked to connect again."""
        self.is_dirty = False
        """Whether the loop flushes it at the end of the round."""
        self.is_writing = False
        """Whether the loop waits until the socket takes more."""
        self.is_last = False
        """Whether nothing that the peer sends is read any more: the end follows the answers."""
        self.is_shut = False
        """Whether our end was sent, at `opened_s`. The peer is to close, for at most as long as a
        handshake: closed by us while its bytes are under way, the connection would be reset, and
        it might lose the last answers (RFC 9112, section 9.6)."""
        self.is_open = True

    def read(self, buffer: memoryview) -> bytes | None:
        """Read the bytes that have arrived, at most a buffer full; None if the peer has left.

        Raises:
            OSError: the socket or its TLS failed.
        """
        buffer = buffer[: max(_LEAST_BYTES, int(TURN_S / self.cost_per_byte_s))]
        try:
            num_bytes = self.socket.recv_into(buffer)
        except BlockingIOError:
            return b""
        if not num_bytes:
            return None
        data = buffer[:num_bytes]
        # What is dropped need not be TLS: after a failed handshake, it may fail again.
        return bytes(data) if self.tls is None or self.is_last else self.tls.decrypt(data)

    def flush(self) -> bool:
        """Write the output, as far as the socket takes it.

        Returns:
            False if the connection is over.
        """
        if self.is_shut:
            return True
        is_rest = bool(self.output)
        try:
            if not is_rest:
                output = self.data_to_send()
                if self.unread:
                    output += self._resume_read()
                self.output = output if self.tls is None else self.tls.encrypt(output)
            while self.output:
                sent = self.socket.send(self.output)
                self.output = memoryview(self.output)[sent:] if sent < len(self.output) else b""
            if is_rest:  # answers may have come since
                return self.flush()
            if self.is_leaving and not self.streams:
                self.is_last = True
            if self.is_last and not self.is_pending:
                self.socket.shutdown(socket.SHUT_WR)
                self.is_shut, self.opened_s = True, self._clock()
        except BlockingIOError:
            return True
        except OSError:
            return False
        return True

    def _resume_read(self) -> bytes:
        """Resume the calls whose answers may have been read, now that windows were used."""
        unread, self.unread = self.unread, {}
        now_s = self._clock()
        for stream in unread:
            stream.resume(now_s)
        return self.data_to_send()

    @property
    def is_busy(self) -> bool:
        """Whether calls are in progress, or answers on their way."""
        return bool(self.streams or self.output)

    @property
    def is_kept(self) -> bool:
        """Whether a new connection does not take this one's place."""
        return self.is_busy

    @property
    def is_established(self) -> bool:
        """Whether the peer has sent in time the bytes that it must begin with."""
        raise NotImplementedError

    @property
    def is_pending(self) -> bool:
        """Whether accepted calls are to be answered, or answers on their way."""
        raise NotImplementedError

    def forget_known(self) -> None:
        """Read calls again that repeat earlier ones."""
        raise NotImplementedError

    def ping(self) -> bool:
        """Ask for a sign of life; return whether the protocol can."""
        return False

    def announce_end(self) -> None:
        """Say that new calls should be made on another connection."""

    def go_away(self) -> None:
        """Say that the connection is over."""

    def close(self) -> None:
        """Close the socket."""
        self.is_open = False
        self.socket.close()


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
