"""Access lines: the record of each call, as a log line and as a span."""

import logging
import random
import re
import secrets
import time
from collections.abc import Mapping
from urllib.parse import unquote

from serving.batching.run import NEVER
from serving.config import ServerConfig
from serving.protocols.status import StatusCode
from serving.telemetry.logs import ACCESS, REQUEST_ID
from serving.telemetry.traces import Tracer

_log = logging.getLogger(ACCESS)
_MAX_LINES_PER_S = 100
"""More lines in a second are dropped; the metrics still count the calls."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context: version, trace id, parent id, flags."""
_CONTEXT = ("traceparent", "tracestate")
_HEALTH = ("/grpc.health.", "GET /v2/health/")
"""Probes come each second: they would be most of the spans."""
_SERVER_FAILED = (
    "UNKNOWN", "DEADLINE_EXCEEDED", "UNIMPLEMENTED", "INTERNAL", "UNAVAILABLE", "DATA_LOSS",
)  # fmt: skip
"""Statuses that make a server's span an error, by OpenTelemetry's conventions."""


class LoggedCall:
    """A call in progress, and the fields of its line and span."""

    __slots__ = ("begun_s", "context", "ids", "method", "peer", "route", "run")

    def __init__(self, method: str, peer: str, metadata: Mapping[str, str]) -> None:
        """Start the call's clock.

        Args:
            method: the path, such as "/inference.GRPCInferenceService/ModelInfer"; over HTTP
                "POST /v2/models/iris/infer".
            peer: the caller's address as gRPC writes it: "ipv4:127.0.0.1:50051".
            metadata: the call's headers; malformed ids in them are ignored.
        """
        self.method = method
        self.peer = peer
        self.ids = _ids(metadata)
        """`request_id`: the caller's `x-request-id`, or a new one; and `trace_id` and `parent_id`
        if it sent a `traceparent`."""
        self.context = {name: metadata[name] for name in _CONTEXT if name in metadata}
        """The headers that name the caller's span."""
        self.begun_s = time.monotonic()
        self.route = ""
        """The path of a call over HTTP, such as "/v2/models/{name}/infer"."""
        self.run = NEVER
        """The last run that answered it."""


class AccessLog:
    """Records calls; used by one thread."""

    def __init__(self, share: float, tracer: Tracer | None = None) -> None:
        """Log `share` of the calls that succeed, 0 to 1, and all that fail; nothing if it is 0.

        Args:
            share: of the calls that succeed.
            tracer: gets every call; None if there are no traces.
        """
        self._share = share
        self._tracer = tracer
        self._second = 0
        self._num_lines = 0

    def begin(self, method: str, peer: str, metadata: Mapping[str, str]) -> LoggedCall:
        """Start the record of a call; see `LoggedCall`."""
        return LoggedCall(method, peer, metadata)

    def end(self, call: LoggedCall, status: str, http_status: int | None = None) -> None:
        """Record a call that has ended.

        Args:
            call: the call.
            status: the gRPC status code's name, such as "OK".
            http_status: of a call over HTTP.
        """
        if self._tracer is not None and not call.method.startswith(_HEALTH):
            self._trace(self._tracer, call, status, http_status)
        if not self._share or (status == "OK" and random.random() >= self._share):
            return
        if not self._has_room():
            return
        fields = {
            "method": call.method,
            "status": status,
            "duration_s": round(time.monotonic() - call.begun_s, 6),
            "peer": call.peer,
            **call.ids,
        }
        _log.info("call", extra={"fields": fields})

    def _trace(
        self, tracer: Tracer, call: LoggedCall, status: str, http_status: int | None
    ) -> None:
        attributes: dict[str, str | int] = {"request_id": call.ids["request_id"]}
        host, _, port = unquote(call.peer.partition(":")[2]).rpartition(":")
        if host:
            attributes |= {"network.peer.address": host.strip("[]"), "network.peer.port": int(port)}
        if http_status is None:
            name = call.method.removeprefix("/")
            service, _, method = name.rpartition("/")
            code = StatusCode[status].value
            attributes |= {
                "rpc.system": "grpc",
                "rpc.service": service,
                "rpc.method": method,
                "rpc.grpc.status_code": code,
            }
        else:
            method, _, path = call.method.partition(" ")
            name = f"{method} {call.route}".rstrip()
            attributes |= {
                "http.request.method": method,
                "url.path": path,
                "http.route": call.route,
                "http.response.status_code": http_status,
            }
        is_error = status in _SERVER_FAILED
        tracer.record(name, call.begun_s, call.context, attributes, call.run, is_error=is_error)

    def close(self) -> None:
        """Send the spans that are left."""
        if self._tracer is not None:
            self._tracer.close()

    def _has_room(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._num_lines = second, 0
        self._num_lines += 1
        return self._num_lines <= _MAX_LINES_PER_S


def _ids(metadata: Mapping[str, str]) -> dict[str, str]:
    request_id = metadata.get(REQUEST_ID, "")
    if not _REQUEST_ID.fullmatch(request_id):
        request_id = secrets.token_hex(8)
    ids = {"request_id": request_id}
    if trace := _TRACEPARENT.fullmatch(metadata.get("traceparent", "")):
        ids |= {"trace_id": trace[1], "parent_id": trace[2]}
    return ids


def open_access_log(config: ServerConfig) -> AccessLog | None:
    """Return the recorder of calls; None if there is none.

    Raises:
        ConfigurationError: see `Tracer`.
    """
    if not config.otlp_endpoint and not config.access_log:
        return None
    tracer = Tracer(config.otlp_endpoint) if config.otlp_endpoint else None
    return AccessLog(config.access_log, tracer)
