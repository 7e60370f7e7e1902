"""What no service has a method for: UNIMPLEMENTED as from gRPC itself, but counted."""

from typing import Any

import grpc

from serving.telemetry.metrics import Metrics
from serving.transports.grpcio.calls import Context


class UnknownMethods(grpc.GenericRpcHandler):
    """Takes every call, so it comes after all other handlers."""

    def __init__(self, metrics: Metrics) -> None:
        """Count under the method "other": a caller's names must not become labels."""
        self._metrics = metrics
        # A stream's handler ends any kind of call without waiting for its request.
        self._handler: grpc.RpcMethodHandler[Any, Any] = grpc.stream_stream_rpc_method_handler(
            self._refuse
        )

    def service(
        self, handler_call_details: grpc.HandlerCallDetails
    ) -> "grpc.RpcMethodHandler[Any, Any]":
        """See `grpc.GenericRpcHandler`."""
        return self._handler

    async def _refuse(self, requests: Any, context: Context) -> None:
        self._metrics.count("other", grpc.StatusCode.UNIMPLEMENTED.name)
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, "unknown method")
