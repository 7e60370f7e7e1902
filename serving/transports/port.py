"""A listening socket and its connections, of any protocol."""

import errno
import logging
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import Any

from serving.errors import ServingError
from serving.security.tls import Tls
from serving.security.tokens import TokenCheck
from serving.system.host import Host
from serving.system.shared_port import shares
from serving.transports.limits import PortLimits
from serving.transports.peer import READ, TURN_S, Peer, State

_log = logging.getLogger(__name__)
_STARVED_LOG_S = 60.0
"""The least time between two lines that say that new connections wait."""
_LEFT_S = 1e-3
"""How long a new connection is left to another worker, which has fewer but may be busy."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""


class Port:
    """A listening socket, its connections, and how their bytes become calls; of the loop's thread.

    Each protocol has a subclass.
    """

    keeps_layouts = True
    """Whether it recognises calls whose model may be gone."""

    def __init__(self, host: Host, limits: PortLimits, tokens: TokenCheck | None) -> None:
        """Prepare; `listen` begins.

        Args:
            host: clock, network and random numbers.
            limits: of peers.
            tokens: compares tokens; None if no call needs one.
        """
        self.host = host
        self.limits = limits
        self._tokens = tokens
        self._digests = None if tokens is None else tokens.digests()
        self.has_tokens = tokens is not None
        self.is_stale = False
        """Whether calls that peers repeat may be for a model that is gone."""
        self.refusal: ServingError | None = None
        """Why new calls are refused, once the server drains."""
        self._peers: dict[Peer, None] = {}
        self._is_listening = self._is_closed = False
        self._starved_s = -_STARVED_LOG_S
        """When the last line was logged about new connections that wait."""
        self._left_s = 0.0
        """Since when a connection is left to other workers, which have fewer; 0 if none is."""
        self._start_tag_s = 0.0
        """When its first turn is due."""

    def open(
        self, listener: socket.socket, loop: Any, tls: Callable[[], ssl.SSLContext] | None
    ) -> None:
        """Take over a socket.

        Args:
            listener: listens already, and does not block; other workers may have it, too.
            loop: whose thread this is.
            tls: returns the context for new connections; None is plaintext.
        """
        self._listener = listener
        self._share = next((each for each in shares.values() if each.socket is listener), None)
        self._selector: selectors.BaseSelector = loop.selector
        self.schedule_flush: Callable[[Peer], None] = loop.schedule_flush
        self._hurry: Callable[[float], None] = loop.hurry
        self._tls = tls

    # Calls: the protocol's part

    def new_engine(self, sock: socket.socket) -> Any:
        """Return the `PeerEngine` of a new connection."""
        raise NotImplementedError

    def receive(self, peer: Peer, data: bytes, now_s: float) -> None:
        """Process bytes of a connection."""
        raise NotImplementedError

    def is_pending(self, peer: Peer) -> bool:
        """Return whether accepted calls are to be answered, or answers on their way."""
        return self.num_unsent(peer) > 0 or self.has_accepted(peer)

    def has_accepted(self, peer: Peer) -> bool:
        """Return whether accepted calls are to be answered."""
        raise NotImplementedError

    def num_unsent(self, peer: Peer) -> int:
        """Return the bytes of answers that a peer has not taken."""
        raise NotImplementedError

    def is_kept(self, peer: Peer) -> bool:
        """Return whether a new connection does not take this one's place."""
        return peer.is_busy

    def ping(self, peer: Peer) -> bool:
        """Ask for a sign of life; return whether the protocol can."""
        return False

    def resume(self, peer: Peer, calls: Iterable[Any]) -> None:
        """Go on with calls whose answers may have been read."""
        for call in calls:
            call.resume()

    def forget(self, peer: Peer) -> None:
        """Cancel all calls of a connection that is over."""
        raise NotImplementedError

    def drain(self, refusal: ServingError) -> None:
        """Refuse new calls, and those whose message has not arrived."""
        raise NotImplementedError

    def sweep_calls(self, peer: Peer) -> None:
        """End the calls whose message takes too long."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """Do due work."""
        if self._left_s and now_s - self._left_s >= _LEFT_S:
            self.listen()
            self.accept(now_s, self._start_tag_s)  # if no other worker has taken it
            self._left_s = 0.0

    def check(self) -> None:
        """Have calls read again where other tokens are valid now, or a model is gone."""
        digests = None if self._tokens is None else self._tokens.digests()
        if self.is_stale or digests is not self._digests:
            self._digests, self.is_stale = digests, False
            for peer in self:
                peer.engine.forget()

    # Connections

    def __iter__(self) -> Iterator[Peer]:
        """Iterate over those that are open; from any thread."""
        return iter(tuple(self._peers))

    def listen(self) -> None:
        """Accept new connections from now on."""
        if not self._is_listening and not self._is_closed:
            self._selector.register(self._listener, READ, self)
            self._is_listening = True
            self._note_share()

    def stop_listening(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self._is_listening:
            self._selector.unregister(self._listener)
            self._is_listening = False

    def accept(self, now_s: float, start_tag_s: float) -> None:
        """Accept new connections, whose first turn is due at `start_tag_s`."""
        max_connections = self.limits.max_connections
        if len(self._peers) >= max_connections and not self._make_room():
            self.stop_listening()
            return
        if self._leaves_to_others(now_s):
            self._start_tag_s = start_tag_s
            self.stop_listening()
            return
        most = _MAX_ACCEPTED if self._share is None else 1
        for _ in range(most):
            if len(self._peers) >= max_connections:
                return  # the next round finds out whether another one waits
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as err:
                if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
                    if now_s - self._starved_s >= _STARVED_LOG_S:
                        self._starved_s = now_s
                        _log.warning("new connections wait: %s", err.strerror)
                    self.stop_listening()
                elif err.errno == errno.EINVAL and self._share is not None:
                    self._share.listen()
                return  # else: it was gone before it was accepted
            try:
                self._add(sock, start_tag_s)
            except OSError:
                sock.close()

    def _leaves_to_others(self, now_s: float) -> bool:
        """Return whether the next connection is for a worker that has fewer, if it is quick."""
        if self._share is None or self._share.is_small:
            self._left_s = 0.0
        elif not self._left_s:
            self._left_s = now_s
            self._hurry(_LEFT_S)
        elif now_s - self._left_s >= _LEFT_S:
            self._left_s = 0.0
        return self._left_s > 0

    def _note_share(self) -> None:
        if self._share is not None:
            self._share.note(len(self._peers))

    def _add(self, sock: socket.socket, start_tag_s: float) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = None if self._tls is None else Tls(self._tls())
        peer = Peer(sock, self.new_engine(sock), tls, self)
        self._selector.register(sock, READ, peer)
        peer.start_tag_s = start_tag_s + TURN_S
        self._peers[peer] = None
        self._note_share()

    def _make_room(self) -> bool:
        """Close idle connections: first those without a token, of who has most, idle longest.

        Where tokens are needed, a call that needs none, such as Watch, does not keep a connection.
        """
        kept = {peer: self.is_kept(peer) for peer in self._peers}
        closable = [p for p in self._peers if not kept[p] or (self.has_tokens and not p.trusted)]
        numbers = Counter(peer.address for peer in self._peers)
        closable.sort(
            key=lambda p: (
                p.state < State.SHUT,
                p.trusted,
                -numbers[p.address],
                kept[p],
                p.active_s,
            )
        )
        for peer in closable[: 1 + len(closable) // 64]:
            self.end(peer)
        return bool(closable)

    def watch(self, peer: Peer, mask: int) -> None:
        """Wait for other events of a connection: a peer that reads no answers is not read."""
        before, peer.mask = peer.mask, mask
        if not mask:
            self._selector.unregister(peer.socket)
        elif before:
            self._selector.modify(peer.socket, mask, peer)
        else:
            self._selector.register(peer.socket, mask, peer)

    def leave(self, peer: Peer) -> None:
        """Tell a peer to close its connection; close it at once if the peer was told before."""
        if peer.state >= State.LAST:
            self.end(peer)
            return
        peer.end_reading()
        self.schedule_flush(peer)
        peer.engine.go_away()
        self.forget(peer)

    def end(self, peer: Peer) -> None:
        """Close a connection at once; its peer is told."""
        peer.engine.go_away()
        peer.flush()
        self.abort(peer)

    def abort(self, peer: Peer) -> None:
        """Close a connection as it is, and forget its calls."""
        if self._peers.pop(peer, self) is self:
            return
        self._note_share()
        try:
            self.forget(peer)
        finally:  # even after an error: its socket would be ready for ever
            if peer.mask:
                self._selector.unregister(peer.socket)
            peer.close()
            self.listen()

    def sweep(self, now_s: float) -> None:
        """Close connections that are idle, stuck or old; accept new ones again."""
        self.listen()
        free = 1 - len(self._peers) / self.limits.max_connections
        idle_s = self.limits.idle_s * (1.0 if free > 0.25 else max(0.01, free))
        for peer in self:
            self._sweep_peer(peer, now_s, idle_s)

    def _sweep_peer(self, peer: Peer, now_s: float, idle_s: float) -> None:
        limits, quiet_s, age_s = self.limits, now_s - peer.active_s, now_s - peer.opened_s
        if 0 < limits.age_s * peer.jitter < age_s and peer.state == State.OPEN:
            peer.retire()
            self.schedule_flush(peer)
        close = self.end
        if peer.state >= State.SHUT or not peer.engine.is_established:
            is_over = age_s > limits.handshake_s
        elif peer.is_busy:
            is_over = bool(peer.output) and quiet_s > limits.message_s
            if now_s - peer.swept_s > limits.message_s:
                peer.swept_s = now_s
                self.sweep_calls(peer)
            if quiet_s > limits.idle_s and self.ping(peer):  # else it may be gone for ever
                self.schedule_flush(peer)
                is_over |= quiet_s > limits.idle_s + limits.message_s
        else:
            is_over = peer.state == State.RETIRED or quiet_s > idle_s * peer.jitter
            close = self.leave
        if is_over:
            close(peer)

    def close(self) -> None:
        """Close the port, and have all peers leave."""
        self._is_closed = True
        self.stop_listening()
        self._listener.close()
        for peer in self:
            if peer.state < State.LAST:
                self.part(peer)

    def part(self, peer: Peer) -> None:
        """Have a peer leave, now that the port is closed."""
        self.leave(peer)

    def end_all(self) -> None:
        """Close the connections of those who have not left."""
        for peer in self:
            self.end(peer)
