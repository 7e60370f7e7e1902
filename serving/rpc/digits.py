"""The digits.v1.DigitClassifier service on grpc.aio: decode, submit, encode."""

from dataclasses import asdict

import grpc

from serving.classifier import Classifier
from serving.rpc import wire
from serving.rpc.calls import Calls, Context
from serving.rpc.pb.digits.v1 import digits_pb2

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
        pixels = wire.decode_request(request, self._classifier.batching.max_request_images)
        answer = await self._calls.answer(pixels, context)
        return wire.encode_response(answer.digits, answer.probabilities, answer.batch.model.version)

    async def get_model(self, request: bytes, context: Context) -> bytes:
        """Tell what is being served; the request holds nothing and is not read."""
        info = asdict(self._classifier.model_info()) | {"transport": self._transport}
        return digits_pb2.GetModelResponse(**info).SerializeToString()

    def handlers(self) -> grpc.GenericRpcHandler:
        """Map the service's methods to this servicer, bytes in and bytes out."""
        methods = {"Classify": self.classify, "GetModel": self.get_model}
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                name: grpc.unary_unary_rpc_method_handler(self._calls.guarded(method))
                for name, method in methods.items()
            },
        )
