"""Call a server from Python: `Client` for threads, `AsyncClient` for an event loop.

Needs numpy, grpcio and protobuf only. `BaseClient` is the common part of both clients.
"""

import asyncio
import copy
import threading
from collections import deque
from collections.abc import (
    AsyncGenerator,
    Callable,
    Coroutine,
    Generator,
    Iterable,
    Mapping,
    Sequence,
)
from contextlib import aclosing
from functools import partial
from math import inf
from os import getpid
from pathlib import Path
from typing import Any, Self, TypedDict, TypeVar

from serving.client.addresses import address_for_h2
from serving.client.credentials import Credentials, client_span
from serving.client.h2.event_loop import ReconnectingLoopChannel
from serving.client.h2.threads import ReconnectingChannel
from serving.client.retries import RetryBudget, RetryState
from serving.client.transport import Metadata, Outcome, PendingCall, Transport
from serving.config import TransportName, as_seconds
from serving.errors import (
    ConfigurationError,
    DeadlineExceeded,
    InvalidRequest,
    RequestError,
    Unavailable,
    Unsupported,
)
from serving.protocols.status import Failure, StatusCode, error_from
from serving.security.tls_probe import tls_mismatch
from serving.system.addresses import is_target
from serving.tensors import ModelInfo, Outputs, as_names

_HEALTH = "/grpc.health.v1.Health/Check"
_SERVING = b"\x08\x01"
"""The HealthCheckResponse with status SERVING."""
_NOT_SERVING = Failure(StatusCode.UNAVAILABLE, "the server does not serve yet")
_PROBE_S = 1.0
"""How long the first failure of a client may be looked into."""
_WINDOW = 8
"""Messages of one request in flight at once."""
_RESERVED = ("grpc-", ":")
"""Prefixes of metadata that gRPC itself sends."""
_Result = TypeVar("_Result")


