"""A call as bytes, of gRPC or HTTP/1.1."""

from collections.abc import Sequence
from dataclasses import dataclass

from serving.http2.hpack import Fields

Headers = tuple[tuple[str, str], ...]
GRPC: Headers = (("content-type", "application/grpc"), ("te", "trailers"))
TIMEOUT, TRACE = "99999999u", f"00-{'a' * 32}-{'b' * 16}-01"
"""Values that are replaced in each call that has headers of its own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CallRequest:
    """One call of gRPC, or one POST over HTTP/1.1."""

    address: str
    """host:port."""
    path: str
    """/package.Service/Method, or the path of a URL."""
    message: bytes
    """The request message of the first call."""
    others: Sequence[bytes] = ()
    """Those of the calls after it, each connection's in turn; empty for the same in all calls."""
    headers: Headers = GRPC
    is_http: bool = False
    """Whether this is no call of gRPC."""
    has_new_headers: bool = False
    """Whether its deadline and its trace's ids differ in each call, as those of traced callers."""

    @property
    def body(self) -> bytes:
        """The first message; with gRPC's prefix, if it is one of gRPC."""
        return self._framed(self.message)

    @property
    def bodies(self) -> list[bytes]:
        """All messages, in the order of calls, likewise."""
        return [self._framed(each) for each in (self.message, *self.others)]

    def _framed(self, message: bytes) -> bytes:
        prefix = b"" if self.is_http else b"\0" + len(message).to_bytes(4, "big")
        return prefix + message

    def fields(self, timeout: str = "") -> Fields:
        """Return the header fields.

        Args:
            timeout: the value of `grpc-timeout`, such as "50m"; empty for no such header.
        """
        fields = (
            (":method", "POST"), (":scheme", "http"), (":path", self.path),
            (":authority", self.address), *self.headers,
            *((("grpc-timeout", timeout),) if timeout else ()),
            *((("grpc-timeout", TIMEOUT), ("traceparent", TRACE)) if self.has_new_headers else ()),
        )  # fmt: skip
        return tuple((name.encode(), text.encode()) for name, text in fields)
