"""HTTP requests to batchers, and their outcomes back to the event loop."""

import asyncio
import math
import time
from typing import Any, TypeVar

from starlette.requests import Request

from serving.batching.awaited_call import Peers, submit
from serving.errors import InvalidRequest, Unavailable
from serving.protocols.encoding import ResponseEncoder
from serving.router import Router
from serving.telemetry.tracing import latest_run

TIMEOUT_HEADER = "request-timeout"
"""The caller's timeout in seconds, such as 0.25."""
_MAX_TIMEOUT_S = 1e6

Result = TypeVar("Result")


class Calls:
    """Submits rows to batchers from one event loop."""

    def __init__(self, router: Router) -> None:
        """Start without calls; `router` has the models."""
        self._router = router
        self._peers = Peers()
        self.is_draining = False
        """Whether new calls are refused; set from any thread."""
        self.num_active = 0
        """Calls that were accepted and have no outcome."""

    async def run(
        self, message: Any, encoder: ResponseEncoder, request: Request, deadline_s: float
    ) -> Any:
        """Have rows run, in batches with other requests, and return the response.

        Args:
            message: the rows: bytes, or an array for each input.
            encoder: makes the response.
            request: the request, its body read. If its caller leaves, waiting rows never run.
                Callers of one address share their turns.
            deadline_s: on the monotonic clock.

        Raises:
            DigitsError: see `submit`; or Unavailable.
        """
        if self.is_draining:
            raise Unavailable("the server is shutting down")
        host = request.client.host if request.client else ""
        peer = self._peers.get(host, host)
        self.num_active += 1
        try:
            assert self._router.owner is not None, "a gRPC transport owns the batchers"
            call = submit(self._router.owner, encoder.target, peer, message, encoder, deadline_s)
            response, run = await while_connected(request, asyncio.create_task(call))
            latest_run.set(run)
            return response
        finally:
            self.num_active -= 1


async def while_connected(request: Request, work: "asyncio.Future[Result]") -> Result:
    """Wait for work, and cancel it if the caller leaves first.

    Args:
        request: whose body is read.
        work: such as what an executor runs.

    Raises:
        Unavailable: the caller left.
    """
    left = asyncio.get_running_loop().create_task(_disconnect(request))
    try:
        await asyncio.wait((work, left), return_when=asyncio.FIRST_COMPLETED)
    finally:
        left.cancel()
        is_cut_off = work.cancel()
    if is_cut_off:
        raise Unavailable("the caller left")
    return work.result()


async def _disconnect(request: Request) -> None:
    """Wait until the caller leaves."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


def deadline_of(request: Request) -> float:
    """Return a caller's deadline on the monotonic clock; math.inf if it names none.

    Raises:
        InvalidRequest: the header is not a number of seconds.
    """
    text = request.headers.get(TIMEOUT_HEADER)
    if text is None:
        return math.inf
    try:
        timeout_s = float(text)
    except ValueError:
        timeout_s = math.nan
    if not 0 < timeout_s <= _MAX_TIMEOUT_S:
        raise InvalidRequest(
            f"expected {TIMEOUT_HEADER} in seconds, above 0 and up to 1e6, got {text[:40]!r}"
        )
    return time.monotonic() + timeout_s
