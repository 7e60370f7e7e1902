"""The common part of both clients: messages, retries, deadlines.

The methods here are coroutines. `AsyncClient` awaits them on its event loop. `Client`'s transports
block instead of suspending, so it runs the same coroutines to their end without a loop.
"""

import copy
import threading
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy.typing as npt

from serving.client.checks import model_info_of, predictions_of
from serving.client.target import Credentials, address_for_h2, client_span
from serving.client.transport import (
    Failure,
    Outcome,
    PendingCall,
    RetryBudget,
    RetryState,
    Transport,
)
from serving.config import TransportName
from serving.digits import wire
from serving.errors import DeadlineExceeded, RequestError, Unavailable
from serving.predictions import Images, Predictions, as_images, as_pixels
from serving.protocols.status import StatusCode
from serving.tensors import DIGITS, Array, ModelInfo, TensorSignature

_CLASSIFY = "/digits.v1.DigitClassifier/Classify"
_GET_MODEL = "/digits.v1.DigitClassifier/GetModel"
_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""The HealthCheckResponse with status SERVING."""

_NOT_SERVING: Failure = (StatusCode.UNAVAILABLE, "the server does not serve yet")

_CHUNK_BYTES = 256 * DIGITS.image_bytes
"""Images in one message of a large request: enough to make the cost of a call small, few enough
that the server works on one message while the next travels."""
_WINDOW = 8
"""Messages of one request in flight at once."""


class BaseClient:
    """A server's address, and the known facts about the server."""

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
        transport: TransportName = "auto",
    ) -> None:
        """Configure the client; it connects when it is first used.

        Args:
            target: "host:port", several of them with commas between, or any target of gRPC's such
                as "dns:///name:port". Calls take turns among the servers that answer and are
                ready. A name is resolved again when a connection ends, one of several is not.
            timeout_s: seconds for a call, including all its attempts and messages. While the server
                does not answer, a call is retried until then, so a restart of the server fails no
                call. A client that never had an answer gives up after 5 s. While a server answers
                UNAVAILABLE to most calls, they are not retried.
            attempt_timeout_s: seconds for one attempt; then the call is sent again, to the next of
                several servers, until `timeout_s`. So a server that stands still delays a call and
                fails none. None: an attempt may take the whole time, since a server that is only
                slow would get each call several times.
            token: bearer token to send with every call; in plaintext, unless there is TLS.
            tls_ca: PEM file of the authorities that sign the server's certificate; None is
                plaintext.
            tls_cert: PEM file of the client's own certificate, if the server requires one (mTLS).
            tls_key: PEM file of its key.
            transport: "h2", this project's own HTTP/2, several times as fast, for one "host:port";
                "grpcio"; or "auto": h2 for one address that is not a name, grpcio elsewhere.

        Raises:
            ConfigurationError: a file can't be read, the token can't be sent, or h2 is not
                for this target.
        """
        self._target = target
        self._timeout_s = timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._credentials = Credentials(token, tls_ca, tls_cert, tls_key)
        self._address = address_for_h2(transport, target)
        """Where h2 connects to; None for grpcio."""
        self._again = partial(
            type(self), target, timeout_s=timeout_s, attempt_timeout_s=attempt_timeout_s,
            token=token, tls_ca=tls_ca, tls_cert=tls_cert, tls_key=tls_key, transport=transport,
        )  # fmt: skip
        self._has_answered = False
        self._budget = RetryBudget()
        self._model: ModelInfo | None = None
        """The served classifier's description, once the server was asked."""
        self._signatures: dict[tuple[str, str], TensorSignature] = {}
        """The inputs and outputs of each model and version, once the server was asked."""
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # held where `Client` makes its transport
        self._transport: Transport | None = None
        """The transport, once a call was made."""

    def __reduce__(self) -> tuple[Callable[[], "BaseClient"], tuple[()]]:
        """Pickle the settings, including the token; an unpickled client makes a new connection."""
        return self._again, ()

    def _opened(self) -> Transport:
        """Return the transport; a closed client has none."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Wait before a call is sent again."""
        raise NotImplementedError

    async def _wait_ready(self, timeout_s: float) -> None:
        state = RetryState(self._target, timeout_s)
        try:
            while await self._call(_HEALTH, b"", state) != _SERVING:
                await self._pause(state.backoff_s(*_NOT_SERVING))
        except DeadlineExceeded as err:
            raise Unavailable(str(err)) from err

    async def _model_info(self, state: RetryState) -> ModelInfo:
        data = await self._call(_GET_MODEL, b"", state)
        model = self._model = model_info_of(data, self._target)
        return model

    async def _classify(self, images: npt.ArrayLike) -> Predictions:
        with client_span(_CLASSIFY, self._target):
            state, model = self._begun(), self._model
            if model is None:
                as_pixels(images)  # images that no model takes are refused without a call
                model = await self._model_info(state)
            images = as_images(images, model.signature)
            if len(images) > (size := _images_a_message(model)):
                return await self._classify_many(images, size, model, state)
            message = wire.encode_request(images.data.cast("B"))
            return self._part(await self._call(_CLASSIFY, message, state), len(images), model)

    async def _classify_many(
        self, images: Images, size: int, model: ModelInfo, state: RetryState
    ) -> Predictions:
        """Classify images in several messages, a few of them in flight at once."""
        sent: deque[tuple[PendingCall, bytes, int]] = deque()
        parts = []

        async def take() -> None:
            call, message, num_images = sent.popleft()
            data = await self._finish(await call.result(), _CLASSIFY, message, copy.copy(state))
            parts.append(self._part(data, num_images, model))

        try:
            for first in range(0, len(images), size):
                chunk = images[first : first + size]
                if len(sent) == _WINDOW:
                    await take()
                message = wire.encode_request(chunk.data.cast("B"))
                call = await self._opened().send(_CLASSIFY, message, state.timeout_s())
                sent.append((call, message, len(chunk)))
            while sent:
                await take()
        finally:
            for call, _, _ in sent:
                call.cancel()
        return Predictions.concatenate(parts)

    async def _infer(
        self, model: str, inputs: Mapping[str, object], outputs: Sequence[str],
        version: str | int,
    ) -> dict[str, Array]:  # fmt: skip
        # The messages' classes take 15 ms of a start, which callers of `classify` need not pay.
        from serving.client import infer_messages as inference

        state, asked = self._begun(), (model, str(version))
        try:
            signature = self._signatures.get(asked)
            if signature is None:
                request = inference.metadata_request(*asked)
                data = await self._call(inference.MODEL_METADATA, request, state)
                signature = self._signatures[asked] = inference.signature_of(data, self._target)
            message = inference.infer_request(*asked, signature, inputs, outputs)
            with client_span(inference.MODEL_INFER, self._target):
                data = await self._call(inference.MODEL_INFER, message, state)
        except RequestError:
            self._signatures.pop(asked, None)  # another model may be served now: the next call asks
            raise
        return inference.arrays_of(data, self._target)

    async def _models(self) -> dict[tuple[str, str], TensorSignature]:
        from serving.client import infer_messages as inference

        state, signatures = self._begun(), {}
        data = await self._call(inference.REPOSITORY_INDEX, b"", state)
        for name, version in inference.ready_models(data, self._target):
            request = inference.metadata_request(name, version)
            data = await self._call(inference.MODEL_METADATA, request, state)
            signatures[name, version] = inference.signature_of(data, self._target)
        return signatures

    def _part(self, data: bytes, num_images: int, model: ModelInfo) -> Predictions:
        """Decode the answer to one message."""
        try:
            return predictions_of(data, num_images, model.signature, self._target)
        except Unavailable:
            self._model = None  # another model may be served now: the next call asks
            raise

    async def _call(self, path: str, message: bytes, state: RetryState) -> bytes:
        outcome = await self._opened().exchange(path, message, state.timeout_s())
        return await self._finish(outcome, path, message, state)

    async def _finish(
        self, outcome: Outcome, path: str, message: bytes, state: RetryState
    ) -> bytes:
        """Return the answer of a call that has ended; retry it where that can help."""
        while not isinstance(outcome, bytes):
            self._check_open()
            await self._pause(state.backoff_s(*outcome))
            outcome = await self._opened().exchange(path, message, state.timeout_s())
        self._has_answered = True
        self._budget.put()
        return outcome

    def _begun(self) -> RetryState:
        return RetryState(
            self._target,
            self._timeout_s,
            attempt_timeout_s=self._attempt_timeout_s,
            first_contact=not self._has_answered,
            budget=self._budget,
        )

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise Unavailable(f"{self._target}: the client is closed")


def _images_a_message(model: ModelInfo) -> int:
    largest = max(model.signature.image_bytes, model.signature.row_bytes)
    return min(model.max_request_images, max(1, _CHUNK_BYTES // largest))
