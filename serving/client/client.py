"""Classify over the network: the same call, Predictions and errors as `serving.Classifier`.

Needs numpy, grpcio and protobuf only.
"""

import asyncio
import threading
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import fields
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any, Self

import grpc
import numpy.typing as npt
from google.protobuf.message import DecodeError

from serving.client.channel import Access
from serving.client.retries import Attempts
from serving.errors import DeadlineExceeded, Unavailable
from serving.images import Images, as_images, as_pixels
from serving.model.info import ModelInfo
from serving.predictions import Predictions
from serving.protocols.digits_v1 import wire
from serving.protocols.pb.digits.v1 import digits_pb2
from serving.signature import DIGITS, Signature

_CHUNK_BYTES = 256 * DIGITS.image_bytes
"""Images in one message of a large request: enough to make the cost of a call small, few enough
that the server works on one message while the next travels."""
_WINDOW = 8
"""Messages of one request in flight at once."""

_MAX_IN_FLIGHT = 512
"""Messages that an AsyncClient has in flight; further ones wait. Servers refuse streams past a
limit (ours past 1,024), and a client learns that limit only after its first burst."""

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
_HEALTH = "/grpc.health.v1.Health/Check"
_NOT_SERVING = grpc.StatusCode.UNAVAILABLE, "the server does not serve yet"
_CUT_OFF = grpc.StatusCode.CANCELLED, "the call was cut off"
_SERVING = b"\x08\x01"
"""The HealthCheckResponse with status SERVING."""

_MOST_PROBABLE = 1.001
"""1 and a margin for rounding."""


