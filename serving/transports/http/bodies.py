"""Bodies of requests: checked by their length before they are read, within one budget for all."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.requests import ClientDisconnect, Request

from serving.errors import InvalidRequest, Overloaded, TooLarge

BODY_TIMEOUT_S = 30.0
"""How long a body may take to arrive."""


class Bodies:
    """Reads bodies into memory, within one budget for all that are in progress."""

    def __init__(self, budget_bytes: int) -> None:
        """Keep at most `budget_bytes` of bodies at a time; one that would exceed it is refused."""
        self._left = budget_bytes

    @asynccontextmanager
    async def read(self, request: Request, max_bytes: int) -> AsyncIterator[bytes]:
        """Read a whole body, whose share of the budget is held until the block ends.

        Args:
            request: the request.
            max_bytes: the longest body that is accepted.

        Raises:
            TooLarge: longer than `max_bytes`; known from its Content-Length if it has one.
            Overloaded: the bodies in progress use up the budget.
            InvalidRequest: it is compressed, took too long, or its caller left.
        """
        if encoding := request.headers.get("content-encoding", "").replace("identity", ""):
            raise InvalidRequest(f"expected a body that is not compressed, got {encoding[:40]!r}")
        declared = request.headers.get("content-length", "0")
        if int(declared) > max_bytes:  # digits only: the parser has checked that
            raise TooLarge(f"expected a body of at most {max_bytes} bytes, got {declared}")
        taken = 0
        parts: list[bytes] = []
        try:
            async with asyncio.timeout(BODY_TIMEOUT_S):
                async for part in request.stream():
                    if taken + len(part) > max_bytes:
                        raise TooLarge(f"expected a body of at most {max_bytes} bytes, got more")
                    if len(part) > self._left:
                        raise Overloaded("other requests' bodies leave no room for this one")
                    self._left -= len(part)
                    taken += len(part)
                    parts.append(part)
            yield b"".join(parts)
        except ClientDisconnect:
            raise InvalidRequest("the caller left before the body was whole") from None
        except TimeoutError:
            raise InvalidRequest(f"the body took longer than {BODY_TIMEOUT_S:.0f} s") from None
        finally:
            self._left += taken
