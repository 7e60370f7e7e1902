"""Connecting for HTTP/2: where to, how it fails, and the handshake of TLS."""

import errno
import os
import socket
import ssl
import time

from serving.client.credentials import Credentials
from serving.client.target import Address
from serving.client.transport import Failure
from serving.credentials.tls import Plain, Tls
from serving.protocols.status import StatusCode

CONNECT_S = 5.0
"""How long an attempt to connect may take."""
_READ_BYTES = 64 << 10


def connect(
    address: Address, credentials: Credentials, deadline_s: float
) -> tuple[socket.socket, Tls | Plain]:
    """Connect, and shake hands if there is TLS.

    Args:
        address: where to.
        credentials: certificates.
        deadline_s: when to give up, on the monotonic clock.

    Raises:
        OSError: nobody answers, or TLS fails.
    """
    until_s = min(deadline_s, time.monotonic() + CONNECT_S)
    sock = None
    try:
        sock = socket.create_connection((address.host, address.port), _left(until_s))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = credentials.tls_context()
        if context is None:
            return sock, Plain()
        return sock, _shake_hands(sock, context, address.host, until_s)
    except BaseException as err:
        if sock is not None:
            sock.close()
        if isinstance(err, TimeoutError) and time.monotonic() >= until_s:
            raise TimeoutError(errno.ETIMEDOUT, "no answer") from err  # a socket's has no number
        raise


def is_alarm(error: BaseException) -> bool:
    """Return whether a handler of a signal raised an error: those of the system have a number."""
    return isinstance(error, TimeoutError) and error.errno is None


def failure_of(error: OSError) -> Failure:
    """Return the status of a connection that failed."""
    if isinstance(error, TimeoutError):
        return StatusCode.UNAVAILABLE, "no answer to the attempt to connect"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return (
            StatusCode.UNAVAILABLE,
            f"TLS handshake failed: {error.strerror or error.args[0]}",
        )
    number = error.errno or 0  # asyncio has texts of its own; those of names are negative
    reason = os.strerror(number) if number > 0 else error.strerror or error
    return StatusCode.UNAVAILABLE, f"can't connect: {reason}"


def _shake_hands(sock: socket.socket, context: ssl.SSLContext, host: str, until_s: float) -> Tls:
    tls, received = Tls(context, host), b""
    while not tls.shake_hands(received):
        sock.sendall(tls.encrypt(b""))
        sock.settimeout(_left(until_s))
        received = sock.recv(_READ_BYTES)
        if not received:
            raise ConnectionResetError("the server closed the connection during TLS's start")
    return tls


def _left(until_s: float) -> float:
    return max(0.001, until_s - time.monotonic())
