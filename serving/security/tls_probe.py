"""Whether a server speaks TLS, for callers that get no answer."""

import socket
import ssl

PLAINTEXT_SERVER = "the server does not speak TLS: leave out tls_ca (--tls-ca)"
_NO_TLS = ("WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST")
"""OpenSSL's reasons for bytes that are no record of TLS."""


def tls_mismatch(target: str, timeout_s: float, *, is_tls: bool) -> str | None:
    """Return in one line that only one side speaks TLS; None if that is not so, or not known.

    Args:
        target: the server, as "host:port"; nothing is sent to it but the first record of TLS.
        timeout_s: how long to wait for its answer.
        is_tls: whether the caller speaks TLS.
    """
    does_server = _speaks_tls(target, timeout_s)
    if does_server is None or does_server == is_tls:
        return None
    if is_tls:
        return PLAINTEXT_SERVER
    return "the server speaks TLS: tls_ca (--tls-ca) names the authorities of its certificate"


def is_plaintext(error: ssl.SSLError) -> bool:
    """Return whether a handshake failed since the peer does not speak TLS."""
    return getattr(error, "reason", None) in _NO_TLS  # our own errors have none


def _speaks_tls(target: str, timeout_s: float) -> bool | None:
    """Begin a handshake; return whether the server goes on with it, None if it says nothing."""
    host, _, port = target.partition(",")[0].rpartition(":")
    context = ssl.create_default_context()
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_alpn_protocols(["h2"])
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout_s) as plain:
            context.wrap_socket(plain).close()
    except ssl.SSLError as err:  # one that speaks TLS may refuse, as without a certificate
        if "ALERT" in (err.reason or ""):
            return True
        return False if is_plaintext(err) else None
    except (OSError, ValueError):
        return None
    return True
