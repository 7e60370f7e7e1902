"""Server reflection, for grpcurl and similar tools.

Loaded only with `--reflection`, since it lists all methods to every caller.
"""

from collections.abc import Iterable, Mapping
from typing import Any

from google.protobuf import descriptor_pb2, descriptor_pool
from grpc_health.v1 import health_pb2
from grpc_reflection.v1alpha import reflection, reflection_pb2

from serving.oip import inference_pb
from serving.protocols import health, parse
from serving.protocols.method import Method, Replies

SERVICES = (reflection.SERVICE_NAME, "grpc.reflection.v1.ServerReflection")
"""Version 1 has the same messages under another name; newer clients try it first."""

_LISTED = (inference_pb.SERVICE, health.SERVICE, reflection.SERVICE_NAME)


def reflection_methods(others: Mapping[str, Any]) -> list[Method]:
    """Return the method of both versions, answered by the packaged servicer.

    Args:
        others: services beside the protocol's, and the description of the file of each.
    """
    servicer = reflection.ReflectionServicer(
        (*others, *_LISTED), pool=_Pool(_pool(others.values()))
    )

    def replies(request: bytes) -> Iterable[bytes]:
        message = parse(reflection_pb2.ServerReflectionRequest, request)
        for response in servicer.ServerReflectionInfo(iter((message,)), None):
            yield response.SerializeToString()

    return [
        Replies(path=f"/{service}/ServerReflectionInfo", name="other", replies=replies)
        for service in SERVICES
    ]


class _Pool:
    """A pool that also finds methods' files by their full names, as protobuf's does not."""

    def __init__(self, pool: descriptor_pool.DescriptorPool) -> None:
        self._pool = pool

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)

    def FindFileContainingSymbol(self, symbol: str) -> Any:  # noqa: N802 - protobuf's name
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            service, _, method = symbol.rpartition(".")
            found: Any = self._pool.FindServiceByName(service).methods_by_name[method]
            return found.containing_service.file


def _pool(others: Iterable[Any]) -> descriptor_pool.DescriptorPool:
    """Copy every service's file into one pool, since `inference` has a private one."""
    pool = descriptor_pool.DescriptorPool()
    for file in (
        *others,
        inference_pb.pool.FindServiceByName(inference_pb.SERVICE).file,
        health_pb2.DESCRIPTOR,
        reflection_pb2.DESCRIPTOR,
    ):
        proto = descriptor_pb2.FileDescriptorProto()
        file.CopyToProto(proto)
        pool.Add(proto)
    return pool
