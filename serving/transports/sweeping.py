"""Closes the connections of a port that are idle, stuck or old."""

from serving.transports.peer import Peer, State
from serving.transports.port import Port


def sweep(port: Port, now_s: float) -> None:
    """Look at all connections of a port; accept new ones again."""
    port.listen()
    free = 1 - port.num_connections / port.limits.max_connections
    idle_s = port.limits.idle_s * (1.0 if free > 0.25 else max(0.01, free))
    for peer in port:
        _sweep_peer(port, peer, now_s, idle_s)


def _sweep_peer(port: Port, peer: Peer, now_s: float, idle_s: float) -> None:
    limits, quiet_s, age_s = port.limits, now_s - peer.active_s, now_s - peer.opened_s
    if 0 < limits.age_s * peer.jitter < age_s and peer.state == State.OPEN:
        peer.retire()
        port.schedule_flush(peer)
    if peer.state >= State.SHUT or not peer.engine.is_established:
        if age_s > limits.handshake_s:
            port.end(peer)
    elif peer.is_busy:
        if _is_stuck(port, peer, now_s):
            port.end(peer)
    elif peer.state == State.RETIRED or quiet_s > idle_s * peer.jitter:
        port.leave(peer)


def _is_stuck(port: Port, peer: Peer, now_s: float) -> bool:
    """Return whether a peer with calls takes no answers, or may be gone for ever."""
    limits, quiet_s = port.limits, now_s - peer.active_s
    is_over = bool(peer.output) and quiet_s > limits.message_s
    if now_s - peer.swept_s > limits.message_s:
        peer.swept_s = now_s
        port.sweep_calls(peer)
    if quiet_s > limits.idle_s and port.ping(peer):
        port.schedule_flush(peer)
        is_over |= quiet_s > limits.idle_s + limits.message_s
    return is_over
