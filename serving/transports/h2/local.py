"""The self-test's call: from this process, through the same queue and runs as every call."""

import asyncio
import math
from typing import Any

import numpy as np

from serving.errors import DigitsError, Overloaded
from serving.predictions import ClassNumbers, Predictions
from serving.protocols.plan import Plan
from serving.transports.h2.context import Context
from serving.transports.h2.queue import Group, Line

_STREAM_ID = bytes(4)


class LocalCaller:
    """Stands for a connection, a stream and its slot in the queue and in runs."""

    touched = True

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        """Deliver the answer to `answer`, on an event loop."""
        self.answer: asyncio.Future[Predictions] = loop.create_future()
        self.streams: dict[bytes, Any] = {_STREAM_ID: self}
        self.line = Line("")
        self.response: bytes | DigitsError | None = None
        self._loop = loop
        self._version = ""

    @property
    def stream(self) -> "LocalCaller":
        """See `Slot`."""
        return self

    def ask(self, context: Context, image: bytes) -> None:
        """Queue an image; on the loop's thread."""
        plan = Plan(None, 1, self._write)
        try:
            if not context.max_inline_images:
                context.large_request(image, plan, self, math.inf, self._finish_run)
            elif context.queue.room(self.line, math.inf) >= 1:
                now_s = context.clock()
                context.queue.put(Group(self, [_STREAM_ID], [image], plan, now_s, math.inf, [self]))
            else:
                raise Overloaded
        except DigitsError as err:
            self._finish_run(err)

    def _write(self, digits: ClassNumbers, rows: bytes | bytearray, version: str) -> bytes:
        self._version = version
        return bytes(rows)

    def _finish_run(self, outcome: bytes | DigitsError) -> None:
        self.response = outcome
        self.flush()

    def fail(self, slot: "LocalCaller", error: DigitsError) -> None:
        """Take the reason why there is no answer."""
        self._finish_run(error)

    def flush(self) -> None:
        """Deliver the answer."""
        self._loop.call_soon_threadsafe(self._settle)

    def _settle(self) -> None:
        if self.answer.done():  # the self-test has timed out
            return
        if isinstance(self.response, bytes):
            rows = np.frombuffer(self.response, "<f4", offset=5).reshape(1, -1)
            self.answer.set_result(Predictions.of(rows, self._version))
        elif self.response is not None:
            self.answer.set_exception(self.response)