class ClientOptions(TypedDict, total=False):
    """The options of a client; see `BaseClient`."""

    timeout_s: float
    attempt_timeout_s: float | None
    token: str | None
    tls_ca: str | Path | None
    tls_cert: str | Path | None
    tls_key: str | Path | None
    transport: TransportName


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
            tls_ca: PEM file of the authorities that sign the server's certificate, or "system" for
                those that this machine trusts; None is plaintext.
            tls_cert: PEM file of the client's own certificate, if the server requires one (mTLS).
            tls_key: PEM file of its key.
            transport: "h2", this project's own HTTP/2, 1.5 to 2.4 times as fast, for one
                "host:port"; "grpcio"; or "auto": h2 for one IP address or localhost, grpcio
                elsewhere.

        Raises:
            ConfigurationError: the target is no address, a file can't be read, the token can't be
                sent, or h2 is not for this target.
        """
        if not (isinstance(target, str) and is_target(target)):
            raise ConfigurationError(f"expected HOST:PORT, such as 127.0.0.1:50051, got {target!r}")
        self._target = target
        self._timeout_s = as_seconds("timeout_s", timeout_s, ConfigurationError)
        self._attempt_timeout_s = attempt_timeout_s and as_seconds(
            "attempt_timeout_s", attempt_timeout_s, ConfigurationError
        )
        self._credentials = Credentials(token, tls_ca, tls_cert, tls_key)
        self._address = address_for_h2(transport, target)
        """Where h2 connects to; None for grpcio."""
        self._again = partial(
            type(self),
            target,
            timeout_s=timeout_s,
            attempt_timeout_s=attempt_timeout_s,
            token=token,
            tls_ca=tls_ca,
            tls_cert=tls_cert,
            tls_key=tls_key,
            transport=transport,
        )
        self._has_answered = False
        self._budget = RetryBudget()
        self._infos: dict[tuple[str, str], ModelInfo] = {}
        """The description of each model and version, once the server was asked."""
        self._is_closed = threading.Event()
        self._lock = threading.Lock()  # held where `Client` makes its transport
        self._transport: Transport | None = None
        """The transport, once a call was made."""

    def __reduce__(self) -> tuple[Callable[[], "BaseClient"], tuple[()]]:
        """Pickle the settings, including the token; an unpickled client makes a new connection."""
        return self._again, ()

    @property
    def target(self) -> str:
        """The server's address, as it was given."""
        return self._target

    @property
    def timeout_s(self) -> float:
        """Seconds for a call that names no others."""
        return self._timeout_s

    def _opened(self) -> Transport:
        """Return the transport; a closed client has none."""
        raise NotImplementedError

    async def _pause(self, seconds: float) -> None:
        """Wait before a call is sent again."""
        raise NotImplementedError

    async def _blocking(self, work: Callable[[], _Result]) -> _Result:
        """Do work that blocks a thread."""
        raise NotImplementedError

    async def _wait_ready(self, timeout_s: float) -> None:
        # A proxy in front of a server that starts answers UNAVAILABLE, as often as one asks it.
        timeout_s = as_seconds("timeout_s", timeout_s)
        state = RetryState(self._target, timeout_s, max_refused=inf)
        try:
            while await self._call(_HEALTH, b"", state) != _SERVING:
                await self._pause(state.backoff_s(_NOT_SERVING))
        except DeadlineExceeded as err:
            raise Unavailable(str(err)) from err

    async def _unary(
        self,
        path: str,
        message: bytes,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
    ) -> bytes:
        with client_span(path, self._target):
            return await self._call(path, message, self._begun(timeout_s), _checked(metadata))

    async def _unary_many(
        self,
        path: str,
        messages: Iterable[bytes],
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
    ) -> list[bytes]:
        with client_span(path, self._target):
            state = self._begun(timeout_s)
            return await self._call_many(path, messages, state, _checked(metadata))

    async def _infer(
        self,
        model: str,
        inputs: object,
        outputs: Sequence[str],
        version: str | int,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
        parameters: Mapping[str, Any] | None,
    ) -> Outputs:
        # Late, here and below: the messages' classes take 15 ms of a start, which callers of other
        # services need not pay.
        from serving.client import infer_messages as inference

        state, more = self._begun(timeout_s), _checked(metadata)
        asked, outputs = _asked(model, version), as_names("outputs", outputs)
        try:
            info = self._infos.get(asked)
            if info is None:
                info = self._infos[asked] = await self._described(asked, state)
            requests = inference.infer_requests(*asked, info, inputs, outputs, parameters or {})
            with client_span(inference.MODEL_INFER, self._target):
                if len(requests) == 1:
                    answers = [await self._call(inference.MODEL_INFER, requests[0], state, more)]
                else:
                    answers = await self._call_many(inference.MODEL_INFER, requests, state, more)
        except RequestError:
            self._infos.pop(asked, None)  # another model may be served now: the next call asks
            raise
        return inference.joined(
            [inference.outputs_of(each, self._target, info) for each in answers], self._target
        )

    async def _stream(
        self,
        model: str,
        inputs: object,
        outputs: Sequence[str],
        version: str | int,
        timeout_s: float | None,
        metadata: Mapping[str, str] | None,
        parameters: Mapping[str, Any] | None,
    ) -> AsyncGenerator[Outputs, None]:
        from serving.client import infer_messages as inference

        state, more = self._begun(timeout_s, is_stream=True), _checked(metadata)
        asked, outputs = _asked(model, version), as_names("outputs", outputs)
        try:
            info = self._infos.get(asked)
            if info is None:
                info = self._infos[asked] = await self._described(asked, state)
            request = inference.stream_request(*asked, info, inputs, outputs, parameters or {})
            path, num_parts = inference.MODEL_STREAM_INFER, 0
            while True:
                with client_span(path, self._target):
                    call = await self._opened().stream(path, request, state.timeout_s(), more)
                try:
                    while isinstance(outcome := await call.next(), bytes):
                        num_parts, self._has_answered = num_parts + 1, True
                        yield inference.part_of(outcome, self._target, info)
                finally:
                    call.cancel()
                if outcome.code is StatusCode.OK:
                    self._budget.put()
                    return
                if num_parts:
                    raise error_from(outcome, self._target)
                if not self._has_answered:
                    outcome = await self._explained(outcome, state)
                self._check_open()
                await self._pause(state.backoff_s(outcome))
        except RequestError:
            self._infos.pop(asked, None)  # as in `_infer`
            raise

    async def _describe(self, model: str, version: str | int, timeout_s: float | None) -> ModelInfo:
        asked = _asked(model, version)
        info = self._infos[asked] = await self._described(asked, self._begun(timeout_s))
        return info

    async def _described(self, asked: tuple[str, str], state: RetryState) -> ModelInfo:
        from serving.client import model_messages as inference

        request = inference.metadata_request(*asked)
        metadata = await self._call(inference.MODEL_METADATA, request, state)
        try:
            config = await self._call(inference.MODEL_CONFIG, request, state)  # of the same fields
        except Unsupported:  # the protocol's extension, which not every server has
            config = None
        return inference.model_info(metadata, config, asked[1], self._target)

    async def _models(self, timeout_s: float | None) -> list[str]:
        from serving.client import model_messages as inference

        data = await self._call(inference.REPOSITORY_INDEX, b"", self._begun(timeout_s))
        return inference.ready_models(data, self._target)

    async def _call_many(
        self, path: str, messages: Iterable[bytes], state: RetryState, metadata: Metadata
    ) -> list[bytes]:
        """Send messages, a few of them in flight at once; return the answers in their order."""
        sent: deque[tuple[PendingCall, bytes]] = deque()
        answers: list[bytes] = []

        async def take() -> None:
            call, message = sent.popleft()
            outcome = await call.result()
            answers.append(await self._finish(outcome, path, message, copy.copy(state), metadata))

        try:
            for message in messages:
                if len(sent) == _WINDOW:
                    await take()
                call = await self._opened().send(path, message, state.timeout_s(), metadata)
                sent.append((call, message))
            while sent:
                await take()
        finally:
            for call, _ in sent:
                call.cancel()
        return answers

    async def _call(
        self, path: str, message: bytes, state: RetryState, metadata: Metadata = ()
    ) -> bytes:
        outcome = await self._opened().exchange(path, message, state.timeout_s(), metadata)
        return await self._finish(outcome, path, message, state, metadata)

    async def _finish(
        self, outcome: Outcome, path: str, message: bytes, state: RetryState, metadata: Metadata
    ) -> bytes:
        """Return the answer of a call that has ended; retry it where that can help."""
        if not isinstance(outcome, bytes) and not self._has_answered:
            outcome = await self._explained(outcome, state)
        while not isinstance(outcome, bytes):
            self._check_open()
            await self._pause(state.backoff_s(outcome))
            outcome = await self._opened().exchange(path, message, state.timeout_s(), metadata)
        self._has_answered = True
        self._budget.put()
        return outcome

    async def _explained(self, failure: Failure, state: RetryState) -> Failure:
        """Return a client's first failure, or that only one side speaks TLS, if that is why."""
        is_known = failure.is_answer or failure.is_permanent
        if is_known or failure.code is not StatusCode.UNAVAILABLE:
            return failure
        is_tls, timeout_s = self._credentials.files is not None, min(_PROBE_S, state.timeout_s())
        probe = partial(tls_mismatch, self._target, timeout_s, is_tls=is_tls)
        reason = await self._blocking(probe) if timeout_s > 0 else None
        if reason is None:
            return failure
        return Failure(StatusCode.UNAVAILABLE, reason, is_permanent=True)

    def _begun(self, timeout_s: float | None, *, is_stream: bool = False) -> RetryState:
        return RetryState(
            self._target,
            self._timeout_s if timeout_s is None else as_seconds("timeout_s", timeout_s),
            attempt_timeout_s=None if is_stream else self._attempt_timeout_s,
            first_contact=not self._has_answered,
            budget=self._budget,
        )

    def _check_open(self) -> None:
        if self._is_closed.is_set():
            raise Unavailable(f"{self._target}: the client is closed")


