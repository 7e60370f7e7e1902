"""Reads the connections that are ready, in fair turns: those who cost much are read later."""

import logging
import math
import selectors
from collections.abc import Callable

from serving.http2 import Http2Error
from serving.transports.peer import LEAST_BYTES, MAX_COST_PER_BYTE_S, READ, TURN_S, Peer, State
from serving.transports.port import Port

_log = logging.getLogger(__name__)
_TELLING_BYTES = 1024
"""Shorter reads do not show the cost of a peer's bytes: any read takes some microseconds."""
_MAX_READ_S = 2e-4
"""The time that a turn of any length may take. One that takes more, and more than even the tiniest
frames would, was interrupted; charged in full, it would have its peer wait as long for each other
busy one."""
_READ_BYTES = 512 << 10
"""Bytes read of one connection before the others' turn, some 600 calls of one small row."""


class Reader:
    """Reads what is ready, and gives those who cost much their turn later."""

    def __init__(
        self, clock: Callable[[], float], round_s: float, schedule_flush: Callable[[Peer], None]
    ) -> None:
        """Read for some `round_s` seconds a round, and then have peers flushed."""
        self._clock = clock
        self._round_s = round_s
        self._schedule_flush = schedule_flush
        self._buffer = memoryview(bytearray(_READ_BYTES))
        self.is_overrun = False
        """Whether the last round did not read all that was ready."""
        self._turns_s = self._accept_start_tag_s = 0.0
        """The clock of turns: where not all connections can be read in a round, the least tags
        are first (start-time fair queueing)."""

    def read(self, ready: list[tuple[selectors.SelectorKey, int]], now_s: float) -> None:
        """Read the connections that are ready, for some 10 ms in all.

        Where that was not enough for all, those who have taken the least time go first.
        """
        # Sorted only after a round that ended early: else all are read, in any order.
        if self.is_overrun:
            ready.sort(key=self._start_tag_s)
        begin_s = now_s
        for key, mask in ready:
            connection = key.data
            if connection is None:  # another thread has woken the loop
                key.fileobj.recv(64)  # type: ignore[union-attr]
                continue
            if connection.__class__ is not Peer:
                connection.accept(now_s, self._turns_s)
                end_s = self._clock()
                self._accept_start_tag_s = self._turns_s + end_s - begin_s
            elif connection.state == State.CLOSED:  # in this round, for a new one
                continue
            else:
                num_bytes = self._serve(connection, mask, now_s)
                end_s = self._clock()
                turn_s = min(end_s - begin_s, _MAX_READ_S + num_bytes * MAX_COST_PER_BYTE_S)
                if num_bytes >= _TELLING_BYTES:
                    connection.cost_per_byte_s += (
                        turn_s / num_bytes - connection.cost_per_byte_s
                    ) / 4
                # A peer that was idle begins at the present time: it saves nothing up.
                self._turns_s = max(self._turns_s, connection.start_tag_s)
                connection.start_tag_s = self._turns_s + turn_s
            begin_s = end_s
            if begin_s - now_s > self._round_s:
                break
        self.is_overrun = begin_s - now_s > self._round_s

    def _start_tag_s(self, ready: tuple[selectors.SelectorKey, int]) -> float:
        """Return when a turn is due."""
        data = ready[0].data
        if isinstance(data, Peer):
            return data.start_tag_s
        return self._accept_start_tag_s if isinstance(data, Port) else 0.0

    def _serve(self, connection: Peer, mask: int, now_s: float) -> int:
        """Read a connection's bytes, and its calls; return the number of bytes."""
        num_bytes = 0
        port: Port = connection.port
        try:
            if mask & READ and not connection.is_paused:
                data = self._receive(connection, now_s)
                if data is None:
                    port.abort(connection)
                    return 0
                num_bytes = len(data)
                if data and connection.state >= State.LAST:  # dropped
                    connection.active_s = now_s
                elif data:
                    port.receive(connection, data, now_s)
            self._schedule_flush(connection)  # if it is writable, the flush sends the rest
        except (Http2Error, OSError):
            port.leave(connection)
        except Exception:  # a bug of ours: it ends this connection, and never the loop
            _log.exception("a connection failed")
            port.abort(connection)
        return num_bytes

    def _receive(self, peer: Peer, now_s: float) -> bytes | None:
        """Read the bytes that have arrived, at most a buffer full; None if the peer has left.

        Raises:
            OSError: the socket or its TLS failed.
        """
        buffer = self._buffer[: max(LEAST_BYTES, int(TURN_S / peer.cost_per_byte_s))]
        try:
            num_bytes = peer.socket.recv_into(buffer)
        except BlockingIOError:
            peer.behind_s = math.inf
            return b""
        if num_bytes < len(buffer):
            peer.behind_s = math.inf
        elif peer.behind_s == math.inf:
            peer.behind_s = now_s
        if not num_bytes:
            return None
        # Bytes to be dropped need not be TLS: after a failed handshake, it may fail again.
        if peer.tls is None or peer.state >= State.LAST:
            return bytes(buffer[:num_bytes])
        return peer.tls.decrypt(buffer[:num_bytes])
