"""TLS over memory: `ssl` objects may not be read and written by two threads at once."""

import ssl

NO_HTTP2 = "handshake: the server does not speak HTTP/2"
_READ_BYTES = 256 << 10


class Tls:
    """The encryption of one connection. Not safe to share between threads."""

    def __init__(self, context: ssl.SSLContext, host: str) -> None:
        """Begin a handshake with a server of that name."""
        self._incoming, self._outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        self._ssl = context.wrap_bio(self._incoming, self._outgoing, server_hostname=host)

    def shake_hands(self, received: bytes) -> bool:
        """Go on with the handshake; return whether it is done.

        Raises:
            ssl.SSLError: it failed, or the server does not speak HTTP/2.
        """
        self._incoming.write(received)
        try:
            self._ssl.do_handshake()
        except ssl.SSLWantReadError:
            return False
        if self._ssl.selected_alpn_protocol() != "h2":
            raise ssl.SSLError(NO_HTTP2)
        return True

    def encrypt(self, data: bytes) -> bytes:
        """Return the bytes to send for some data, and of the handshake."""
        if data:
            self._ssl.write(data)
        return self._outgoing.read()

    def decrypt(self, received: bytes) -> bytes:
        """Return the data in what was received; none once the server has closed."""
        self._incoming.write(received)
        parts = []
        try:
            while part := self._ssl.read(_READ_BYTES):
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
