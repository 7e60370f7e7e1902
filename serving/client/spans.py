"""Spans of a client's calls, in a process that uses OpenTelemetry."""

import sys
from contextlib import AbstractContextManager, nullcontext

_NONE = nullcontext()


def client_span(path: str, target: str) -> AbstractContextManager[object]:
    """Return a span for a call and its retries, which becomes the active one; errors are noted.

    Args:
        path: of the method, such as "/digits.v1.DigitClassifier/Classify".
        target: where the server is.
    """
    if "opentelemetry.trace" not in sys.modules:  # this process makes no spans
        return _NONE
    from opentelemetry import trace

    name = path.removeprefix("/")
    service, _, method = name.rpartition("/")
    attributes = {"rpc.system": "grpc", "rpc.service": service, "rpc.method": method,
                  "server.address": target}  # fmt: skip
    tracer = trace.get_tracer("serving.client")
    return tracer.start_as_current_span(name, kind=trace.SpanKind.CLIENT, attributes=attributes)
