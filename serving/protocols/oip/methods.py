"""The methods of inference.GRPCInferenceService (Open Inference Protocol v2)."""

from collections.abc import Callable
from typing import Any

from serving.classifier import Classifier
from serving.errors import ModelNotFound
from serving.protocols.health import Health
from serving.protocols.messages import parse
from serving.protocols.method import ImagesStream, ImagesUnary, Method, Unary
from serving.protocols.oip import inference_pb, metadata
from serving.protocols.oip.infer import Infer
from serving.protocols.oip.statistics import Statistics

SERVICE = inference_pb.SERVICE


def inference_methods(classifier: Classifier, queries: "Queries") -> list[Method]:
    """Return the service's methods; all others are UNIMPLEMENTED."""
    infer = Infer(classifier, queries.statistics)
    stream = Infer(classifier, queries.statistics, is_stream=True)
    return [
        ImagesUnary(path=f"/{SERVICE}/ModelInfer", name="ModelInfer", read=infer.read,
                    layouts=infer.layouts, note_failure=infer.note_failure),
        ImagesStream(path=f"/{SERVICE}/ModelStreamInfer", name="ModelStreamInfer",
                     read=stream.read, layouts=stream.layouts, note_failure=stream.note_failure,
                     error_message=stream.error_message),
        *(Unary(path=f"/{SERVICE}/{name}", name=name, answer=_encoded(answer))
          for name, answer in queries.answers.items()),
    ]  # fmt: skip


def _encoded(answer: Callable[[bytes], Any]) -> Callable[[bytes], bytes]:
    return lambda request: answer(request).SerializeToString()


class Queries:
    """Answers queries about the server and its model."""

    def __init__(self, classifier: Classifier, health: Health) -> None:
        """Answer about `classifier` and its health."""
        self.statistics = Statistics()
        """Counts the protocol's requests."""
        self._classifier = classifier
        self._health = health
        self.answers: dict[str, Callable[[bytes], Any]] = {
            "ServerLive": lambda _: inference_pb.ServerLiveResponse(live=True),
            "ServerReady": lambda _: inference_pb.ServerReadyResponse(ready=health.is_serving),
            "ServerMetadata": lambda _: metadata.server_metadata(),
            "ModelReady": self.model_ready,
            "ModelMetadata": self.model_metadata,
            "ModelConfig": self.model_config,
            "ModelStatistics": self.model_statistics,
            "RepositoryIndex": self.repository_index,
        }

    def model_ready(self, request: bytes) -> Any:
        """Return whether a model is ready; an unknown one is not."""
        message = parse(inference_pb.ModelReadyRequest, request)
        try:
            self._check_model(message.name, message.version)
        except ModelNotFound:
            return inference_pb.ModelReadyResponse(ready=False)
        return inference_pb.ModelReadyResponse(ready=self._health.is_serving)

    def model_metadata(self, request: bytes) -> Any:
        """Return the tensors' names, types and shapes."""
        message = parse(inference_pb.ModelMetadataRequest, request)
        self._check_model(message.name, message.version)
        return metadata.model_metadata(self._classifier.model_info())

    def model_config(self, request: bytes) -> Any:
        """Return the model's configuration."""
        message = parse(inference_pb.ModelConfigRequest, request)
        self._check_model(message.name, message.version)
        return metadata.model_config(self._classifier.model_info(), self._classifier.batching)

    def model_statistics(self, request: bytes) -> Any:
        """Return the statistics; an empty name means all models, of which there is one."""
        message = parse(inference_pb.ModelStatisticsRequest, request)
        info = self._classifier.model_info()
        self._check_model(message.name or info.name, message.version)
        statistics = self.statistics.message(info.name, info.version)
        return inference_pb.ModelStatisticsResponse(model_stats=[statistics])

    def repository_index(self, request: bytes) -> Any:
        """Return the served models."""
        message = parse(inference_pb.RepositoryIndexRequest, request)
        info, is_ready = self._classifier.model_info(), self._health.is_serving
        return metadata.repository_index(info, is_ready=is_ready, only_ready=message.ready)

    def _check_model(self, name: str, version: str) -> None:
        metadata.check_model(name, version, self._classifier.model_info())
