"""HTTP requests to the batcher, and their outcomes back to the event loop."""

import asyncio
import math
import time
from typing import TypeVar

from starlette.requests import Request

from serving.batching import request as batching
from serving.batching.batcher import Batcher
from serving.batching.request import Answer
from serving.errors import InvalidRequest, Unavailable
from serving.telemetry.tracing import latest_run
from serving.transports.submit import submit

TIMEOUT_HEADER = "request-timeout"
"""The caller's timeout in seconds, such as 0.25."""
_MAX_TIMEOUT_S = 1e6

Result = TypeVar("Result")


class Calls:
    """Submits images to a batcher from one event loop."""

    def __init__(self, batcher: Batcher) -> None:
        """Submit to `batcher`."""
        self._batcher = batcher
        self.is_draining = False
        """Whether new calls are refused; set from any thread."""

    async def classify(
        self, pixels: bytes, num_images: int, request: Request, deadline_s: float
    ) -> Answer:
        """Classify images, in batches with other requests.

        Args:
            pixels: the bytes of all images, one after the other.
            num_images: how many.
            request: the request, its body read. If its caller leaves, waiting rows never run.
                Callers of one address share their turns.
            deadline_s: on the monotonic clock.

        Raises:
            DigitsError: see `Batcher.put`; or DeadlineExceeded, or ModelError.
        """
        if self.is_draining:
            raise Unavailable("the server is shutting down")
        caller = request.client.host if request.client else None
        rows = batching.Request(pixels, num_images, caller=caller, deadline_s=deadline_s)
        answer = await while_connected(request, submit(self._batcher, rows))
        latest_run.set((answer.batch.started_s, answer.batch.finished_s))
        return answer


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
