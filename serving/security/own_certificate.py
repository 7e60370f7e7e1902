"""What a server's own certificate says of itself, for the lines that it prints to try."""

import ssl
from typing import NamedTuple

from serving.config import SecurityConfig
from serving.security.certificates import load

_NUM_FLIGHTS = 4
"""Messages of a handshake, one side after the other, and one to spare."""
_Certificate = dict[str, tuple[tuple[str, str], ...]]


class OwnCertificate(NamedTuple):
    """The facts of a certificate; of one that no caller would trust, none."""

    names: tuple[str, ...]
    """The names and addresses that it is for."""
    is_self_signed: bool
    """Whether its own file is the authority that callers name."""


def own_certificate(security: SecurityConfig) -> OwnCertificate:
    """Read the certificate of a server with TLS.

    Raises:
        ConfigurationError: it can't be used.
    """
    found = _as_a_caller_sees_it(security)
    names = tuple(str(name) for _, name in found.get("subjectAltName", ()))
    is_self_signed = bool(found) and found["subject"] == found["issuer"]
    return OwnCertificate(names, is_self_signed)


def _as_a_caller_sees_it(security: SecurityConfig) -> _Certificate:
    """Return the certificate as Python's ssl module parses that of a peer; empty if it refuses it.

    The module parses no other, so the two sides of a handshake are both here.
    """
    ours = load(security)
    ours.verify_mode = ssl.CERT_NONE
    its = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    its.check_hostname = False
    its.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # the certificate stands for its authority
    try:
        its.load_verify_locations(security.tls_cert)
        there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
        caller = its.wrap_bio(back, there)
        sides = (caller, ours.wrap_bio(there, back, server_side=True))
        for _ in range(_NUM_FLIGHTS):
            for side in sides:
                _go_on(side)
        found: _Certificate = caller.getpeercert() or {}  # type: ignore[assignment]
    except (OSError, ValueError):  # such as an expired one; SSLError is an OSError
        return {}
    return found


def _go_on(side: ssl.SSLObject) -> None:
    """Take a side's handshake as far as the bytes of the other allow."""
    try:
        side.do_handshake()
    except ssl.SSLWantReadError:
        return
