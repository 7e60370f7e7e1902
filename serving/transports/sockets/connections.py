"""The connections of one listening socket, of any protocol: accepts, watches and closes them."""

import errno
import logging
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from serving.credentials.tls import Tls
from serving.credentials.tokens import TokenCheck
from serving.errors import DigitsError
from serving.transports.sockets.peer import TURN_S, Peer
from serving.transports.sockets.port_limits import Limits

_log = logging.getLogger(__name__)

_STARVED_LOG_S = 60.0
"""The least time between two lines that say that new connections wait."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""
_READ, _WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


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
