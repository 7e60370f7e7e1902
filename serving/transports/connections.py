"""The connections of one listening socket, of any protocol: accepted, watched and closed."""

import errno
import logging
import math
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from serving.batching.queue import Line, Queue
from serving.config import ServerConfig
from serving.credentials.tls import Tls
from serving.credentials.tokens import TokenCheck
from serving.errors import DigitsError
from serving.http2 import Limits as Http2Limits
from serving.router import Router
from serving.system.host import Host

_log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 64 << 20
_SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the images of a message."""
TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
_LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_COST_PER_BYTE_S = TURN_S / _LEAST_BYTES
"""The most that a byte may cost, in seconds."""
_STARVED_LOG_S = 60.0
"""The least time between two lines that say that new connections wait."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(frozen=True, kw_only=True, slots=True)
class Limits:
    """Limits of peers."""

    max_message_bytes: int
    """The longest request message; a longer one is refused before its body is kept."""
    max_connections: int = 8_192
    """Open connections; one more replaces the longest idle one, or waits in the kernel."""
    http2: Http2Limits = field(default_factory=Http2Limits)
    """The engine's, for one connection; our own client has at most 512 calls on one."""
    max_buffered_bytes: int = 64 << 20
    """Half-received messages, all connections together; past it, the largest are refused."""
    max_unread_bytes: int = 16 << 20
    """Answers that one peer has not read, past which its calls are refused."""
    max_stream_unread_bytes: int = 256 << 10
    """Answers that one stream has not read, past which its requests are not read either."""
    handshake_s: float = 10.0
    """For TLS's handshake and HTTP/2's preface, in seconds."""
    message_s: float = 60.0
    """For a unary call's message, from its headers to its end, in seconds."""
    idle_s: float = 600.0
    """For a connection without calls, in seconds; less as `max_connections` comes near."""
    age_s: float = 0.0
    """A connection's age at which callers are asked to reconnect, in seconds; 0 is never."""


def max_message_bytes(router: Router, config: ServerConfig | None = None) -> int:
    """Return the longest message that is read: for rows of no fixed size or large ones 64 MiB.

    Else twice the largest that is answered: one that is a little too large gets a precise error.

    Args:
        router: the models.
        config: says whether others may come, whose rows are not known.
    """
    sizes = [route.tensors.row_bytes for route in router.routes.values()]
    may_change = config and (config.reload_interval_s or config.allow_repository_control)
    if may_change or not sizes or not all(sizes):
        return _MAX_MESSAGE_BYTES
    most = 2 * router.batching.max_request_images * max(sizes) + _SPARE_BYTES
    return min(most, _MAX_MESSAGE_BYTES)


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


