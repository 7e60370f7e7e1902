"""What a client's calls end with, whichever library carries them."""

import grpc

Failure = tuple[grpc.StatusCode, str | None] | tuple[grpc.StatusCode, str | None, bool]
"""A status, its text, and whether a server answered so without asking for another attempt."""

PUSHBACK = "grpc-retry-pushback-ms"
"""The trailer that asks for another attempt (gRFC A6): our servers send it when they end."""
KEEPALIVE_TIME_S = 1.5
"""How long nothing may come while a call waits; then a ping asks whether the server lives."""
KEEPALIVE_TIMEOUT_S = 1.25
"""How long its answer may take; then the connection is given up."""

CUT_OFF: Failure = (grpc.StatusCode.CANCELLED, "the call was cut off")