class _Connection:
    """The common part of both clients."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 10.0,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        """Configure the client; it connects when it is first used.

        Args:
            target: "host:port". If the name has several addresses, or with
                "ipv4:host:port,host:port", calls take turns among those that answer.
            timeout_s: seconds for a call, including all its attempts and messages. While the server
                does not answer, a call is retried until then, so a restart of the server fails no
                call. A client that never had an answer gives up after 5 s.
            token: bearer token to send with every call; in plaintext, unless there is TLS.
            tls_ca: PEM file of the authorities that sign the server's certificate; None is
                plaintext.
            tls_cert: PEM file of the client's own certificate, if the server requires one (mTLS).
            tls_key: PEM file of its key.

        Raises:
            ConfigurationError: a file can't be read, or the token can't be sent.
        """
        self._target = target
        self._timeout_s = timeout_s
        self._access = Access(token, tls_ca, tls_cert, tls_key)
        self._settings: dict[str, Any] = {
            "timeout_s": timeout_s, "token": token,
            "tls_ca": tls_ca, "tls_cert": tls_cert, "tls_key": tls_key,
        }  # fmt: skip
        self._is_known = False  # whether there ever was an answer
        self._is_closed = threading.Event()
        self._model: ModelInfo | None = None
        """What the server serves, once it has been asked."""
        self._lock = threading.Lock()  # held while connecting
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Callable[..., Self], tuple[str]]:
        """Pickle the settings, including the token; an unpickled client makes a new connection."""
        return partial(type(self), **self._settings), (self._target,)

    def _attempts(self, timeout_s: float | None = None) -> Attempts:
        return Attempts(
            self._target,
            self._timeout_s if timeout_s is None else timeout_s,
            first_contact=timeout_s is None and not self._is_known,
        )

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise Unavailable(f"{self._target}: the client is closed")

    def _predictions(self, data: bytes, num_images: int, signature: Signature) -> Predictions:
        """Decode an answer and check it: a server may be broken, or be another program."""
        try:
            predictions = wire.decode_response(data, signature.labels)
        except (DecodeError, ValueError, OverflowError) as err:
            raise self._malformed("no ClassifyResponse") from err
        expected, found = (num_images, signature.num_classes), predictions.probabilities.shape
        if found != expected:
            self._model = None  # another one may be served now: the next call asks
            raise self._malformed(f"probabilities of shape {found}, not {expected}")
        low, high = predictions.probabilities.min(), predictions.probabilities.max()
        if not (low >= 0 and high <= _MOST_PROBABLE):  # also refuses NaN
            raise self._malformed(f"probabilities from {low:g} to {high:g}")
        return predictions

    def _model_info(self, data: bytes) -> ModelInfo:
        try:
            response = digits_pb2.GetModelResponse.FromString(data)
        except DecodeError as err:
            raise self._malformed("no GetModelResponse") from err
        if response.max_request_images < 1:
            raise self._malformed(f"max_request_images {response.max_request_images}")
        info = {each.name: getattr(response, each.name) for each in fields(ModelInfo)}
        info["test_accuracy"] = response.test_accuracy or None
        try:
            info["signature"] = wire.signature_of(response)
        except ValueError as err:
            raise self._malformed(f"a model of {err}") from err
        return ModelInfo(**info)

    def _chunks(self, images: Images, info: ModelInfo) -> Iterator[Images]:
        """Split images into those of each message."""
        largest = max(info.signature.image_bytes, info.signature.row_bytes)
        size = min(info.max_request_images, max(1, _CHUNK_BYTES // largest))
        for first in range(0, len(images), size):
            yield images[first : first + size]

    def _malformed(self, what: str) -> Unavailable:
        return Unavailable(f"{self._target}: the server is broken: it answered {what}")


class Client(_Connection):
    """A connection to a server, for threads; connects when first used.

    Interchangeable with `serving.Classifier`, and as safe to call from many threads. A pickled
    client connects again. A client that was used before a fork raises `Unavailable` in the child.
    """

    _pid: int | None = None
    """The id of the process that connected."""

    def model_info(self) -> ModelInfo:
        """Return what the server serves.

        Raises:
            Unavailable: no server answers.
            DeadlineExceeded: no answer within the timeout.
        """
        model = self._model = self._model_info(self._call(_GET_MODEL, self._attempts()))
        return model

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready.

        Raises:
            Unavailable: it is not ready within `timeout_s` seconds.
        """
        attempts = self._attempts(timeout_s)
        try:
            while self._call(_HEALTH, attempts) != _SERVING:
                self._pause(attempts.pause_s(*_NOT_SERVING))
        except DeadlineExceeded as err:
            raise Unavailable(str(err)) from err

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; more than 256 travel in several pipelined messages.

        The first call asks what is served before: the shape of the images, and the classes.

        Args:
            images: (N, pixels) or (N, *input_shape) uint8, N >= 1: of digits (N, 784) or
                (N, 28, 28), 0 = background, 255 = ink.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Overloaded: the server's queue is full.
            Unavailable: no server answers, after retries too, or its answer is malformed.
            DeadlineExceeded: no answer within the timeout.
            ModelError: the run failed.
        """
        attempts, model = self._attempts(), self._model
        if model is None:
            as_pixels(images)  # what no model takes is refused unasked
            model = self._model = self._model_info(self._call(_GET_MODEL, attempts))
        checked = as_images(images, model.signature)
        sent: deque[tuple[Images, Any]] = deque()
        parts = []
        try:
            for chunk in self._chunks(checked, model):
                if len(sent) == _WINDOW:
                    parts.append(self._part(*sent.popleft(), model, attempts))
                sent.append((chunk, self._send(_CLASSIFY, _message(chunk), attempts)))
            while sent:
                parts.append(self._part(*sent.popleft(), model, attempts))
        finally:
            for _, call in sent:
                call.cancel()
        return parts[0] if len(parts) == 1 else Predictions.concatenate(parts)

    def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._channel is not None and self._pid == getpid():
            self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _part(self, chunk: Images, call: Any, model: ModelInfo, attempts: Attempts) -> Predictions:
        data = self._finish(call, _CLASSIFY, _message(chunk), attempts.of_one_message())
        return self._predictions(data, len(chunk), model.signature)

    def _call(self, path: str, attempts: Attempts) -> bytes:
        return self._finish(self._send(path, b"", attempts), path, b"", attempts)

    def _send(self, path: str, message: bytes, attempts: Attempts) -> Any:
        stub = self._stubs.get(path) if self._pid == getpid() else None
        try:
            return (stub or self._stub(path)).future(
                message, timeout=attempts.timeout_s, metadata=self._access.metadata
            )
        except ValueError:  # the channel was closed
            self._check_open()
            raise

    def _stub(self, path: str) -> Any:
        with self._lock:
            self._check_open()
            if self._channel is None:
                self._pid = getpid()
                self._channel = self._access.channel(self._target)
            elif self._pid != getpid():
                raise Unavailable(
                    f"{self._target}: a client that was used before a fork can't be used after it: "
                    "make another one in the child"
                )
            return self._stubs.setdefault(path, self._channel.unary_unary(path))

    def _finish(self, call: Any, path: str, message: bytes, attempts: Attempts) -> bytes:
        """Wait for a call, and retry it where that can help."""
        while True:
            try:
                data: bytes = call.result()
            except grpc.RpcError as err:
                code, details = err.code(), err.details()
            except grpc.FutureCancelledError:
                code, details = _CUT_OFF
            except BaseException:  # KeyboardInterrupt
                call.cancel()
                raise
            else:
                self._is_known = True
                return data
            self._check_open()
            self._pause(attempts.pause_s(code, details))
            call = self._send(path, message, attempts)

    def _pause(self, seconds: float) -> None:
        if self._is_closed.wait(seconds):
            self._check_open()


class AsyncClient(_Connection):
    """A connection to a server, for one event loop: thousands of calls may be in flight.

    The same as `Client`, awaited. It belongs to the first loop that uses it; after that loop is
    closed, to the next one.
    """

    _loop: asyncio.AbstractEventLoop | None = None
    _slots: asyncio.Semaphore

    async def model_info(self) -> ModelInfo:
        """Return what the server serves; see `Client.model_info`."""
        data = await self._call(_GET_MODEL, b"", self._attempts())
        model = self._model = self._model_info(data)
        return model

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; see `Client.wait_ready`."""
        attempts = self._attempts(timeout_s)
        try:
            while await self._call(_HEALTH, b"", attempts) != _SERVING:
                await asyncio.sleep(attempts.pause_s(*_NOT_SERVING))
        except DeadlineExceeded as err:
            raise Unavailable(str(err)) from err

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; see `Client.classify`."""
        attempts, model = self._attempts(), self._model
        if model is None:
            as_pixels(images)
            data = await self._call(_GET_MODEL, b"", attempts)
            model = self._model = self._model_info(data)
        checked = as_images(images, model.signature)
        if len(checked) == 1:
            return await self._part(checked, model, attempts)
        tasks: deque[asyncio.Task[Predictions]] = deque()
        parts = []
        try:
            for chunk in self._chunks(checked, model):
                if len(tasks) == _WINDOW:
                    parts.append(await tasks.popleft())
                part = self._part(chunk, model, attempts.of_one_message())
                tasks.append(asyncio.create_task(part))
            while tasks:
                parts.append(await tasks.popleft())
        finally:
            for task in tasks:
                task.cancel()
                task.add_done_callback(lambda ended: ended.cancelled() or ended.exception())
        return Predictions.concatenate(parts)

    async def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._is_closed.set()
        if self._channel is not None and self._loop is asyncio.get_running_loop():
            await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()

    async def _part(self, chunk: Images, model: ModelInfo, attempts: Attempts) -> Predictions:
        data = await self._call(_CLASSIFY, _message(chunk), attempts)
        return self._predictions(data, len(chunk), model.signature)

    async def _call(self, path: str, message: bytes, attempts: Attempts) -> bytes:
        """Make a call, and retry it where that can help."""
        while True:
            stub = self._stub(path)
            async with self._slots:
                self._check_open()
                call = stub(message, timeout=attempts.timeout_s, metadata=self._access.metadata)
                try:
                    data: bytes = await call
                except grpc.aio.AioRpcError as err:
                    code, details = err.code(), err.details()
                except asyncio.CancelledError:
                    # The task was cancelled, the channel was closed, or the status is CANCELLED.
                    if _is_being_cancelled():
                        raise
                    code, details = _CUT_OFF
                else:
                    self._is_known = True
                    return data
            self._check_open()
            await asyncio.sleep(attempts.pause_s(code, details))

    def _stub(self, path: str) -> Any:
        self._check_open()
        loop = asyncio.get_running_loop()
        if loop is not self._loop:
            if self._loop is not None and not self._loop.is_closed():
                raise RuntimeError(
                    "this AsyncClient belongs to another event loop: make one for each loop"
                )
            self._loop, self._stubs = loop, {}
            self._channel = self._access.aio_channel(self._target)
            self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)
        stub = self._stubs.get(path)
        return stub or self._stubs.setdefault(path, self._channel.unary_unary(path))


def _is_being_cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0


def _message(images: Images) -> bytes:
    return wire.encode_request(images.data.cast("B"))
