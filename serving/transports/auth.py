"""Bearer tokens: `authorization: Bearer <token>` on every call but health's.

Kept and compared as SHA-256 digests, in constant time, so that neither memory dumps nor response
times reveal a token. A digest without a salt is enough: tokens are long and random, not chosen.
"""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.config import SecurityConfig
from serving.credentials.tokens import parse_tokens
from serving.credentials.watched_files import WatchedFiles, read_bytes

_Digests = tuple[bytes, ...]


class TokenCheck:
    """Compares tokens with the valid ones."""

    def __init__(self, digests: Callable[[], _Digests]) -> None:
        """Accept the tokens with these digests; a new tuple means that they have changed."""
        self.digests = digests

    def accepts(self, values: Sequence[bytes]) -> bool:
        """Return whether the values of a call's `authorization` are one valid token."""
        if len(values) != 1:
            return False
        digest = _digest(_bearer_token(values[0]))
        matches = [hmac.compare_digest(digest, known) for known in self.digests()]
        return any(matches)  # all were compared: the time doesn't reveal which is right


def token_check(config: SecurityConfig) -> TokenCheck | None:
    """Return the check of tokens; None if none are configured.

    Raises:
        ConfigurationError: the file can't be read, or holds no token or a bad one.
    """
    path = config.token_file
    if path is not None:
        return TokenCheck(WatchedFiles((path,), lambda: _parse(read_bytes(path), path)).get)
    if config.tokens is not None:
        digests = _parse(config.tokens.encode(), "DIGITS_TOKEN")
        return TokenCheck(lambda: digests)
    return None


def _parse(data: bytes, source: Path | str) -> _Digests:
    return tuple(map(_digest, parse_tokens(data, source)))


def _bearer_token(value: bytes) -> bytes:
    scheme, _, token = value.partition(b" ")
    return token if scheme.lower() == b"bearer" else b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()
