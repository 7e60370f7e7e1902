"""The digits.v1.DigitClassifier service on grpc.aio: decode, submit, encode."""

from collections.abc import AsyncIterator
from dataclasses import asdict

import grpc

from serving.classifier import Classifier
from serving.requests import Answer
from serving.rpc import wire
from serving.rpc.calls import AsyncCall, Calls, Context
from serving.rpc.pb.digits.v1 import digits_pb2
from serving.rpc.streams import answer_stream, submit_patiently

SERVICE = "digits.v1.DigitClassifier"


class DigitsServicer:
    """Answers with raw bytes: see `wire` for why."""

    def __init__(self, classifier: Classifier, calls: Calls, transport: str) -> None:
        """Serve a classifier through `calls`; `transport` is told by GetModel."""
        self._classifier = classifier
        self._calls = calls
        self._transport = transport

    async def classify(self, request: bytes, context: Context) -> bytes:
        """Answer one ClassifyRequest."""
        return self._encode(await self._calls.answer(self._decode(request), context))

    async def classify_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer ClassifyRequests in their order; a bad one ends the stream with its status."""

        async def begin(request: bytes) -> AsyncCall:
            call = AsyncCall(self._calls, self._decode(request), context)
            await submit_patiently(lambda: self._calls.submit(call))
            return call

        async def finish(call: AsyncCall) -> bytes:
            return self._encode(await self._calls.outcome(call))

        await answer_stream(requests, context, begin, finish, self._calls.cancel)

    async def get_model(self, request: bytes, context: Context) -> bytes:
        """Tell what is being served; the request holds nothing and is not read."""
        info = asdict(self._classifier.model_info()) | {"transport": self._transport}
        return digits_pb2.GetModelResponse(**info).SerializeToString()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Map the service's methods to this servicer, bytes in and bytes out."""
        unary, guarded = grpc.unary_unary_rpc_method_handler, self._calls.guarded
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Classify": unary(guarded(self.classify, "Classify")),
                "ClassifyStream": grpc.stream_stream_rpc_method_handler(
                    guarded(self.classify_stream, "ClassifyStream")
                ),
                "GetModel": unary(guarded(self.get_model, "GetModel")),
            },
        )

    def _decode(self, request: bytes) -> bytes | memoryview:
        return wire.decode_request(request, self._classifier.batching.max_request_images)

    def _encode(self, answer: Answer) -> bytes:
        return wire.encode_response(answer.digits, answer.probabilities, answer.batch.model.version)
