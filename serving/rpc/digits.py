"""The digits.v1.DigitClassifier service on grpc.aio: decode, submit, encode."""

from dataclasses import asdict
from typing import Any

import grpc

from serving.classifier import Classifier
from serving.rpc import wire
from serving.rpc.calls import Calls
from serving.rpc.pb.digits.v1 import digits_pb2
from serving.rpc.status import guarded

SERVICE = "digits.v1.DigitClassifier"

Context = grpc.aio.ServicerContext[Any, Any]


class DigitsServicer:
    """Answers with raw bytes: see `wire` for why."""

    def __init__(self, classifier: Classifier, transport: str) -> None:
        """Serve a classifier on the running event loop; `transport` is told by GetModel."""
        self._classifier = classifier
        self._calls = Calls(classifier.batcher)
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
        return grpc.method_handlers_generic_handler(
            SERVICE,
            {
                "Classify": grpc.unary_unary_rpc_method_handler(guarded(self.classify)),
                "GetModel": grpc.unary_unary_rpc_method_handler(guarded(self.get_model)),
            },
        )
