"""Tokens, certificates and TLS, and the files of them, which are read again when they change.

Most servers have neither, and load none of its modules.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING

from serving.config import SecurityConfig

if TYPE_CHECKING:
    from serving.security.tls import Tls
    from serving.security.tokens import TokenCheck


def token_check(config: SecurityConfig) -> "TokenCheck | None":
    """Return the check of tokens; None if none are configured.

    Raises:
        ConfigurationError: the file can't be read, or holds no token or a bad one.
    """
    if not config.has_tokens:
        return None
    from serving.security import tokens

    return tokens.token_check(config)


def server_tls(config: SecurityConfig, protocol: str) -> "Callable[[], Tls] | None":
    """Return a function that makes the encryption of a new connection; None without a certificate.

    Args:
        config: the files.
        protocol: its ALPN name, "h2" or "http/1.1".

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if not config.has_tls:
        return None
    from serving.security.certificates import server_context
    from serving.security.tls import Tls

    context = server_context(config, protocol)
    return lambda: Tls(context())