class Calls:
    """Turns the bytes of a port's peers into calls; each protocol has its own."""

    def __init__(self, tokens: TokenCheck | None) -> None:
        """Begin; without `tokens` no call needs one."""
        self._tokens = tokens
        self._digests = None if tokens is None else tokens.digests()
        self.need_tokens = tokens is not None
        self.is_stale = False
        """Whether calls that peers repeat may be for a model that is gone."""
        self._refusal: DigitsError | None = None
        """Why new calls are refused, once the server drains."""

    def forget_layouts(self) -> None:
        """Have all messages parsed again."""
        self.is_stale = True

    def check(self, connections: Iterable[Any]) -> None:
        """Have calls read again where other tokens are valid now, or a model is gone."""
        digests = None if self._tokens is None else self._tokens.digests()
        if self.is_stale or digests is not self._digests:
            self.is_stale, self._digests = False, digests
            for connection in connections:
                connection.forget_known()

    def receive(self, connection: Any, data: bytes, now_s: float) -> None:
        """Process bytes of a connection."""
        raise NotImplementedError

    def forget(self, connection: Any) -> None:
        """Cancel all calls of a connection that is over."""
        raise NotImplementedError

    def drain(self, refusal: DigitsError, connections: Iterable[Any]) -> None:
        """Refuse new calls, and those whose message has not arrived."""
        raise NotImplementedError

    def is_due(self, now_s: float) -> bool:
        """Return whether `tick` has something to do by then, or may have at any time."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """Do due work."""
        raise NotImplementedError

    def sweep(self, connection: Any) -> None:
        """End the calls whose message takes too long."""
        raise NotImplementedError


class Connections:
    """Used by the loop's thread only."""

    def __init__(
        self, listeners: list[socket.socket], selector: selectors.BaseSelector, limits: Limits,
        calls: Calls, tls: Callable[[], ssl.SSLContext] | None,
        make: Callable[[socket.socket, Tls | None], Peer], schedule_flush: Callable[[Any], None],
    ) -> None:  # fmt: skip
        """Prepare; `listen` begins.

        Args:
            listeners: the first listens already, and does not block. The others are those of other
                workers, looked at with each sweep: callers do not wait for one that is frozen.
            selector: the loop's.
            limits: of peers.
            calls: turns their bytes into calls.
            tls: returns the context for new connections; None is plaintext.
            make: makes a connection of a socket.
            schedule_flush: has a connection flushed at the end of the round.
        """
        self._listener, *self._others = listeners
        self._selector = selector
        self._limits = limits
        self.calls = calls
        self._tls = tls
        self._make = make
        self._schedule_flush = schedule_flush
        self._open: dict[Peer, None] = {}
        self._is_listening = self._is_closed = False
        self._starved_s = -_STARVED_LOG_S
        """When the last line was logged about new connections that wait."""

    def __iter__(self) -> Iterator[Peer]:
        """Iterate over those that are open; from any thread."""
        return iter(tuple(self._open))

    def listen(self) -> None:
        """Accept new connections from now on."""
        if not self._is_listening and not self._is_closed:
            self._selector.register(self._listener, _READ, self)
            self._is_listening = True

    def stop_listening(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self._is_listening:
            self._selector.unregister(self._listener)
            self._is_listening = False

    def accept(self, now_s: float, start_tag_s: float) -> None:
        """Accept new connections, whose first turn is due at `start_tag_s`."""
        max_connections = self._limits.max_connections
        if len(self._open) >= max_connections and not self._make_room():
            self.stop_listening()
            return
        self._accept_from(self._listener, now_s, start_tag_s)

    def _accept_from(self, listener: socket.socket, now_s: float, start_tag_s: float) -> None:
        max_connections = self._limits.max_connections
        for _ in range(_MAX_ACCEPTED):
            if len(self._open) >= max_connections:
                return  # the next round finds out whether another one waits
            try:
                sock, _ = listener.accept()
            except BlockingIOError:
                return
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if now_s - self._starved_s >= _STARVED_LOG_S:
                        self._starved_s = now_s
                        _log.warning("new connections wait: %s", err.strerror)
                    self.stop_listening()
                return  # else: it was gone before it was accepted
            try:
                self._add(sock, start_tag_s)
            except OSError:
                sock.close()

    def _add(self, sock: socket.socket, start_tag_s: float) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = None if self._tls is None else Tls(self._tls())
        connection = self._make(sock, tls)
        connection.home = self
        self._selector.register(sock, _READ, connection)
        connection.start_tag_s = start_tag_s + TURN_S
        self._open[connection] = None

    def _make_room(self) -> bool:
        """Close idle connections: first those without a token, of who has most, idle longest.

        Where tokens are needed, a call that needs none, such as Watch, does not keep a connection.
        """
        closable = [
            connection
            for connection in self._open
            if not connection.is_kept or (self.calls.need_tokens and not connection.trusted)
        ]
        numbers = Counter(connection.address for connection in self._open)
        closable.sort(
            key=lambda c: (not c.is_shut, c.trusted, -numbers[c.address], c.is_kept, c.active_s)
        )
        for connection in closable[: 1 + len(closable) // 64]:
            self.end(connection)
        return bool(closable)

    def watch(self, connection: Peer) -> None:
        """Wait for a connection's next event: a peer that reads no answers is not read."""
        mask = _WRITE if connection.output else _READ
        self._selector.modify(connection.socket, mask, connection)

    def leave(self, connection: Peer) -> None:
        """Tell a peer to close its connection; close it at once if the peer was told before."""
        if connection.is_last:
            self.end(connection)
            return
        connection.is_last = True
        self._schedule_flush(connection)
        connection.go_away()
        self.calls.forget(connection)

    def end(self, connection: Peer) -> None:
        """Close a connection at once; its peer is told."""
        connection.go_away()
        connection.flush()
        self.abort(connection)

    def abort(self, connection: Peer) -> None:
        """Close a connection as it is, and forget its calls."""
        if self._open.pop(connection, self) is self:
            return
        try:
            self.calls.forget(connection)
        finally:  # even after an error: its socket would be ready for ever
            self._selector.unregister(connection.socket)
            connection.close()
            self.listen()

    def sweep(self, now_s: float) -> None:
        """Close connections that are idle, stuck or old; accept new ones again."""
        self.listen()
        for other in self._others:
            self._accept_from(other, now_s, 0.0)
        limits = self._limits
        free = 1 - len(self._open) / limits.max_connections
        idle_s = limits.idle_s * (1.0 if free > 0.25 else max(0.01, free))
        for connection in self:
            quiet_s = now_s - connection.active_s
            self._retire(connection, now_s)
            close = self.end
            if connection.is_shut or not connection.is_established:
                is_over = now_s - connection.opened_s > limits.handshake_s
            elif connection.is_busy:
                is_over = bool(connection.output) and quiet_s > limits.message_s
                if now_s - connection.swept_s > limits.message_s:
                    connection.swept_s = now_s
                    self.calls.sweep(connection)
                if quiet_s > limits.idle_s and connection.ping():  # else it may be gone for ever
                    self._schedule_flush(connection)
                    is_over |= quiet_s > limits.idle_s + limits.message_s
            else:
                is_over = connection.retired or quiet_s > idle_s * connection.jitter
                close = self.leave
            if is_over:
                close(connection)

    def _retire(self, connection: Peer, now_s: float) -> None:
        """Ask the caller of an old connection to make its next calls on another one."""
        age_s = now_s - connection.opened_s
        if 0 < self._limits.age_s * connection.jitter < age_s and not connection.retired:
            connection.retired = True
            connection.announce_end()
            self._schedule_flush(connection)

    def close(self) -> None:
        """Close the port, and have all peers leave."""
        self._is_closed = True
        self.stop_listening()
        for listener in (self._listener, *self._others):
            listener.close()
        for connection in self:
            if not connection.is_last:
                self.leave(connection)

    def end_all(self) -> None:
        """Close the connections of those who have not left."""
        for connection in self:
            self.end(connection)
