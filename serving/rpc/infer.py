"""ModelInfer and ModelStreamInfer: decode, submit, encode, count."""

import time
from collections.abc import AsyncIterator
from typing import Any

from serving.classifier import Classifier
from serving.errors import DigitsError, ModelNotFound, Unavailable
from serving.requests import Answer
from serving.rpc import catalog, tensors
from serving.rpc.calls import AsyncCall, Calls, Context
from serving.rpc.inference_pb import ModelInferRequest, ModelStreamInferResponse, parse
from serving.rpc.statistics import Statistics
from serving.rpc.streams import answer_stream, submit_patiently
from serving.rpc.tensors import Inference


class Inferences:
    """Answers ModelInferRequests for the servicer, and keeps its statistics."""

    def __init__(self, classifier: Classifier, calls: Calls) -> None:
        """Serve a classifier through `calls`."""
        self.statistics = Statistics()
        self._classifier = classifier
        self._calls = calls

    async def model_infer(self, request: bytes, context: Context) -> bytes:
        """Answer one ModelInferRequest."""
        received_s = time.monotonic()
        try:
            call = self._read(parse(ModelInferRequest, request), context, received_s)
            self._calls.submit(call)
            answer = await self._calls.outcome(call)
        except DigitsError as err:
            self._count_failure(err, received_s)
            raise
        response: bytes = self._response(call, answer).SerializeToString()
        return response

    async def model_stream_infer(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer ModelInferRequests in their order.

        A bad one is answered with an error_message, and the stream goes on. A full queue only
        slows it down.

        Raises:
            Unavailable: the server drains; what was accepted before is answered.
        """

        async def begin(data: bytes) -> _Item:
            return await self._begin(data, context)

        await answer_stream(requests, context, begin, self._finish, self._cancel)

    async def _begin(self, data: bytes, context: Context) -> "_Item":
        item = _Item()
        try:
            request = parse(ModelInferRequest, data)
            item.id = request.id[: tensors.MAX_ID_CHARACTERS]
            call = self._read(request, context, item.received_s)
            await submit_patiently(lambda: self._calls.submit(call))
            item.call = call
        except DigitsError as err:
            item.error = err
        return item

    async def _finish(self, item: "_Item") -> bytes:
        try:
            if item.call is None:
                raise item.error
            response = self._response(item.call, await self._calls.outcome(item.call))
            fields = {"infer_response": response}
        except DigitsError as err:
            self._count_failure(err, item.received_s)
            if isinstance(err, Unavailable):
                raise
            # With the id, so that the caller knows which of its requests this was.
            fields = {"error_message": str(err), "infer_response": {"id": item.id}}
        data: bytes = ModelStreamInferResponse(**fields).SerializeToString()
        return data

    def _cancel(self, item: "_Item") -> None:
        if item.call is not None:
            self._calls.cancel(item.call)

    def _read(self, request: Any, context: Context, received_s: float) -> "_InferCall":
        info = self._classifier.model_info()
        catalog.check_model(request.model_name, request.model_version, info)
        inference = tensors.decode(request, self._classifier.batching.max_request_images)
        return _InferCall(self._calls, inference, context, received_s)

    def _response(self, call: "_InferCall", answer: Answer) -> Any:
        answered_s = time.monotonic()
        name = self._classifier.model_info().name
        response = tensors.encode(call.inference, answer, name)
        moments_s = (call.received_s, call.decoded_s, answered_s, time.monotonic())
        self.statistics.count_success(call, answer, moments_s)
        return response

    def _count_failure(self, error: DigitsError, received_s: float) -> None:
        if not isinstance(error, ModelNotFound):  # that was for another model
            self.statistics.count_failure(self._classifier.model_info().version, received_s)


class _InferCall(AsyncCall):
    """A call with what it asked for and when."""

    __slots__ = ("decoded_s", "inference", "received_s")

    def __init__(
        self, calls: Calls, inference: Inference, context: Context, received_s: float
    ) -> None:
        super().__init__(calls, memoryview(inference.pixels), context)
        self.inference = inference
        self.received_s = received_s
        self.decoded_s = time.monotonic()
        if inference.timeout_s is not None:
            self.deadline_s = min(self.deadline_s, self.decoded_s + inference.timeout_s)

    def resolve(self, answer: Answer) -> None:
        """See `Request`."""
        self.inference.pixels = b""  # the same images: `AsyncCall` drops its own
        super().resolve(answer)


class _Item:
    """One message of a stream: accepted, or refused already."""

    __slots__ = ("call", "error", "id", "received_s")

    def __init__(self) -> None:
        self.received_s = time.monotonic()
        self.id = ""
        self.call: _InferCall | None = None
        self.error: DigitsError
