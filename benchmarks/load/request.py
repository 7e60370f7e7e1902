"""A call as bytes."""

from dataclasses import dataclass

from serving.http2.hpack import Fields

Headers = tuple[tuple[str, str], ...]
GRPC: Headers = (("content-type", "application/grpc"), ("te", "trailers"))


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """One call of gRPC, or one POST over HTTP/1.1."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method, or the path of a URL."""
    message: bytes
    """The request message."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether this is no call of gRPC."""

    @property
    def body(self) -> bytes:
        """The message; with gRPC's prefix, if it is one of gRPC."""
        prefix = b"" if self.is_http else b"\0" + len(self.message).to_bytes(4, "big")
        return prefix + self.message

    @property
    def url(self) -> str:
        """The URL."""
        return f"http://{self.address}{self.path}"

    def fields(self, timeout: str = "") -> Fields:
        """Return the header fields.

        Args:
            timeout: the value of `grpc-timeout`, such as "50m"; empty for no such header.
        """
        fields = (
            (":method", "POST"), (":scheme", "http"), (":path", self.path),
            (":authority", self.address), *self.headers,
            *((("grpc-timeout", timeout),) if timeout else ()),
        )  # fmt: skip
        return tuple((name.encode(), text.encode()) for name, text in fields)
