"""A listening socket and its connections, of any protocol."""

import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING, Any

from serving.errors import ServingError
from serving.system.host import Host
from serving.transports.accepting import Acceptor
from serving.transports.peer import READ, TURN_S, Peer, State
from serving.transports.port_limits import PortLimits

if TYPE_CHECKING:
    from serving.security.tls import Tls
    from serving.security.tokens import TokenCheck


class Port:
    """A listening socket, its connections, and how their bytes become calls; of the loop's thread.

    Each protocol has a subclass.
    """

    keeps_layouts = True
    """Whether it recognises calls whose model may be gone."""

    def __init__(self, host: Host, limits: PortLimits, tokens: "TokenCheck | None") -> None:
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
        self._start_tag_s = 0.0
        """When the first turn is due of a connection that was left to other workers."""

    def headers_of(self, peer: Peer, stream: Any) -> Iterable[tuple[str, str]]:
        """Return the headers of a call."""
        raise NotImplementedError

    def open(self, listener: socket.socket, loop: Any, tls: "Callable[[], Tls] | None") -> None:
        """Take over a socket.

        Args:
            listener: listens already, and does not block; other workers may have it, too.
            loop: whose thread this is.
            tls: makes the encryption of a new connection; None is plaintext.
        """
        self._selector: selectors.BaseSelector = loop.selector
        self._acceptor = Acceptor(listener, self, self._selector, loop.hurry)
        self.schedule_flush: Callable[[Peer], None] = loop.schedule_flush
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

    def drop(self, peer: Peer) -> None:
        """Forget what a connection that is closed was not sent, if `forget` has not."""

    def drain(self, refusal: ServingError) -> None:
        """Refuse new calls, and those whose message has not arrived."""
        raise NotImplementedError

    def sweep_calls(self, peer: Peer) -> None:
        """End the calls whose message takes too long."""
        raise NotImplementedError

    def tick(self, now_s: float) -> None:
        """Do due work."""
        if self._acceptor.is_left_too_long(now_s):
            self.listen()
            self.accept(now_s, self._start_tag_s)
            self._acceptor.take_back()

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

    @property
    def num_connections(self) -> int:
        """Connections that are open."""
        return len(self._peers)

    def listen(self) -> None:
        """Accept new connections from now on."""
        self._acceptor.listen(len(self._peers))

    def accept(self, now_s: float, start_tag_s: float) -> None:
        """Accept new connections, whose first turn is due at `start_tag_s`."""
        max_connections = self.limits.max_connections
        if len(self._peers) >= max_connections and not self._make_room():
            self._acceptor.pause()
            return
        if self._acceptor.leaves_to_others(now_s):
            self._start_tag_s = start_tag_s
            self._acceptor.pause()
            return
        room = max_connections - len(self._peers)  # the next round finds out whether more wait
        for sock in self._acceptor.accept(room, now_s):
            try:
                self._add(sock, start_tag_s)
            except OSError:
                sock.close()

    def _add(self, sock: socket.socket, start_tag_s: float) -> None:
        sock.setblocking(False)
        if sock.family != socket.AF_UNIX:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        tls = None if self._tls is None else self._tls()
        peer = Peer(sock, self.new_engine(sock), tls, self)
        self._selector.register(sock, READ, peer)
        peer.start_tag_s = start_tag_s + TURN_S
        self._peers[peer] = None
        self._acceptor.note(len(self._peers))

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
        self._acceptor.note(len(self._peers))
        try:
            self.forget(peer)
            self.drop(peer)  # a call's object, which knows it, may live until its deadline
        finally:  # even after an error: its socket would be ready for ever
            if peer.mask:
                self._selector.unregister(peer.socket)
            peer.close()
            self.listen()

    def close(self) -> None:
        """Close the port, and have all peers leave."""
        self._acceptor.close()
        for peer in self:
            if peer.state < State.LAST:
                self.dismiss(peer)

    def dismiss(self, peer: Peer) -> None:
        """Have a peer leave, now that the port is closed."""
        self.leave(peer)

    def end_all(self) -> None:
        """Close the connections of those who have not left."""
        for peer in self:
            self.end(peer)
