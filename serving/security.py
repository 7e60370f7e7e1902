"""Tokens, certificates and TLS, and the files of them, which are read again when they change."""

import hashlib
import hmac
import logging
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Generic, TypeVar

from serving.config import SecurityConfig
from serving.errors import ConfigurationError

_log = logging.getLogger(__name__)

Content = TypeVar("Content")
_State = tuple[tuple[int, int, int] | None, ...]
_MIN_CHARACTERS = 16
NO_HTTP2 = "handshake: the server does not speak HTTP/2"
_READ_BYTES = 256 << 10


class WatchedFiles(Generic[Content]):
    """The content of some files, reloaded when one of them changes."""

    def __init__(self, paths: tuple[Path, ...], read: Callable[[], Content]) -> None:
        """Read the files.

        Args:
            paths: the files to watch.
            read: reads and checks them; raises ConfigurationError.

        Raises:
            ConfigurationError: a file can't be used; the text names it.
        """
        self._paths = paths
        self._read = read
        self._state = self._look()
        self._content = read()

    def get(self) -> Content:
        """Return the newest usable content; costs one `stat` for each file."""
        state = self._look()
        if state != self._state:
            self._state = state  # before reading: a change meanwhile is noticed next time
            try:
                self._content = self._read()
                _log.info("reloaded %s", ", ".join(map(str, self._paths)))
            except ConfigurationError as err:
                _log.warning("not reloaded, the previous content stays in use: %s", err)
        return self._content

    def _look(self) -> _State:
        return tuple(map(_state_of, self._paths))


def _state_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = path.stat()
    except OSError:
        return None
    return state.st_ino, state.st_size, state.st_mtime_ns


def read_bytes(path: Path) -> bytes:
    """Read a file that an option names.

    Raises:
        ConfigurationError: it can't be read; the text names it and the reason.
    """
    try:
        return path.read_bytes()
    except OSError as err:
        raise ConfigurationError(f"can't read {path}: {err.strerror}") from err


# Tokens

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
    path = config.token_file
    if path is not None:
        return TokenCheck(WatchedFiles((path,), lambda: _parse(read_bytes(path), path)).get)
    if config.tokens is not None:
        digests = _parse(config.tokens.encode(), "SERVING_TOKEN")
        return TokenCheck(lambda: digests)
    return None


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


# Certificates


def server_context(config: SecurityConfig, protocol: str) -> Callable[[], ssl.SSLContext] | None:
    """Return a function that gives the context for a new connection; None without a certificate.

    Args:
        config: the files.
        protocol: its ALPN name, "h2" or "http/1.1".

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    if config.tls_cert is None:
        return None
    return WatchedFiles(files_of(config), lambda: load(config, protocol)).get


def load(config: SecurityConfig, protocol: str = "h2") -> ssl.SSLContext:
    """Load the files into a context; see `server_context`.

    Raises:
        ConfigurationError: a file can't be used; the text says which and why.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.set_alpn_protocols([protocol])
    cert, key, *client_ca = files_of(config)
    for path in (cert, key, *client_ca):
        read_bytes(path)  # names the missing file, which OpenSSL does not
    try:
        # Without a password, OpenSSL asks for one on the terminal.
        context.load_cert_chain(cert, key, password=lambda: "")
    except (OSError, ValueError) as err:  # SSLError is an OSError
        reason = getattr(err, "reason", None) or "not PEM, or an encrypted key"
        raise ConfigurationError(f"can't use {cert} with {key}: {reason}") from err
    for path in client_ca:
        context.verify_mode = ssl.CERT_REQUIRED
        try:
            context.load_verify_locations(path)
        except OSError as err:
            reason = getattr(err, "reason", None) or "not PEM"
            raise ConfigurationError(f"can't use {path}: {reason}") from err
    return context


def files_of(config: SecurityConfig) -> tuple[Path, ...]:
    """Return the certificate's file, its key's, and the client authorities' if there is one."""
    files = (config.tls_cert, config.tls_key, config.tls_client_ca)
    return tuple(path for path in files if path is not None)


# TLS without I/O


class Tls:
    """The encryption of one connection. Not safe to share between threads."""

    def __init__(self, context: ssl.SSLContext, host: str | None = None) -> None:
        """Begin a handshake.

        Args:
            context: the certificates, and other settings.
            host: the name of the server; None is the server's own side.
        """
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._is_server = host is None
        self._ssl = context.wrap_bio(
            self._incoming, self._outgoing, server_side=self._is_server, server_hostname=host
        )
        self.is_done = False
        """Whether the handshake has ended."""
        self._early = b""
        """Bytes to be sent after it."""

    def shake_hands(self, received: bytes | memoryview) -> bool:
        """Go on with the handshake; return whether it is done.

        Raises:
            ssl.SSLError: it failed, or the peer does not speak HTTP/2. The reason for the peer is
                ready to be sent.
        """
        self._incoming.write(received)
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        protocol = self._ssl.selected_alpn_protocol()
        if protocol != "h2" and not self._is_server:  # a server offers those it speaks
            raise ssl.SSLError(NO_HTTP2)
        self.is_done = True
        if self._early:
            self._ssl.write(self._early)
            self._early = b""
        return True

    def encrypt(self, data: bytes) -> bytes:
        """Return the bytes to send for some data, and of the handshake."""
        if not self.is_done:
            self._early += data
        elif data:
            self._ssl.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes | memoryview) -> bytes:
        """Return the decrypted data; none during the handshake and after the end.

        Raises:
            ssl.SSLError: the handshake failed, or the bytes are not TLS.
        """
        if self.is_done:
            self._incoming.write(received)
        elif not self.shake_hands(received):
            return b""
        parts = []
        try:
            # Looking first saves most of the exceptions.
            while self._incoming.pending or self._ssl.pending():
                if not (part := self._ssl.read(_READ_BYTES)):
                    break
                parts.append(part)
        except (ssl.SSLWantReadError, ssl.SSLZeroReturnError):
            pass
        return b"".join(parts)


class Plain:
    """No encryption, with the same methods."""

    def encrypt(self, data: bytes) -> bytes:
        """Return the same bytes."""
        return data

    def decrypt(self, received: bytes) -> bytes:
        """Return the same bytes."""
        return received


# Who speaks TLS, and who does not

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
    import socket  # here: a call that is answered needs it not

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
