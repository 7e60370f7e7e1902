"""An OpenTelemetry collector that keeps the spans it gets by OTLP."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any

import grpc
from opentelemetry.proto.collector.trace.v1 import trace_service_pb2, trace_service_pb2_grpc


class Collector(trace_service_pb2_grpc.TraceServiceServicer):
    """Keeps the spans that it gets."""

    def __init__(self):
        self.resources: list[dict[str, Any]] = []
        """The resource attributes of each span's process."""
        self.spans: list[Any] = []

    def Export(self, request, context):  # noqa: N802
        for each in request.resource_spans:
            spans = [span for scope in each.scope_spans for span in scope.spans]
            self.resources += [attributes_of(each.resource)] * len(spans)
            self.spans += spans
        return trace_service_pb2.ExportTraceServiceResponse()

    def span(self, name):
        (found,) = [span for span in self.spans if span.name == name]
        return found


def attributes_of(message):
    return {
        each.key: getattr(each.value, each.value.WhichOneof("value")) for each in message.attributes
    }


@contextmanager
def running_collector():
    """Give a collector and its endpoint."""
    collector = Collector()
    server = grpc.server(ThreadPoolExecutor(2))
    add = trace_service_pb2_grpc.add_TraceServiceServicer_to_server
    add(collector, server)
    port = server.add_insecure_port("127.0.0.1:0")
    server.start()
    try:
        yield collector, f"http://127.0.0.1:{port}"
    finally:
        server.stop(None)
