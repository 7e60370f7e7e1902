"""The digits.v1.DigitClassifier service on grpc.aio: decode, submit, encode."""

from collections.abc import AsyncIterator
from dataclasses import asdict

import grpc

from serving.classifier import Classifier
from serving.rpc.calls import AsyncCall, Calls, Context
from serving.rpc.classify import Classify
from serving.rpc.pb.digits.v1 import digits_pb2
from serving.rpc.streams import answer_stream, submit_patiently
from serving.rpc.unary import Question

SERVICE = "digits.v1.DigitClassifier"


class DigitsServicer:
    """Answers with raw bytes: see `wire` for why."""

    def __init__(
        self, classifier: Classifier, classify: Classify, calls: Calls, transport: str
    ) -> None:
        """Serve a classifier through `calls`; `transport` is told by GetModel."""
        self._classifier = classifier
        self._classify = classify
        self._calls = calls
        self._transport = transport

    async def classify_stream(self, requests: AsyncIterator[bytes], context: Context) -> None:
        """Answer ClassifyRequests in their order; a bad one ends the stream with its status."""

        async def begin(request: bytes) -> tuple[Question, AsyncCall]:
            question = self._classify.read(request)
            call = AsyncCall(self._calls, question, context)
            await submit_patiently(lambda: self._calls.submit(call))
            return question, call

        async def finish(begun: tuple[Question, AsyncCall]) -> bytes:
            question, call = begun
            return self._classify.write(question, call, await self._calls.outcome(call))

        def cancel(begun: tuple[Question, AsyncCall]) -> None:
            self._calls.cancel(begun[1])

        await answer_stream(requests, context, begin, finish, cancel)

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
                "Classify": unary(self._calls.unary(self._classify)),
                "ClassifyStream": grpc.stream_stream_rpc_method_handler(
                    guarded(self.classify_stream, "ClassifyStream")
                ),
                "GetModel": unary(guarded(self.get_model, "GetModel")),
            },
        )
