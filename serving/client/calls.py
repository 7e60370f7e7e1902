"""What a client's calls end with, whichever library carries them."""

import grpc

Failure = tuple[grpc.StatusCode, str | None]
"""A status and its text."""

CUT_OFF: Failure = (grpc.StatusCode.CANCELLED, "the call was cut off")
