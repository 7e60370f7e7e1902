"""The end of a loop's service: accepted calls are answered, peers that take nothing are cut off."""

from collections.abc import Iterable

from serving.errors import ServingError
from serving.transports.peer import Peer
from serving.transports.port import Port

_UNREAD_S = 2.0
"""How long a drain waits for a peer to take answers of which nothing leaves; then it is cut off."""


class Drain:
    """A drain that has begun; of the loop's thread."""

    def __init__(self, refusal: ServingError, now_s: float) -> None:
        """Note when it begins, and why new calls are refused."""
        self.refusal = refusal
        self.begun_s = now_s
        self._unsent: dict[Peer, tuple[int, float]] = {}
        """How many bytes peers have not taken, and since when not fewer."""

    def begin(self, port: Port) -> None:
        """Have a port refuse new calls, and tell its peers."""
        for peer in port:
            if peer.is_busy:
                peer.active_s = self.begun_s
            peer.engine.announce_end()
            port.schedule_flush(peer)
        port.drain(self.refusal)

    def cut_off_who_takes_nothing(self, ports: Iterable[Port], now_s: float) -> None:
        """Cut off the peers that have taken none of their answers for too long."""
        before, self._unsent = self._unsent, {}
        for port in ports:
            for peer in port:
                num_bytes = 0 if port.has_accepted(peer) else port.num_unsent(peer)
                if num_bytes:
                    bytes_before, since_s = before.get(peer, (0, now_s))
                    if num_bytes != bytes_before:
                        since_s = now_s
                    self._unsent[peer] = num_bytes, since_s
                    if now_s - since_s >= _UNREAD_S:
                        port.abort(peer)
