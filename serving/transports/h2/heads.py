"""The meaning of a call's headers: method, timeout, and whether its token is valid."""

import re
from collections.abc import Mapping
from typing import NamedTuple

from serving.errors import DigitsError
from serving.protocols.method import ImagesStream, ImagesUnary, Method
from serving.protocols.plan import Layouts
from serving.transports.auth import TokenCheck
from serving.transports.h2.status import (
    BAD_TIMEOUT,
    NO_TRAILERS,
    UNAUTHENTICATED,
    UNKNOWN_METHOD,
    Status,
)

Headers = tuple[tuple[bytes, bytes], ...]

_MAX_CACHED = 4096
"""Sets of headers whose meaning is cached; callers repeat theirs, but for the timeouts."""
_MAX_CACHED_BYTES = 1024
"""The longest headers that are cached."""
_TIMEOUT = re.compile(rb"([0-9]{1,8})([HMSmun])")
_UNITS_S = {b"H": 3600.0, b"M": 60.0, b"S": 1.0, b"m": 1e-3, b"u": 1e-6, b"n": 1e-9}
_NO_LAYOUTS = Layouts()


class HttpError(NamedTuple):
    """The answer to an HTTP request that is not a gRPC call."""

    status: bytes
    text: bytes


NOT_POST = HttpError(b"405", b"gRPC calls are POST requests\n")
NOT_GRPC = HttpError(b"415", b"expected content-type application/grpc\n")


class Head:
    """The meaning of a call's headers; calls with equal headers share one."""

    __slots__ = ("is_plain", "layouts", "method", "name", "refusal", "timeout_s", "trusted")

    def __init__(
        self, method: Method | None, timeout_s: float, refusal: Status | HttpError | None,
        *, trusted: bool
    ) -> None:  # fmt: skip
        self.method = method
        self.name = "unauthenticated" if refusal is UNAUTHENTICATED else "other"
        """The method's name in the metrics."""
        if method is not None and refusal is not UNAUTHENTICATED:
            self.name = method.name
        self.timeout_s = timeout_s
        """How long the call may take; infinite without grpc-timeout."""
        self.refusal = refusal
        """Why the call is refused; None if it is not."""
        self.trusted = trusted
        """Whether the token is valid."""
        self.layouts = _NO_LAYOUTS
        """Prefixes of messages that need not be parsed."""
        self.is_plain = False
        """Whether it is an accepted unary call of images."""
        if isinstance(method, ImagesUnary):
            self.layouts = method.layouts
            self.is_plain = refusal is None and not isinstance(method, ImagesStream)

    def note_failure(self, error: DigitsError) -> None:
        """Count a request that was read and ends with an error."""
        if isinstance(self.method, ImagesUnary):
            self.method.note_failure(error, 0.0)


class Heads:
    """Reads headers, and caches their meaning."""

    def __init__(self, methods: Mapping[bytes, Method], tokens: TokenCheck | None) -> None:
        """Take the methods by path; without `tokens` no call needs one."""
        self._methods = methods
        self._tokens = tokens
        self.need_tokens = tokens is not None
        self._digests = None if tokens is None else tokens.digests()
        self._cache: dict[Headers, Head] = {}

    def get(self, headers: Headers) -> Head:
        """Return the meaning of headers."""
        head = self._cache.get(headers)
        if head is None:
            head = self._read(headers)
            if sum(len(name) + len(value) for name, value in headers) <= _MAX_CACHED_BYTES:
                if len(self._cache) >= _MAX_CACHED:
                    self._cache.clear()
                self._cache[headers] = head
        return head

    def have_changed(self) -> bool:
        """Return whether other tokens are valid now; if so, forget all meanings."""
        assert self._tokens is not None
        if self._tokens.digests() is self._digests:
            return False
        self._digests = self._tokens.digests()
        self._cache.clear()
        return True

    def _read(self, headers: Headers) -> Head:
        fields = dict(headers)
        method = self._methods.get(fields.get(b":path", b""))
        timeout_s = _timeout_s(fields.get(b"grpc-timeout"))
        tokens = [value for name, value in headers if name == b"authorization"]
        trusted = self._tokens is not None and self._tokens.accepts(tokens)
        refusal: Status | HttpError | None = None
        if fields.get(b":method") != b"POST":
            refusal = NOT_POST
        elif not _is_grpc(fields.get(b"content-type", b"")):
            refusal = NOT_GRPC
        elif not (self._tokens is None or trusted or (method is not None and method.is_open)):
            refusal = UNAUTHENTICATED
        elif method is None:
            refusal = UNKNOWN_METHOD
        elif fields.get(b"te") != b"trailers":
            refusal = NO_TRAILERS
        elif timeout_s is None:
            refusal = BAD_TIMEOUT
        return Head(method, timeout_s or 0.0, refusal, trusted=trusted)


def _is_grpc(content_type: bytes) -> bool:
    kind = content_type.partition(b";")[0].strip().lower()
    return kind in (b"application/grpc", b"application/grpc+proto")


def _timeout_s(value: bytes | None) -> float | None:
    """Read a grpc-timeout; None if it is malformed, infinity if there is none."""
    if value is None:
        return float("inf")
    found = _TIMEOUT.fullmatch(value)
    return int(found[1]) * _UNITS_S[found[2]] if found else None
