"""grpc.health.v1: NOT_SERVING until the server is ready, and again once it drains.

Our own few lines around the packaged messages: the packaged servicer starts out SERVING, and stops
updating the other watchers once one leaves (grpc #43403).
"""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

Context = grpc.aio.ServicerContext[Any, Any]


class HealthServicer(health_pb2_grpc.HealthServicer):  # type: ignore[misc]
    """Tells one state for the whole server and every service in it."""

    def __init__(self, services: tuple[str, ...]) -> None:
        """Start NOT_SERVING; "" (the server as a whole) and `services` are known names."""
        self._services = frozenset(("", *services))
        self._is_serving = False
        self._changed = asyncio.Event()

    @property
    def is_serving(self) -> bool:
        """Whether it tells SERVING; may be asked from any thread."""
        return self._is_serving

    def set_serving(self, is_serving: bool) -> None:
        """Change the state and tell every watcher."""
        self._is_serving = is_serving
        self._changed.set()
        self._changed = asyncio.Event()

    async def Check(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> health_pb2.HealthCheckResponse:
        """Answer with the state; NOT_FOUND for an unknown service, as the protocol says."""
        if request.service not in self._services:
            await context.abort(grpc.StatusCode.NOT_FOUND, "unknown service")
        return self._response(request.service)

    async def Watch(  # noqa: N802 - gRPC's name
        self, request: health_pb2.HealthCheckRequest, context: Context
    ) -> AsyncIterator[health_pb2.HealthCheckResponse]:
        """Send the state now and at every change; SERVICE_UNKNOWN for an unknown service."""
        while True:
            changed = self._changed
            yield self._response(request.service)
            await changed.wait()

    def _response(self, service: str) -> health_pb2.HealthCheckResponse:
        states = health_pb2.HealthCheckResponse
        if service not in self._services:
            return states(status=states.SERVICE_UNKNOWN)
        return states(status=states.SERVING if self._is_serving else states.NOT_SERVING)
