"""Classify over the network: the same call, Predictions and errors as `serving.Classifier`.

Needs numpy, grpcio and protobuf only.
"""

import asyncio
import time
from collections import deque
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import grpc
import numpy.typing as npt
from google.protobuf.message import DecodeError

from serving.errors import Unavailable
from serving.images import Images, as_images
from serving.model_info import ModelInfo
from serving.predictions import Predictions
from serving.rpc import wire
from serving.rpc.channel import Access
from serving.rpc.pb.digits.v1 import digits_pb2
from serving.rpc.status import error_from

if TYPE_CHECKING:  # generic in the stubs only
    _Callable = grpc.UnaryUnaryMultiCallable[bytes, bytes]
    _AsyncCallable = grpc.aio.UnaryUnaryMultiCallable[bytes, bytes]

_CHUNK_IMAGES = 256
"""Images in one message of a large request: enough to make the cost of a call small, few enough
that the server works on one message while the next travels."""
_WINDOW = 8
"""Messages of one request in flight at once."""

_MAX_IN_FLIGHT = 512
"""Messages that an AsyncClient has in flight; further ones wait for their turn. Servers refuse
streams past a limit, ours past 1024, and a client learns of it only after its first burst."""

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_GET_MODEL = "/digits.v1.DigitClassifier/GetModel"


class Client:
    """A connection to a server, for threads; connects when first used.

    Interchangeable with `serving.Classifier`, and as safe to call from many threads.
    """

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
        """Address a server.

        Args:
            target: "host:port".
            timeout_s: seconds that a call may take, its retries and all its messages included.
            token: sent with every call; in the clear, unless there is TLS.
            tls_ca: PEM file of the authorities that may have signed the server's certificate;
                None is plaintext.
            tls_cert: PEM file of the client's own certificate, where the server asks for one.
            tls_key: PEM file of its key.

        Raises:
            ConfigurationError: a file can't be read.
        """
        self._target = target
        self._timeout_s = timeout_s
        access = Access(token, tls_ca, tls_cert, tls_key)
        self._metadata = access.metadata
        self._channel = access.channel(target)
        self._classify: _Callable = self._channel.unary_unary(_CLASSIFY)
        self._get_model: _Callable = self._channel.unary_unary(_GET_MODEL)
        self._chunk_images: int | None = None

    def model_info(self) -> ModelInfo:
        """Ask what is being served.

        Raises:
            Unavailable: nobody answers there.
            DeadlineExceeded: no answer within the timeout.
        """
        with _translated_errors(self._target):
            return _model_info(
                self._get_model(b"", timeout=self._timeout_s, metadata=self._metadata)
            )

    def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; many travel as several messages, pipelined.

        Args:
            images: (N, 784) or (N, 28, 28) uint8, 0 = background, 255 = ink; N >= 1.

        Returns:
            N predictions, in the order of the images.

        Raises:
            InvalidRequest: wrong dtype or shape, or no images.
            Overloaded: the server's queue is full.
            Unavailable: nobody serves there, after retries too.
            DeadlineExceeded: no answer within the timeout.
            ModelError: the run failed.
        """
        checked = as_images(images)
        deadline_s = time.monotonic() + self._timeout_s
        if len(checked) > 1 and self._chunk_images is None:
            self._chunk_images = min(_CHUNK_IMAGES, self.model_info().max_request_images)
        calls: deque[Any] = deque()
        parts = []
        with _translated_errors(self._target, calls):
            for message in _messages(checked, self._chunk_images or 1):
                if len(calls) == _WINDOW:
                    parts.append(wire.decode_response(calls.popleft().result()))
                timeout_s = _seconds_until(deadline_s)
                calls.append(
                    self._classify.future(message, timeout=timeout_s, metadata=self._metadata)
                )
            parts += [wire.decode_response(call.result()) for call in calls]
        return Predictions.concatenate(parts)

    def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        self._channel.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


class AsyncClient:
    """A connection to a server, for one event loop: thousands of calls may be in flight.

    The same as `Client`, awaited.
    """

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
        """Address a server; arguments as for `Client`."""
        self._target = target
        self._timeout_s = timeout_s
        access = Access(token, tls_ca, tls_cert, tls_key)
        self._metadata = access.metadata
        self._channel = access.aio_channel(target)
        self._classify: _AsyncCallable = self._channel.unary_unary(_CLASSIFY)
        self._get_model: _AsyncCallable = self._channel.unary_unary(_GET_MODEL)
        self._chunk_images: int | None = None
        self._slots = asyncio.Semaphore(_MAX_IN_FLIGHT)

    async def model_info(self) -> ModelInfo:
        """Ask what is being served; see `Client.model_info`."""
        with _translated_errors(self._target):
            return _model_info(
                await self._get_model(b"", timeout=self._timeout_s, metadata=self._metadata)
            )

    async def classify(self, images: npt.ArrayLike) -> Predictions:
        """Classify N images; see `Client.classify`."""
        checked = as_images(images)
        deadline_s = time.monotonic() + self._timeout_s
        if len(checked) > 1 and self._chunk_images is None:
            self._chunk_images = min(_CHUNK_IMAGES, (await self.model_info()).max_request_images)
        calls: deque[Any] = deque()
        parts = []
        with _translated_errors(self._target, calls):
            for message in _messages(checked, self._chunk_images or 1):
                if len(calls) == _WINDOW:
                    parts.append(wire.decode_response(await calls.popleft()))
                await self._slots.acquire()
                timeout_s = _seconds_until(deadline_s)
                calls.append(self._classify(message, timeout=timeout_s, metadata=self._metadata))
                calls[-1].add_done_callback(lambda _: self._slots.release())
            parts += [wire.decode_response(await call) for call in calls]
        return Predictions.concatenate(parts)

    async def close(self) -> None:
        """Close the connection; calls in flight and later ones fail as Unavailable."""
        await self._channel.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.close()


def _messages(images: Images, chunk_images: int) -> Iterator[bytes]:
    for first in range(0, len(images), chunk_images):
        yield wire.encode_request(images[first : first + chunk_images].data.cast("B"))


def _seconds_until(deadline_s: float) -> float:
    return max(0.0, deadline_s - time.monotonic())


def _model_info(data: bytes) -> ModelInfo:
    response = digits_pb2.GetModelResponse.FromString(data)
    return ModelInfo(**{field.name: getattr(response, field.name) for field in fields(ModelInfo)})


@contextmanager
def _translated_errors(target: str, calls: Iterable[Any] = ()) -> Iterator[None]:
    """Turn gRPC's exceptions into ours; cancel what is still in flight."""
    try:
        yield
    except grpc.RpcError as err:
        raise error_from(err.code(), f"{target}: {err.details()}") from None
    except (grpc.FutureCancelledError, grpc.aio.UsageError, DecodeError, ValueError) as err:
        # ValueError: a closed channel, or an answer that is none.
        raise Unavailable(f"{target}: {err or 'the connection was closed'}") from err
    finally:
        for call in calls:
            call.cancel()
