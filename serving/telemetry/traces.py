"""Traces: a span for each call, sent to a collector by OpenTelemetry."""

import time
from collections.abc import Mapping, Sequence
from typing import Any

from serving.batching.run import NEVER, Ran
from serving.commandline.installation import not_installed
from serving.errors import ConfigurationError

_FLUSH_MS = 3_000


class Tracer:
    """Makes a span for each call, and sends them from a thread of its own.

    OTEL_SERVICE_NAME, OTEL_RESOURCE_ATTRIBUTES, OTEL_TRACES_SAMPLER, OTEL_EXPORTER_OTLP_HEADERS and
    the other variables of OpenTelemetry's SDK apply. A call whose caller does not sample its trace
    gets no span.
    """

    def __init__(self, endpoint: str) -> None:
        """Start to send.

        Args:
            endpoint: the collector, such as "http://127.0.0.1:4317"; plaintext unless https.

        Raises:
            ConfigurationError: the extra is not installed, or the endpoint is no URL.
        """
        scheme, _, place = endpoint.partition("://")
        if scheme not in ("http", "https") or not place:
            raise ConfigurationError(
                f"expected an OTLP endpoint such as http://127.0.0.1:4317, got {endpoint!r}"
            )
        try:
            from opentelemetry import propagate, trace
            from opentelemetry.exporter.otlp.proto.grpc.trace_exporter import OTLPSpanExporter
            from opentelemetry.sdk.resources import SERVICE_NAME, Resource
            from opentelemetry.sdk.trace import TracerProvider
            from opentelemetry.sdk.trace.export import BatchSpanProcessor
        except ImportError as err:
            raise not_installed(err) from err
        exporter = OTLPSpanExporter(endpoint, insecure=scheme == "http")
        resource = Resource.create()
        if str(resource.attributes[SERVICE_NAME]).startswith("unknown_service"):
            resource = resource.merge(Resource({SERVICE_NAME: "digit-serving"}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("serving")
        self._extract = propagate.extract
        self._below = trace.set_span_in_context
        self._server = trace.SpanKind.SERVER
        self._error = trace.StatusCode.ERROR

    def record(
        self,
        name: str,
        begun_s: float,
        metadata: Mapping[str, str],
        attributes: Mapping[str, Any],
        run: Ran,
        *,
        is_error: bool,
    ) -> None:
        """Record a call that ends now."""
        epoch_ns = time.time_ns() - time.monotonic_ns()
        begun_ns, parent = _ns(begun_s, epoch_ns), self._extract(metadata)
        span = self._tracer.start_span(name, parent, self._server, attributes, start_time=begun_ns)
        if not span.is_recording():
            return
        started_s, finished_s, model, version, num_rows = run
        if run is not NEVER:
            span.set_attributes(
                {
                    "model.name": model,
                    "model.version": version,
                    "batch.rows": num_rows,
                    "queue.seconds": started_s - begun_s,
                }
            )
            steps = getattr(run, "steps", None)
            if steps is None:
                span.add_event("run started", timestamp=_ns(started_s, epoch_ns))
                span.add_event("run finished", timestamp=_ns(finished_s, epoch_ns))
            else:  # of a model with a handler
                self._record_steps(span, steps, epoch_ns)
        if is_error:
            span.set_status(self._error)
        span.end()

    def _record_steps(
        self, span: Any, steps: Sequence[tuple[str, float, float]], epoch_ns: int
    ) -> None:
        """Record the steps of a call, each as a span below the call's."""
        context = self._below(span)
        for name, begun_s, ended_s in steps:
            step = self._tracer.start_span(name, context, start_time=_ns(begun_s, epoch_ns))
            step.end(_ns(ended_s, epoch_ns))

    def close(self) -> None:
        """Send the remaining spans, for a few seconds at most."""
        self._provider.force_flush(_FLUSH_MS)
        self._provider.shutdown()


def _ns(monotonic_s: float, epoch_ns: int) -> int:
    return epoch_ns + round(monotonic_s * 1e9)
