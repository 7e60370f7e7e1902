"""Classify over the network: the same call, Predictions and errors as `serving.Classifier`.

Needs numpy, grpcio and protobuf only. `BaseClient` is the common part of both clients.
"""

import asyncio
from collections.abc import Coroutine, Mapping, Sequence
from os import getpid
from typing import Self, TypeVar

import numpy.typing as npt

from serving.client.base import BaseClient
from serving.client.h2.event_loop import ReconnectingLoopChannel
from serving.client.h2.threads import ReconnectingChannel
from serving.client.transport import Transport
from serving.errors import Unavailable
from serving.predictions import Predictions
from serving.tensors import Array, ModelInfo, TensorSignature

_Result = TypeVar("_Result")


class Client(BaseClient):
    """A connection to a server, for threads; connects when first used.

    `classify`, `model_info`, `close` and `with` are those of `serving.Classifier`; as safe to call
    from many threads. A pickled client connects again. A client that was used
    before a fork raises `Unavailable` in the child.
    """

    _pid: int | None = None
    """The id of the process that connected."""

    def model_info(self) -> ModelInfo:
        """Return the served classifier's description.

        Raises:
            Unavailable: no server answers.
            DeadlineExceeded: no answer within the timeout.
        """
        return _run(self._model_info(self._begun()))

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

    def infer(
        self,
        model: str,
        inputs: Mapping[str, object] | None = None,
        /,
        *,
        outputs: Sequence[str] = (),
        version: str | int = "",
        **named: object,
    ) -> dict[str, Array]:
        """Run any model of the server, by the Open Inference Protocol.

            probabilities = client.infer("digits", images=array)["probabilities"]

        The first call for a model asks the server for its inputs.

        Args:
            model: its name.
            inputs: an array for each input, by its name, of its type and shape. Lists, numbers and
                texts are converted where that loses nothing.
            outputs: the names of the outputs to answer; all by default.
            version: which version to run; the server's choice by default.
            named: inputs by keyword, as many as Python can name.

        Returns:
            An array for each output, by its name; BYTES as texts.

        Raises:
            InvalidRequest: an input is missing or unknown, or has another type or shape.
            ModelNotFound: the server has no such model or version.
            Overloaded, Unauthenticated, Unavailable, DeadlineExceeded, ModelError: see `classify`.
        """
        return _run(self._infer(model, {**(inputs or {}), **named}, outputs, version))

    def models(self) -> dict[tuple[str, str], TensorSignature]:
        """Return the inputs and outputs of each model of the server, by name and version.

        Raises:
            Unauthenticated, Unavailable, DeadlineExceeded: see `classify`.
        """
        return _run(self._models())

    def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._transport is not None and self._pid == getpid():
            _run(self._transport.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    async def _pause(self, seconds: float) -> None:
        if self._is_closed.wait(seconds):
            self._check_open()

    def _opened(self) -> Transport:
        transport = self._transport
        if transport is None or self._pid != getpid() or self._is_closed.is_set():
            transport = self._open()
        return transport

    def _open(self) -> Transport:
        with self._lock:
            self._check_open()
            if self._transport is None:
                self._pid = getpid()
                self._transport = self._new_transport()
            elif self._pid != getpid():
                raise Unavailable(
                    f"{self._target}: a client that was used before a fork can't be used after it: "
                    "make another one in the child"
                )
            return self._transport

    def _new_transport(self) -> Transport:
        if self._address is not None:
            return ReconnectingChannel(self._address, self._credentials)
        from serving.client.grpcio import GrpcioTransport  # grpcio takes 30 ms to import

        return GrpcioTransport(self._target, self._credentials)


def _run(coroutine: Coroutine[None, None, _Result]) -> _Result:
    """Run a coroutine that never suspends, since its transport blocks."""
    try:
        coroutine.send(None)
    except StopIteration as end:
        result: _Result = end.value
        return result
    raise RuntimeError("a transport of Client suspended")


class AsyncClient(BaseClient):
    """A connection to a server, for one event loop: thousands of calls may be in flight.

    The same as `Client`, awaited. It belongs to the first loop that uses it; after that loop is
    closed, to the next one.
    """

    _loop: asyncio.AbstractEventLoop | None = None

    async def model_info(self) -> ModelInfo:
        """Return the served classifier's description; see `Client.model_info`."""
        return await self._model_info(self._begun())

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; see `Client.wait_ready`."""
        await self._wait_ready(timeout_s)

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; see `Client.classify`."""
        return await self._classify(images)

    async def infer(
        self,
        model: str,
        inputs: Mapping[str, object] | None = None,
        /,
        *,
        outputs: Sequence[str] = (),
        version: str | int = "",
        **named: object,
    ) -> dict[str, Array]:
        """Run any model of the server; see `Client.infer`."""
        return await self._infer(model, {**(inputs or {}), **named}, outputs, version)

    async def models(self) -> dict[tuple[str, str], TensorSignature]:
        """Return the inputs and outputs of each model; see `Client.models`."""
        return await self._models()

    async def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._transport is not None and self._loop is asyncio.get_running_loop():
            await self._transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _pause(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    def _opened(self) -> Transport:
        loop, transport = asyncio.get_running_loop(), self._transport
        if transport is None or loop is not self._loop or self._is_closed.is_set():
            self._check_open()
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "this AsyncClient belongs to another event loop: make one for each loop"
                )
            transport = self._new_transport()
            self._loop, self._transport = loop, transport
        return transport

    def _new_transport(self) -> Transport:
        if self._address is not None:
            return ReconnectingLoopChannel(self._address, self._credentials)
        from serving.client.grpcio import GrpcioLoopTransport

        return GrpcioLoopTransport(self._target, self._credentials)
