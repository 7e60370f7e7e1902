"""Connecting for HTTP/2: where to, how it fails, and the handshake of TLS."""

import errno
import socket
import ssl
import time

import grpc

from serving.client.access import Access
from serving.client.calls import Failure
from serving.client.h2.session import Session
from serving.client.place import Place
from serving.credentials.tls import Plain, Tls

CONNECT_S = 5.0
"""How long an attempt to connect may take."""
_READ_BYTES = 64 << 10


def session_of(place: Place, access: Access) -> Session:
    """Begin HTTP/2."""
    scheme = "http" if access.files is None else "https"
    return Session(place.authority, scheme)


def connect(
    place: Place, access: Access, deadline_s: float
) -> tuple[socket.socket, Session, Tls | Plain]:
    """Connect, and shake hands if there is TLS.

    Args:
        place: where to.
        access: certificates and token.
        deadline_s: when to give up, on the monotonic clock.

    Raises:
        OSError: nobody answers, or TLS fails.
    """
    until_s = min(deadline_s, time.monotonic() + CONNECT_S)
    try:
        return _connect(place, access, until_s)
    except TimeoutError as err:
        if time.monotonic() >= until_s:
            raise TimeoutError(errno.ETIMEDOUT, "no answer") from err  # a socket's has no number
        raise


def _connect(
    place: Place, access: Access, until_s: float
) -> tuple[socket.socket, Session, Tls | Plain]:
    sock = socket.create_connection((place.host, place.port), _left(until_s))
    try:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = access.tls_context()
        cipher = Plain() if context is None else _shake_hands(sock, context, place.host, until_s)
    except BaseException:
        sock.close()
        raise
    return sock, session_of(place, access), cipher


def is_alarm(error: BaseException) -> bool:
    """Return whether a handler of a signal raised an error: those of the system have a number."""
    return isinstance(error, TimeoutError) and error.errno is None


def failure_of(error: OSError) -> Failure:
    """Return the status of a connection that failed."""
    if isinstance(error, TimeoutError):
        return grpc.StatusCode.UNAVAILABLE, "no answer to the attempt to connect"
    if isinstance(error, ssl.SSLError) and not isinstance(error, ssl.SSLEOFError):
        return grpc.StatusCode.UNAVAILABLE, f"TLS handshake failed: {error}"
    return grpc.StatusCode.UNAVAILABLE, f"can't connect: {error.strerror or error}"


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
