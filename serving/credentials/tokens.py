"""Parsing of bearer tokens: one a line, in a file or an environment variable."""

from pathlib import Path

from serving.errors import ConfigurationError

_MIN_CHARACTERS = 16


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
