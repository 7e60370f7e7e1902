"""Bearer tokens: `authorization: Bearer <token>` on every call but health's.

Kept and compared as SHA-256 digests, in constant time, so that neither memory dumps nor response
times tell a token. A digest without a salt is enough: tokens are long and random, not chosen.
"""

import hashlib
import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import grpc

from serving.config import SecurityConfig
from serving.errors import Unauthenticated
from serving.rpc.calls import Calls, Context
from serving.rpc.tokens import parse_tokens
from serving.rpc.watched import Watched, read_bytes

_OPEN = frozenset(("/grpc.health.v1.Health/Check", "/grpc.health.v1.Health/Watch"))
"""What probes ask, which have no token."""

_Digests = tuple[bytes, ...]


class TokenInterceptor(grpc.aio.ServerInterceptor):
    """Refuses calls without one of the tokens before anything is read of them."""

    def __init__(self, digests: Callable[[], _Digests], calls: Calls) -> None:
        """Accept the tokens whose digests are given; `calls` counts what is refused."""
        self._digests = digests
        # A stream's handler ends any kind of call without waiting for its request.
        self._refused: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            calls.guarded(_refuse, "unauthenticated")
        )

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        """Let a call pass, or answer it UNAUTHENTICATED; unknown methods, too."""
        details: Any = handler_call_details
        if details.method in _OPEN or self._accepts(details.invocation_metadata):
            return await continuation(handler_call_details)
        return self._refused

    def _accepts(self, metadata: tuple[tuple[str, str | bytes], ...]) -> bool:
        tokens = [_bearer_token(value) for key, value in metadata if key == "authorization"]
        if len(tokens) != 1:
            return False
        digest = _digest(tokens[0])
        matches = [hmac.compare_digest(digest, known) for known in self._digests()]
        return any(matches)  # each was compared: how long it takes doesn't tell which is right


def token_interceptors(config: SecurityConfig, calls: Calls) -> list[TokenInterceptor]:
    """Build what a server that wants tokens puts before its handlers; else nothing, at no cost.

    Raises:
        ConfigurationError: see `accepted_digests`.
    """
    digests = accepted_digests(config)
    return [] if digests is None else [TokenInterceptor(digests, calls)]


def accepted_digests(config: SecurityConfig) -> Callable[[], _Digests] | None:
    """Build what tells the digests of the tokens that are valid now; None if none is asked for.

    Raises:
        ConfigurationError: the file can't be read, or holds no token or a bad one.
    """
    path = config.token_file
    if path is not None:
        return Watched((path,), lambda: _parse(read_bytes(path), path)).get
    if config.tokens is not None:
        digests = _parse(config.tokens.encode(), "DIGITS_TOKEN")
        return lambda: digests
    return None


def _parse(data: bytes, source: Path | str) -> _Digests:
    return tuple(map(_digest, parse_tokens(data, source)))


def _bearer_token(value: str | bytes) -> bytes:
    data = value if isinstance(value, bytes) else value.encode()
    scheme, _, token = data.partition(b" ")
    return token if scheme.lower() == b"bearer" else b""


def _digest(token: bytes) -> bytes:
    return hashlib.sha256(token).digest()


async def _refuse(requests: Any, context: Context) -> None:
    raise Unauthenticated("a valid bearer token is needed")
