"""Classify over the network: the same call, Predictions and errors as `serving.Classifier`.

Needs numpy, grpcio and protobuf only. `BaseClient` is the common part of both clients.
"""

import asyncio
import copy
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Mapping, Sequence
from dataclasses import fields
from functools import partial
from os import getpid
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt
from google.protobuf.message import DecodeError

from digit_classifier import wire
from digit_classifier.pb.digits.v1 import digits_pb2
from serving.client.h2.event_loop import ReconnectingLoopChannel
from serving.client.h2.threads import ReconnectingChannel
from serving.client.transport import (
    Credentials,
    Failure,
    Outcome,
    PendingCall,
    RetryBudget,
    RetryState,
    Transport,
    address_for_h2,
    client_span,
    malformed,
)
from serving.config import TransportName
from serving.errors import ConfigurationError, DeadlineExceeded, RequestError, Unavailable
from serving.predictions import Images, Predictions, Probabilities, as_images, as_pixels
from serving.protocols.status import StatusCode
from serving.system.host import is_target
from serving.tensors import DIGITS, Array, ModelInfo, Signature, TensorSignature

_FEW_NUMBERS = 64
"""Probabilities that Python checks faster than numpy: 1 µs of a call instead of 5."""
_TOLERANCE = 1e-3
"""How far from 1 a sum of probabilities may be, by rounding."""


def predictions_of(data: bytes, num_images: int, signature: Signature, address: str) -> Predictions:
    """Decode a ClassifyResponse.

    Args:
        data: the message.
        num_images: the number of images in the request.
        signature: the model's.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not a ClassifyResponse, or does not fit the request.
    """
    shape = num_images, signature.num_classes
    try:
        predictions = wire.decode_response(data, signature.labels, shape)
    except (DecodeError, ValueError, OverflowError) as err:
        raise malformed(address, "no ClassifyResponse") from err
    if predictions.probabilities.shape != shape:
        found = predictions.probabilities.shape
        raise malformed(address, f"probabilities of shape {found}, not {shape}")
    if not _are_distributions(predictions.probabilities):
        raise malformed(address, "probabilities that are not 0 to 1 with a sum of 1")
    return predictions


def _are_distributions(probabilities: Probabilities) -> bool:
    """Return whether each row has numbers of at least 0 that add up to 1; NaN is neither."""
    if probabilities.size > _FEW_NUMBERS:
        sums = probabilities @ np.ones(probabilities.shape[1], np.float32)
        return bool(probabilities.min() >= 0 and abs(sums - 1).max() <= _TOLERANCE)
    rows = probabilities.tolist()
    return all(abs(sum(row) - 1) <= _TOLERANCE and min(row) >= 0 for row in rows)


def model_info_of(data: bytes, address: str) -> ModelInfo:
    """Decode a GetModelResponse.

    Args:
        data: the message.
        address: the server's, for errors.

    Raises:
        Unavailable: it is not one, or its limits or shapes are impossible.
    """
    try:
        response = digits_pb2.GetModelResponse.FromString(data)
    except DecodeError as err:
        raise malformed(address, "no GetModelResponse") from err
    if response.max_request_images < 1:
        raise malformed(address, f"max_request_images {response.max_request_images}")
    names = {each.name for each in fields(ModelInfo)} - {"max_request_rows"}
    info = {name: getattr(response, name) for name in names}
    info["max_request_rows"] = response.max_request_images
    info["test_accuracy"] = response.test_accuracy or None
    try:
        info["signature"] = wire.signature_of(response)
    except ValueError as err:
        raise malformed(address, f"a model of {err}") from err
    return ModelInfo(**info)


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
            ConfigurationError: the target is no address, a file can't be read, the token can't be
                sent, or h2 is not for this target.
        """
        if not is_target(target):
            raise ConfigurationError(f"expected HOST:PORT, such as 127.0.0.1:50051, got {target!r}")
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

    async def _model_facts(
        self, model: str, version: str | int
    ) -> tuple[TensorSignature, dict[str, Any]]:
        from serving.client import infer_messages as inference

        state, request = self._begun(), inference.metadata_request(model, str(version))
        data = await self._call(inference.MODEL_METADATA, request, state)
        signature = inference.signature_of(data, self._target)
        try:
            config = await self._call(inference.MODEL_CONFIG, request, state)  # of the same fields
        except Unavailable as err:
            if "UNIMPLEMENTED" not in str(err):
                raise
            return signature, {}  # the protocol's extension, which not every server has
        facts = inference.config_of(config, self._target)
        return inference.named(signature, facts.pop("axes", {})), facts

    def _part(self, data: bytes, num_images: int, model: ModelInfo) -> Predictions:
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
    return min(model.max_request_rows, max(1, _CHUNK_BYTES // largest))


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

    def model_facts(
        self, model: str, version: str | int = ""
    ) -> tuple[TensorSignature, dict[str, Any]]:
        """Return a model's inputs and outputs, and facts such as `batching`, `device`, `labels`.

        Raises:
            ModelNotFound: the server has no such model or version.
            Unauthenticated, Unavailable, DeadlineExceeded: see `classify`.
        """
        return _run(self._model_facts(model, version))

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

    async def model_facts(
        self, model: str, version: str | int = ""
    ) -> tuple[TensorSignature, dict[str, Any]]:
        """Return a model's inputs and outputs, and facts; see `Client.model_facts`."""
        return await self._model_facts(model, version)

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
