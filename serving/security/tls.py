"""TLS without I/O: the encryption of one connection, or none."""

import ssl

NO_HTTP2 = "handshake: the server does not speak HTTP/2"
_READ_BYTES = 256 << 10
_WORDS = b"this port speaks TLS: call it by https://\n"
_PLAIN_RESPONSE = (
    b"HTTP/1.1 400 Bad Request\r\nconnection: close\r\n"
    b"content-type: text/plain\r\ncontent-length: %d\r\n\r\n%s" % (len(_WORDS), _WORDS)
)
"""The answer to a request in plaintext, which could not read an alert of TLS."""


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
        except ssl.SSLError as err:
            if self._is_server and err.reason == "HTTP_REQUEST":  # GET, HEAD, POST or PUT
                self._outgoing.read()  # the alert
                self._outgoing.write(_PLAIN_RESPONSE)
            raise
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
