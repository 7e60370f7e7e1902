"""Classify over the network: the same call, Predictions and errors as `serving.Classifier`.

Needs numpy, grpcio and protobuf only. `Connection` is the common part of both clients.
"""

import asyncio
from collections.abc import Coroutine
from os import getpid
from typing import Any, Self, TypeVar

import numpy.typing as npt

from serving.client.calls import Failure
from serving.client.connection import Connection
from serving.client.grpcio import GrpcioCalls, GrpcioLoopCalls
from serving.client.retries import Attempts
from serving.errors import Unavailable
from serving.model.info import ModelInfo
from serving.predictions import Predictions

_Result = TypeVar("_Result")


class Client(Connection):
    """A connection to a server, for threads; connects when first used.

    `classify`, `model_info`, `close` and `with` are those of `serving.Classifier`; as safe to call
    from many threads. A pickled client connects again. A client that was used
    before a fork raises `Unavailable` in the child.
    """

    _pid: int | None = None
    """The id of the process that connected."""

    def model_info(self) -> ModelInfo:
        """Return what the server serves.

        Raises:
            Unavailable: no server answers.
            DeadlineExceeded: no answer within the timeout.
        """
        return _run(self._model_info(self._attempts()))

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready.

        Raises:
            Unavailable: it is not ready within `timeout_s` seconds.
        """
        _run(self._wait_ready(timeout_s))

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; more than 256 travel in several pipelined messages.

        The first call asks the server for the shape of its images and its classes.

        Args:
            images: (N, pixels) or (N, *input_shape) uint8, N >= 1; for digits (N, 784) or
                (N, 28, 28), 0 = background, 255 = ink.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Overloaded: the server's queue is full.
            Unauthenticated: the server wants a token, or another one.
            Unavailable: no server answers, after retries too, or its answer is malformed.
            DeadlineExceeded: no answer within the timeout.
            ModelError: the run failed.
        """
        return _run(self._classify(images))

    def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._calls is not None and self._pid == getpid():
            self._calls.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _send(self, path: str, message: bytes, attempts: Attempts) -> Any:
        return self._opened().send(path, message, attempts.timeout_s)

    async def _outcome(self, call: Any) -> bytes | Failure:
        outcome: bytes | Failure = self._calls.outcome(call)
        return outcome

    async def _exchange(self, path: str, message: bytes, attempts: Attempts) -> bytes | Failure:
        outcome: bytes | Failure = self._opened().exchange(path, message, attempts.timeout_s)
        return outcome

    async def _pause(self, seconds: float) -> None:
        if self._is_closed.wait(seconds):
            self._check_open()

    def _opened(self) -> Any:
        """Return what carries the calls."""
        if self._calls is not None and self._pid == getpid() and not self._is_closed.is_set():
            return self._calls
        with self._lock:
            self._check_open()
            if self._calls is None:
                self._pid = getpid()
                self._calls = self._open()
            elif self._pid != getpid():
                raise Unavailable(
                    f"{self._target}: a client that was used before a fork can't be used after it: "
                    "make another one in the child"
                )
            return self._calls

    def _open(self) -> Any:
        if self._place is None:
            return GrpcioCalls(self._target, self._access)
        from serving.client.h2.pool import H2Calls

        return H2Calls(self._place, self._access)


def _run(coroutine: Coroutine[Any, Any, _Result]) -> _Result:
    """Run a coroutine that never suspends, since its steps block."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        return end.value  # type: ignore[no-any-return]
    raise RuntimeError("a step of Client suspended")


class AsyncClient(Connection):
    """A connection to a server, for one event loop: thousands of calls may be in flight.

    The same as `Client`, awaited. It belongs to the first loop that uses it; after that loop is
    closed, to the next one.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    async def model_info(self) -> ModelInfo:
        """Return what the server serves; see `Client.model_info`."""
        return await self._model_info(self._attempts())

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; see `Client.wait_ready`."""
        await self._wait_ready(timeout_s)

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; see `Client.classify`."""
        return await self._classify(images)

    async def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._calls is not None and self._loop is asyncio.get_running_loop():
            await self._calls.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _send(self, path: str, message: bytes, attempts: Attempts) -> Any:
        return await self._opened().send(path, message, attempts.timeout_s)

    async def _outcome(self, call: Any) -> bytes | Failure:
        outcome: bytes | Failure = await self._calls.outcome(call)
        return outcome

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _opened(self) -> Any:
        """Return what carries the calls on this event loop."""
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "this AsyncClient belongs to another event loop: make one for each loop"
                )
            self._loop, self._calls = loop, self._open()
        return self._calls

    def _open(self) -> Any:
        if self._place is None:
            return GrpcioLoopCalls(self._target, self._access)
        from serving.client.h2.loop import H2LoopCalls

        return H2LoopCalls(self._place, self._access)
