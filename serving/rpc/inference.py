"""The inference.GRPCInferenceService (Open Inference Protocol v2) on grpc.aio."""

from typing import Any

import grpc
from grpc_health.v1 import health_pb2

from serving.classifier import Classifier
from serving.errors import ModelNotFound
from serving.rpc import catalog, inference_pb
from serving.rpc.calls import Calls, Context
from serving.rpc.health import HealthServicer
from serving.rpc.infer import ModelInfer
from serving.rpc.infer_stream import ModelStreamInfer
from serving.rpc.inference_pb import parse

SERVICE = inference_pb.SERVICE


class InferenceServicer:
    """Takes and gives bytes: a message that can't be parsed is then refused with our own words."""

    def __init__(
        self, classifier: Classifier, infer: ModelInfer, calls: Calls, health: HealthServicer
    ) -> None:
        """Serve a classifier through `calls`; it is ready when `health` says so."""
        self._classifier = classifier
        self._calls = calls
        self._health = health
        self._infer = infer

    async def server_live(self, request: bytes, context: Context) -> bytes:
        """Answer at all."""
        return _bytes(inference_pb.ServerLiveResponse(live=True))

    async def server_ready(self, request: bytes, context: Context) -> bytes:
        """Tell whether new work is accepted."""
        return _bytes(inference_pb.ServerReadyResponse(ready=await self._is_ready(context)))

    async def model_ready(self, request: bytes, context: Context) -> bytes:
        """Tell whether a model accepts work; one that is not here does not."""
        message = parse(inference_pb.ModelReadyRequest, request)
        try:
            self._check_model(message.name, message.version)
            is_ready = await self._is_ready(context)
        except ModelNotFound:
            is_ready = False
        return _bytes(inference_pb.ModelReadyResponse(ready=is_ready))

    async def server_metadata(self, request: bytes, context: Context) -> bytes:
        """Name the server, its version and its extensions."""
        return _bytes(catalog.server_metadata())

    async def model_metadata(self, request: bytes, context: Context) -> bytes:
        """Describe the tensors."""
        message = parse(inference_pb.ModelMetadataRequest, request)
        self._check_model(message.name, message.version)
        return _bytes(catalog.model_metadata(self._classifier.model_info()))

    async def model_config(self, request: bytes, context: Context) -> bytes:
        """Describe how the model is run."""
        message = parse(inference_pb.ModelConfigRequest, request)
        self._check_model(message.name, message.version)
        info = self._classifier.model_info()
        return _bytes(catalog.model_config(info, self._classifier.batching))

    async def model_statistics(self, request: bytes, context: Context) -> bytes:
        """Tell what was counted; an empty name asks for all models, which is one."""
        message = parse(inference_pb.ModelStatisticsRequest, request)
        info = self._classifier.model_info()
        self._check_model(message.name or info.name, message.version)
        statistics = self._infer.statistics.message(info.name, info.version)
        return _bytes(inference_pb.ModelStatisticsResponse(model_stats=[statistics]))

    async def repository_index(self, request: bytes, context: Context) -> bytes:
        """List what is served."""
        message = parse(inference_pb.RepositoryIndexRequest, request)
        info, is_ready = self._classifier.model_info(), await self._is_ready(context)
        return _bytes(catalog.repository_index(info, is_ready=is_ready, only_ready=message.ready))

    def handlers(self) -> grpc.GenericRpcHandler:
        """Map the service's methods to this servicer, bytes in and bytes out.

        What is not named here is answered UNIMPLEMENTED.
        """
        guarded = self._calls.guarded
        methods = {
            "ServerLive": self.server_live,
            "ServerReady": self.server_ready,
            "ServerMetadata": self.server_metadata,
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }
        unary: dict[str, grpc.RpcMethodHandler[Any, Any]] = {
            name: grpc.unary_unary_rpc_method_handler(guarded(method, name))
            for name, method in methods.items()
        }
        unary["ModelInfer"] = grpc.unary_unary_rpc_method_handler(self._calls.unary(self._infer))
        stream_infer = ModelStreamInfer(self._infer, self._calls)
        stream: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            guarded(stream_infer.__call__, "ModelStreamInfer")
        )
        return grpc.method_handlers_generic_handler(SERVICE, unary | {"ModelStreamInfer": stream})

    def _check_model(self, name: str, version: str) -> None:
        catalog.check_model(name, version, self._classifier.model_info())

    async def _is_ready(self, context: Context) -> bool:
        health = await self._health.Check(health_pb2.HealthCheckRequest(), context)
        is_serving: bool = health.status == health_pb2.HealthCheckResponse.SERVING
        return is_serving


def _bytes(message: Any) -> bytes:
    data: bytes = message.SerializeToString()
    return data
