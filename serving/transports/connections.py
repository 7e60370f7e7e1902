"""The connections of one listening socket, of any protocol: accepted, watched and closed."""

import errno
import logging
import math
import selectors
import socket
import ssl
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from serving.batching.queue import ClientQueue, Queue
from serving.config import ServerConfig
from serving.errors import ServingError
from serving.http2 import Limits
from serving.router import Router
from serving.security import Tls, TokenCheck
from serving.system.cores import memory_limit
from serving.system.host import Host, shares

_log = logging.getLogger(__name__)

_MAX_MESSAGE_BYTES = 64 << 20
_LEAST_BUFFERED_BYTES, _NUM_LARGEST, _SHARE_OF_MEMORY = 64 << 20, 8, 8
"""Half-received messages: as many of the largest as this, up to a part of the memory."""
_SPARE_BYTES = 4096
"""Room for tags, lengths and names beside the rows of a message."""
TURN_S = 2e-3
"""How long reading from one peer is to take, before the others' turn: as many bytes are read as its
last ones say."""
LEAST_BYTES = 4096
"""Read of a peer at least, and at first: even of the tiniest frames, these take no more."""
MAX_COST_PER_BYTE_S = TURN_S / LEAST_BYTES
"""The most that a byte may cost, in seconds."""
_STARVED_LOG_S = 60.0
"""The least time between two lines that say that new connections wait."""
_LEFT_S = 1e-3
"""How long a new connection is left to another worker, which has fewer but may be busy."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""
READ, WRITE = selectors.EVENT_READ, selectors.EVENT_WRITE


@dataclass(frozen=True, kw_only=True, slots=True)
class PortLimits:
    """Limits of peers."""

    max_message_bytes: int
    """The longest request message; a longer one is refused before its body is kept."""
    max_connections: int = 8_192
    """Open connections; one more replaces the longest idle one, or waits in the kernel."""
    http2: Limits = field(default_factory=Limits)
    """The engine's, for one connection; our own client has at most 512 calls on one."""
    max_buffered_bytes: int = 64 << 20
    """Half-received messages, all connections together; past it, large ones wait: see `Budget`."""
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
    most = 2 * router.batching.max_request_rows * max(sizes) + _SPARE_BYTES
    return min(most, _MAX_MESSAGE_BYTES)


def max_buffered_bytes(router: Router, config: ServerConfig) -> int:
    """Return the most bytes of requests that have not come whole, of all callers together.

    Args:
        router: the models.
        config: the option, which takes precedence, and the number of processes.
    """
    if config.max_buffered_bytes:
        return config.max_buffered_bytes
    most = memory_limit() // _SHARE_OF_MEMORY // config.workers
    largest = max(max_message_bytes(router, config), config.max_json_bytes)
    return max(_LEAST_BUFFERED_BYTES, min(_NUM_LARGEST * largest, most))


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
        "swept_s", "swept_stream", "tls", "trusted", "unread",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, engine: Any, tls: Tls | None, port: "Port") -> None:
        """Take over a socket that does not block; without `tls` it is read in plaintext."""
        self.socket = sock
        self.tls = tls
        self.port = port
        self.engine = engine
        """An `PeerEngine`, which its port knows more of."""
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
        """When it came, or shut down; when it last sent a call; when its calls were swept."""
        self.swept_stream: Any = b""
        """The last stream that was open at the last sweep."""
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
            if is_rest:  # answers may have come since
                return self.flush()
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
        return bool(self.streams or self.output)


_SECRET = {"authorization", "proxy-authorization", "cookie"}


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

    def headers_of(self, peer: Peer, stream: Any) -> Iterable[tuple[str, str]]:
        """Return the headers of a call."""
        raise NotImplementedError

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
