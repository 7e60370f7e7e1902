"""A call of gRPC as bytes."""

from dataclasses import dataclass

from serving.http2.hpack.encoder import encode_literally

PREFIX_BYTES = 5
"""Before each gRPC message: not compressed, its length."""


@dataclass(frozen=True, slots=True)
class Request:
    """One gRPC call."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method."""
    message: bytes
    """The request message."""
    tls: bool = False
    """Whether the connections are TLS; the server's certificate is not checked."""
    token: str = ""
    """What `authorization: Bearer` says; empty for no such header."""

    @property
    def is_streaming(self) -> bool:
        """Whether the method takes and returns streams: then a call is one message of a stream."""
        return "Stream" in self.path

    @property
    def body(self) -> bytes:
        """The message with gRPC's prefix."""
        return b"\0" + len(self.message).to_bytes(4, "big") + self.message

    def headers(self, timeout: str = "") -> bytes:
        """Return the header block, without Huffman coding and without entries for the header table.

        Args:
            timeout: the value of `grpc-timeout`, such as "50m"; empty for no such header.
        """
        fields = {
            ":method": "POST", ":scheme": "https" if self.tls else "http", ":path": self.path,
            ":authority": self.address, "content-type": "application/grpc", "te": "trailers",
        }  # fmt: skip
        if self.token:
            fields["authorization"] = f"Bearer {self.token}"
        if timeout:
            fields["grpc-timeout"] = timeout
        return encode_literally((name.encode(), text.encode()) for name, text in fields.items())
