"""Tokens: the valid ones, and their comparison with those of calls."""

import hashlib
import hmac
from collections.abc import Callable, Sequence
from pathlib import Path

from serving.config import SecurityConfig
from serving.errors import ConfigurationError
from serving.security.watched_files import WatchedFiles, read_bytes

_MIN_CHARACTERS = 16
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
        scheme, _, token = values[0].partition(b" ")
        digest = _digest(token if scheme.lower() == b"bearer" else b"")
        matches = [hmac.compare_digest(digest, known) for known in self.digests()]
        return any(matches)  # all were compared: the time doesn't reveal which is right


def token_check(config: SecurityConfig) -> TokenCheck | None:
    """Return the check of tokens; None if none are configured.

    Raises:
        ConfigurationError: the file can't be read, or holds no token or a bad one.
    """
    if not config.has_tokens:
        return None
    path = config.token_file
    if path is not None:
        return TokenCheck(WatchedFiles((path,), lambda: _parse(read_bytes(path), path)).get)
    assert config.tokens is not None
    digests = _parse(config.tokens.encode(), "SERVING_TOKEN")
    return TokenCheck(lambda: digests)


def _parse(data: bytes, source: Path | str) -> _Digests:
    return tuple(map(_digest, parse_tokens(data, source)))


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


def parse_tokens(data: bytes, source: Path | str) -> list[bytes]:
    """Return one token a line; skip blank lines and those that start with #.

    Raises:
        ConfigurationError: there is no token, one is too short, or no header can carry it. The text
            never contains a token.
    """
    lines = [line.strip() for line in data.splitlines()]
    tokens = [line for line in lines if line and not line.startswith(b"#")]
    if not tokens:
        raise ConfigurationError(f"{source} holds no token: one a line is expected")
    for number, token in enumerate(tokens, start=1):
        if len(token) < _MIN_CHARACTERS:
            raise ConfigurationError(
                f"token {number} in {source} has {len(token)} characters, "
                f"at least {_MIN_CHARACTERS} expected: `openssl rand -hex 32` makes a good one"
            )
        if not all(0x21 <= byte <= 0x7E for byte in token):
            raise ConfigurationError(
                f"token {number} in {source} has a space or a character outside of ASCII"
            )
    return tokens
