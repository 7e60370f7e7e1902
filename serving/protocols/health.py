"""grpc.health.v1: NOT_SERVING until the server is ready, and again once it drains.

Not the packaged servicer: it starts as SERVING, and stops updating the other watchers once one
leaves (grpc #43403). Its messages are used.
"""

import threading
from collections.abc import Callable

from grpc_health.v1 import health_pb2

from serving.errors import ModelNotFound
from serving.protocols.messages import parse
from serving.protocols.method import Method, Unary, Watch

SERVICE = "grpc.health.v1.Health"
_States = health_pb2.HealthCheckResponse


class Health:
    """One state for the whole server and every service in it; safe to use from any thread."""

    def __init__(self, services: tuple[str, ...]) -> None:
        """Start as NOT_SERVING; known names are "", the server as a whole, and `services`."""
        self._services = frozenset(("", *services))
        self._lock = threading.Lock()
        self._watchers: dict[object, tuple[str, Callable[[bytes], None]]] = {}
        self.is_serving = False

    def set_serving(self, is_serving: bool) -> None:
        """Change the state and send it to every watcher."""
        with self._lock:
            self.is_serving = is_serving
            for service, send in self._watchers.values():
                send(self._response(service))

    def methods(self) -> list[Method]:
        """Return the methods Check and Watch, which probes call without a token."""
        return [
            Unary(path=f"/{SERVICE}/Check", name="Check", answer=self._check, is_open=True),
            Watch(path=f"/{SERVICE}/Watch", name="Watch", subscribe=self._watch, is_open=True),
        ]

    def _check(self, request: bytes) -> bytes:
        service = _service_in(request)
        if service not in self._services:
            raise ModelNotFound("unknown service")  # NOT_FOUND, as the protocol says
        return self._response(service)

    def _watch(self, request: bytes, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Send the state now and after every change; SERVICE_UNKNOWN for an unknown service."""
        service, key = _service_in(request), object()
        with self._lock:
            self._watchers[key] = (service, send)
            send(self._response(service))
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        with self._lock:
            self._watchers.pop(key, None)

    def _response(self, service: str) -> bytes:
        state = _States.SERVING if self.is_serving else _States.NOT_SERVING
        if service not in self._services:
            state = _States.SERVICE_UNKNOWN
        data: bytes = _States(status=state).SerializeToString()
        return data


def _service_in(request: bytes) -> str:
    service: str = parse(health_pb2.HealthCheckRequest, request).service
    return service
