"""The common part of both clients: messages, retries, deadlines.

The methods here are coroutines over three steps that each client implements: send a call, wait for
its outcome, pause. `AsyncClient` awaits them on its event loop. `Client`'s steps block instead of
suspending, so it runs the same coroutines to their end without a loop.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import numpy.typing as npt

from serving.client.answers import model_info_of, predictions_of
from serving.client.channel import Access
from serving.client.retries import Attempts
from serving.errors import DeadlineExceeded, Unavailable
from serving.images import Images, as_images, as_pixels
from serving.model.info import ModelInfo
from serving.predictions import Predictions
from serving.protocols.digits_v1 import wire
from serving.signature import DIGITS

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""The HealthCheckResponse with status SERVING."""

Failure = tuple[grpc.StatusCode, str | None]
"""A status and its text."""
_NOT_SERVING: Failure = (grpc.StatusCode.UNAVAILABLE, "the server does not serve yet")
CUT_OFF: Failure = (grpc.StatusCode.CANCELLED, "the call was cut off")

_CHUNK_BYTES = 256 * DIGITS.image_bytes
"""Images in one message of a large request: enough to make the cost of a call small, few enough
that the server works on one message while the next travels."""
_WINDOW = 8
"""Messages of one request in flight at once."""


class Connection:
    """A server's address, and what is known of the server."""

    def __init__(
        self,
        target: str,
        *,
        timeout_s: float = 10.0,
        attempt_timeout_s: float | None = None,
        token: str | None = None,
        tls_ca: str | Path | None = None,
        tls_cert: str | Path | None = None,
        tls_key: str | Path | None = None,
    ) -> None:
        """Configure the client; it connects when it is first used.

        Args:
            target: "host:port", several of them with commas between, or any target of gRPC's such
                as "dns:///name:port". Calls take turns among the servers that answer and are
                ready. A name is resolved again when a connection ends, one of several is not.
            timeout_s: seconds for a call, including all its attempts and messages. While the server
                does not answer, a call is retried until then, so a restart of the server fails no
                call. A client that never had an answer gives up after 5 s.
            attempt_timeout_s: seconds for one attempt; then the call is sent again, to the next of
                several servers, until `timeout_s`. So a server that stands still delays a call and
                fails none. None: an attempt may take the whole time, since a server that is only
                slow would get each call several times.
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
        self._attempt_timeout_s = attempt_timeout_s
        self._access = Access(token, tls_ca, tls_cert, tls_key)
        self._again = partial(
            type(self), target, timeout_s=timeout_s, attempt_timeout_s=attempt_timeout_s,
            token=token, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key,
        )  # fmt: skip
        self._has_answered = False
        self._model: ModelInfo | None = None
        """What the server serves, once it was asked."""
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # held while connecting
        self._channel: Any = None
        self._stubs: dict[str, Any] = {}

    def __reduce__(self) -> tuple[Callable[[], "Connection"], tuple[()]]:
        """Pickle the settings, including the token; an unpickled client makes a new connection."""
        return self._again, ()

    async def _send(self, path: str, message: bytes, attempts: Attempts) -> Any:
        """Start a call; return an object for `_outcome`, which has `cancel`."""
        raise NotImplementedError

    async def _outcome(self, call: Any) -> bytes | Failure:
        """Wait for the end of a call."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Wait before a call is sent again."""
        raise NotImplementedError

    async def _wait_ready(self, timeout_s: float) -> None:
        attempts = Attempts(self._target, timeout_s)
        try:
            while await self._call(_HEALTH, b"", attempts) != _SERVING:
                await self._pause(attempts.pause_s(*_NOT_SERVING))
        except DeadlineExceeded as err:
            raise Unavailable(str(err)) from err

    async def _model_info(self, attempts: Attempts) -> ModelInfo:
        data = await self._call(_GET_MODEL, b"", attempts)
        model = self._model = model_info_of(data, self._target)
        return model

    async def _classify(self, images: npt.ArrayLike) -> Predictions:
        attempts, model = self._attempts(), self._model
        if model is None:
            as_pixels(images)  # images that no model takes are refused without a call
            model = await self._model_info(attempts)
        sent: deque[tuple[Any, bytes, int]] = deque()
        parts = []
        try:
            for chunk in _chunks(as_images(images, model.signature), model):
                if len(sent) == _WINDOW:
                    parts.append(await self._part(*sent.popleft(), model, attempts))
                message = wire.encode_request(chunk.data.cast("B"))
                sent.append((await self._send(_CLASSIFY, message, attempts), message, len(chunk)))
            while sent:
                parts.append(await self._part(*sent.popleft(), model, attempts))
        finally:
            for call, _, _ in sent:
                call.cancel()
        return parts[0] if len(parts) == 1 else Predictions.concatenate(parts)

    async def _part(
        self, call: Any, message: bytes, num_images: int, model: ModelInfo, attempts: Attempts
    ) -> Predictions:
        """Wait for the answer to one message."""
        data = await self._finish(call, _CLASSIFY, message, attempts)
        try:
            return predictions_of(data, num_images, model.signature, self._target)
        except Unavailable:
            self._model = None  # another model may be served now: the next call asks
            raise

    async def _call(self, path: str, message: bytes, attempts: Attempts) -> bytes:
        call = await self._send(path, message, attempts)
        return await self._finish(call, path, message, attempts)

    async def _finish(self, call: Any, path: str, message: bytes, attempts: Attempts) -> bytes:
        """Wait for the answer to a call, and retry it where that can help."""
        outcome = await self._outcome(call)
        if not isinstance(outcome, bytes):
            attempts = attempts.of_one_message()
        while not isinstance(outcome, bytes):
            self._check_open()
            await self._pause(attempts.pause_s(*outcome))
            outcome = await self._outcome(await self._send(path, message, attempts))
        self._has_answered = True
        return outcome

    def _attempts(self) -> Attempts:
        return Attempts(
            self._target,
            self._timeout_s,
            attempt_timeout_s=self._attempt_timeout_s,
            first_contact=not self._has_answered,
        )

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise Unavailable(f"{self._target}: the client is closed")


def _chunks(images: Images, model: ModelInfo) -> Iterator[Images]:
    """Split images into messages."""
    largest = max(model.signature.image_bytes, model.signature.row_bytes)
    size = min(model.max_request_images, max(1, _CHUNK_BYTES // largest))
    for first in range(0, len(images), size):
        yield images[first : first + size]
