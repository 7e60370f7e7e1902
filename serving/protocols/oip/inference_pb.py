"""The messages of the Open Inference Protocol, in a private descriptor pool.

Every client of the protocol (tritonclient, kserve, mlserver) registers the names of `package
inference` in protobuf's default pool, which accepts each name once per process. A generated module
would conflict with them. So the classes are built from the descriptor set that `make protos`
writes, in a pool of our own.
"""

import pkgutil
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

PACKAGE = "inference"
SERVICE = f"{PACKAGE}.GRPCInferenceService"

pool = descriptor_pool.DescriptorPool()
"""The pool with the protocol's file."""


def _load() -> None:
    data = pkgutil.get_data("serving.protocols", "pb/inference.binpb")
    assert data is not None
    for file in descriptor_pb2.FileDescriptorSet.FromString(data).file:
        pool.Add(file)


def _message(name: str) -> Any:
    return message_factory.GetMessageClass(pool.FindMessageTypeByName(f"{PACKAGE}.{name}"))


_load()
ModelConfigRequest = _message("ModelConfigRequest")
ModelConfigResponse = _message("ModelConfigResponse")
ModelInferRequest = _message("ModelInferRequest")
ModelInferResponse = _message("ModelInferResponse")
ModelMetadataRequest = _message("ModelMetadataRequest")
ModelMetadataResponse = _message("ModelMetadataResponse")
ModelReadyRequest = _message("ModelReadyRequest")
ModelReadyResponse = _message("ModelReadyResponse")
ModelStatistics = _message("ModelStatistics")
ModelStatisticsRequest = _message("ModelStatisticsRequest")
ModelStatisticsResponse = _message("ModelStatisticsResponse")
ModelStreamInferResponse = _message("ModelStreamInferResponse")
RepositoryIndexRequest = _message("RepositoryIndexRequest")
RepositoryIndexResponse = _message("RepositoryIndexResponse")
ServerLiveRequest = _message("ServerLiveRequest")
ServerLiveResponse = _message("ServerLiveResponse")
ServerMetadataRequest = _message("ServerMetadataRequest")
ServerMetadataResponse = _message("ServerMetadataResponse")
ServerReadyRequest = _message("ServerReadyRequest")
ServerReadyResponse = _message("ServerReadyResponse")