def _asked(model: str, version: str | int) -> tuple[str, str]:
    """Return the name and the version, or label, of the model of a call; checked."""
    (name,), (number,) = as_names("model", model), as_names("version", str(version))
    return name, number


def _checked(metadata: Mapping[str, str] | None) -> Metadata:
    """Check a caller's metadata.

    Raises:
        InvalidRequest: a name or a value can't be sent.
    """
    if not metadata:
        return ()
    if not isinstance(metadata, Mapping):
        raise InvalidRequest(f"metadata: expected texts by name, got {metadata!r:.80}")
    for name, value in metadata.items():
        if not isinstance(name, str):
            raise InvalidRequest(f"expected a name of metadata such as x-tenant, got {name!r:.80}")
        is_name = name.isascii() and name.replace("-", "").replace("_", "").isalnum()
        if not is_name or name.lower().startswith(_RESERVED) or name.lower().endswith("-bin"):
            raise InvalidRequest(f"expected a name of metadata such as x-tenant, got {name[:80]!r}")
        if not (isinstance(value, str) and value.isascii() and value.isprintable()):
            raise InvalidRequest(f"metadata {name}: expected printable ASCII")
    return tuple((name.lower(), value) for name, value in metadata.items())


class Client(BaseClient):
    """A connection to a server, for threads; connects when first used.

        with Client("127.0.0.1:50051") as client:
            outputs = client.infer("model", {"x": array})

    The verbs are those of `serving.Model`; as safe to call from many threads. A pickled client
    connects again. A client that was used before a fork raises `Unavailable` in the child.
    """

    _pid: int | None = None
    """The id of the process that connected."""

    def infer(
        self,
        model: str,
        inputs: object,
        *,
        version: str | int = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Run any model of the server, by the Open Inference Protocol.

        The first call for a model asks the server for its inputs and limits. Rows beyond a
        message's limit travel in several messages where the model's rows are batched.

        Args:
            model: its name.
            inputs: an array for each input, by its name, of its type and shape; or the array itself
                where the model has one input. Lists, numbers and texts are converted where that
                loses nothing, float64 goes into float32 where every finite value stays finite, and
                integers into another type that holds them.
            version: which version to run; the server's choice by default.
            outputs: the names of the outputs to answer; all by default.
            timeout_s: seconds for this call, instead of the client's.
            metadata: further headers of the call, such as {"x-tenant": "a"}.
            parameters: of the request, for a model with a handler: texts, numbers, booleans.

        Returns:
            An array for each output, by its name, BYTES as texts; and the version that answered.

        Raises:
            InvalidRequest: an input is missing or unknown, or has another type or shape.
            TooLarge: it does not fit into a message, and can't be divided.
            ModelNotFound: the server has no such model or version.
            Unsupported: the server does not speak the protocol.
            Unauthenticated: the server wants a token, or another one.
            Overloaded: the server's queue stayed full.
            Unavailable: no server answers, after retries too, or its answer is malformed.
            DeadlineExceeded: no answer within the timeout.
            ModelError: the run failed.
        """
        return _run(self._infer(model, inputs, outputs, version, timeout_s, metadata, parameters))

    def stream(
        self,
        model: str,
        inputs: object,
        *,
        version: str | int = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Generator[Outputs, None, None]:
        """Yield the parts of the answer of a model that answers in parts, as they come.

        A model that does not has one. The next parts are made as these are taken; close the
        iterator, or leave its loop, to cancel the call. It is sent again before its first part
        alone.

        Args:
            model: its name.
            inputs: see `infer`, as for the others; they travel in one message.
            version: which version to run; the server's choice by default.
            outputs: the names of the outputs to answer; all by default.
            timeout_s: seconds for the whole answer, instead of the client's.
            metadata: further headers of the call.
            parameters: of the request, for a model with a handler.

        Yields:
            An array for each output, by its name, and the version that answered.

        Raises:
            ServingError: see `infer`; also behind some parts.
        """
        given = model, inputs, outputs, version, timeout_s, metadata, parameters
        parts = self._stream(*given)
        try:
            while True:
                try:
                    part = _run(anext(parts))
                except StopAsyncIteration:
                    return
                yield part
        finally:
            _run(parts.aclose())

    def describe(
        self, model: str, version: str | int = "", *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Return a model's inputs and outputs, how it is run, and its limits.

        Raises:
            ModelNotFound: the server has no such model or version.
            Unauthenticated, Unavailable, DeadlineExceeded: see `infer`.
        """
        return _run(self._describe(model, version, timeout_s))

    def models(self, *, timeout_s: float | None = None) -> list[str]:
        """Return the names of the models that are ready.

        Raises:
            Unsupported: the server has no index.
            Unauthenticated, Unavailable, DeadlineExceeded: see `infer`.
        """
        return _run(self._models(timeout_s))

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready.

        Raises:
            Unavailable: it is not ready within `timeout_s` seconds.
        """
        _run(self._wait_ready(timeout_s))

    def call(
        self,
        path: str,
        message: bytes,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """Call a method of any gRPC service that takes and answers one message, with retries.

        Args:
            path: such as "/grpc.health.v1.Health/Check".
            message: the request, encoded.
            timeout_s: seconds for this call, instead of the client's.
            metadata: further headers of the call.

        Returns:
            The answer, encoded.

        Raises:
            ServingError: see `infer`.
        """
        return _run(self._unary(path, message, timeout_s, metadata))

    def call_many(
        self,
        path: str,
        messages: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[bytes]:
        """Call a method with several messages, a few of them in flight at once; see `call`.

        Returns:
            The answers, in the order of the messages.
        """
        return _run(self._unary_many(path, messages, timeout_s, metadata))

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

    async def _blocking(self, work: Callable[[], _Result]) -> _Result:
        return work()

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
        from serving.client.grpcio import GrpcioTransport  # late: grpcio takes 30 ms to import

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

    async def infer(
        self,
        model: str,
        inputs: object,
        *,
        version: str | int = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> Outputs:
        """Run any model of the server; see `Client.infer`."""
        return await self._infer(model, inputs, outputs, version, timeout_s, metadata, parameters)

    async def stream(
        self,
        model: str,
        inputs: object,
        *,
        version: str | int = "",
        outputs: Sequence[str] = (),
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
        parameters: Mapping[str, Any] | None = None,
    ) -> AsyncGenerator[Outputs, None]:
        """Yield the parts of the answer of a model that answers in parts; see `Client.stream`."""
        given = model, inputs, outputs, version, timeout_s, metadata, parameters
        async with aclosing(self._stream(*given)) as parts:
            async for part in parts:
                yield part

    async def describe(
        self, model: str, version: str | int = "", *, timeout_s: float | None = None
    ) -> ModelInfo:
        """Return a model's inputs and outputs, how it is run, and its limits."""
        return await self._describe(model, version, timeout_s)

    async def models(self, *, timeout_s: float | None = None) -> list[str]:
        """Return the names of the models that are ready; see `Client.models`."""
        return await self._models(timeout_s)

    async def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until the server is ready; see `Client.wait_ready`."""
        await self._wait_ready(timeout_s)

    async def call(
        self,
        path: str,
        message: bytes,
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> bytes:
        """Call a method of any gRPC service; see `Client.call`."""
        return await self._unary(path, message, timeout_s, metadata)

    async def call_many(
        self,
        path: str,
        messages: Iterable[bytes],
        *,
        timeout_s: float | None = None,
        metadata: Mapping[str, str] | None = None,
    ) -> list[bytes]:
        """Call a method with several messages; see `Client.call_many`."""
        return await self._unary_many(path, messages, timeout_s, metadata)

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

    async def _blocking(self, work: Callable[[], _Result]) -> _Result:
        return await asyncio.to_thread(work)

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
        from serving.client.grpcio import GrpcioLoopTransport  # late: grpcio takes 30 ms to import

        return GrpcioLoopTransport(self._target, self._credentials)
