"""grpc.health.v1: NOT_SERVING until the server is ready, and again once it drains.

Not the packaged servicer: it starts as SERVING, and stops updating the other watchers once one
leaves (grpc #43403). Its messages are used.
"""

import threading
from collections.abc import Callable, Container, Iterable, Mapping
from types import MappingProxyType

from grpc_health.v1 import health_pb2

from serving.errors import ModelNotFound
from serving.protocols import parse
from serving.protocols.method import Method, Unary, Watch

SERVICE = "grpc.health.v1.Health"
_States = health_pb2.HealthCheckResponse


class Health:
    """The states of the server, its services and its models; safe to use from any thread."""

    def __init__(
        self,
        services: Mapping[str, Callable[[], str]] = MappingProxyType({}),
        models: Callable[[], Container[str]] = tuple,
        missing: Callable[[], Container[str]] = tuple,
    ) -> None:
        """Start as NOT_SERVING.

        Args:
            services: known names beside "", the server as a whole; each with a function that
                returns the model that it depends on, or "".
            models: returns the names of the models, which are known, too.
            missing: returns the names of those that should be served and are not: NOT_SERVING.
        """
        self._services: dict[str, Callable[[], str]] = {"": str, **services}
        self._models, self._missing = models, missing
        self._lock = threading.Lock()
        self._watchers: dict[object, tuple[str, Callable[[bytes], None]]] = {}
        self._sent: dict[object, bytes] = {}
        """The last state that each watcher got: only changes are sent."""
        self.is_serving = False
        """Whether the server as a whole is well, and does not drain."""
        self.stuck_models: frozenset[str] = frozenset()
        """The models that do not answer, or wrongly."""
        self.blocked_models: frozenset[str] = frozenset()
        """The models that are not run for now, since their runs have ended processes."""

    def set_serving(self, is_serving: bool) -> None:
        """Change the state; watchers get it if theirs is another one."""
        with self._lock:
            self.is_serving = is_serving
            self._send_all()

    def set_stuck(self, models: Iterable[str]) -> None:
        """Change which models do not answer; watchers get it if it is another set."""
        with self._lock:
            before, self.stuck_models = self.stuck_models, frozenset(models)
            if self.stuck_models != before:
                self._send_all()

    def set_blocked(self, models: Iterable[str]) -> None:
        """Change which models are not run for now; watchers get it if it is another set."""
        with self._lock:
            before, self.blocked_models = self.blocked_models, frozenset(models)
            if self.blocked_models != before:
                self._send_all()

    def is_model_serving(self, name: str) -> bool:
        """Return whether a model is well, and the server."""
        is_well = name not in self.stuck_models | self.blocked_models
        return self.is_serving and is_well and name not in self._missing()

    def _send_all(self) -> None:
        for key, (service, send) in self._watchers.items():
            response = self._response(service)
            if self._sent[key] != response:
                self._sent[key] = response
                send(response)

    def methods(self) -> list[Method]:
        """Return the methods Check and Watch, which probes call without a token."""
        return [
            Unary(path=f"/{SERVICE}/Check", name="Check", answer=self._check, is_open=True),
            Watch(path=f"/{SERVICE}/Watch", name="Watch", subscribe=self._watch, is_open=True),
        ]

    def _check(self, request: bytes) -> bytes:
        service = _service_in(request)
        if not self._is_known(service):
            raise ModelNotFound("unknown service")  # NOT_FOUND, as the protocol says
        return self._response(service)

    def _watch(self, request: bytes, send: Callable[[bytes], None]) -> Callable[[], None]:
        """Send the state now and after every change; SERVICE_UNKNOWN for an unknown service."""
        service, key = _service_in(request), object()
        with self._lock:
            self._watchers[key] = (service, send)
            self._sent[key] = response = self._response(service)
            send(response)
        return lambda: self._forget(key)

    def _forget(self, key: object) -> None:
        with self._lock:
            self._watchers.pop(key, None)
            self._sent.pop(key, None)

    def _response(self, service: str) -> bytes:
        model_of = self._services.get(service)
        is_serving = self.is_model_serving(service if model_of is None else model_of())
        state = _States.SERVING if is_serving else _States.NOT_SERVING
        if not self._is_known(service):
            state = _States.SERVICE_UNKNOWN
        data: bytes = _States(status=state).SerializeToString()
        return data

    def _is_known(self, service: str) -> bool:
        return service in self._services or service in self._models() or service in self._missing()


def _service_in(request: bytes) -> str:
    service: str = parse(health_pb2.HealthCheckRequest, request).service
    return service
