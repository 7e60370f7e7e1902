"""The digits.v1.DigitClassifier service on grpc.aio: decode, submit, encode."""

from dataclasses import asdict
from functools import partial

import grpc

from serving.classifier import Classifier
from serving.rpc.calls import AsyncCall, Caller, Calls, Context
from serving.rpc.classify import Classify
from serving.rpc.pb.digits.v1 import digits_pb2
from serving.rpc.streams import Begun, answer_stream

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

    async def classify_stream(self, _: object, context: Context) -> None:
        """Answer ClassifyRequests in their order; a bad one ends the stream with its status."""
        caller = Caller.of(context)

        def begin(request: bytes) -> Begun:
            call = AsyncCall(self._calls, self._classify.read(request), caller)
            return call, partial(self._response, call)

        await answer_stream(self._calls, context, begin)

    def _response(self, call: AsyncCall) -> bytes:
        return self._classify.write(call.question, call, call.result())

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
