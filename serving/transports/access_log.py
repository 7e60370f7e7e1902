"""Access lines for a share of the calls, with ids that link them to other services' logs.

Only with `--access-log`: without it there is no cost for a call.
"""

import logging
import random
import re
import secrets
import time
from collections.abc import Mapping

import grpc

from serving.telemetry.logs import ACCESS

_log = logging.getLogger(ACCESS)

REQUEST_ID = "x-request-id"
"""The header with a call's id, and the trailer that returns it."""
STATUS_NAMES: Mapping[int, str] = {status.value[0]: status.name for status in grpc.StatusCode}

_MAX_LINES_PER_S = 100
"""If more calls than these fail in a second, the metrics show it."""
_REQUEST_ID = re.compile(r"[\x21-\x7e]{1,128}")
_TRACEPARENT = re.compile(r"[0-9a-f]{2}-([0-9a-f]{32})-([0-9a-f]{16})-[0-9a-f]{2}")
"""https://www.w3.org/TR/trace-context: version, trace id, parent id, flags."""


class LoggedCall:
    """A call in progress, and the fields of its line."""

    __slots__ = ("begun_s", "ids", "method", "peer")

    def __init__(self, method: str, peer: str, metadata: Mapping[str, str]) -> None:
        """Start the call's clock.

        Args:
            method: the path, such as "/digits.v1.DigitClassifier/Classify".
            peer: the caller's address as gRPC writes it: "ipv4:127.0.0.1:50051".
            metadata: the call's headers; malformed ids in them are ignored.
        """
        self.method = method
        self.peer = peer
        self.ids = _ids(metadata)
        """`request_id`: the caller's `x-request-id`, or a new one; and `trace_id` and `parent_id`
        if it sent a `traceparent`."""
        self.begun_s = time.monotonic()


class AccessLog:
    """Logs a share of the calls that succeed and all that fail; used by one thread."""

    def __init__(self, share: float) -> None:
        """Log `share` of the calls that succeed, 0 to 1."""
        self._share = share
        self._second = 0
        self._num_lines = 0

    def end(self, call: LoggedCall, status: str) -> None:
        """Log a call that has ended, if it failed or is in the share.

        Args:
            call: the call.
            status: the status code's name, such as "OK".
        """
        if (status == "OK" and random.random() >= self._share) or not self._has_room():
            return
        fields = {
            "method": call.method,
            "status": status,
            "duration_s": round(time.monotonic() - call.begun_s, 6),
            "peer": call.peer,
            **call.ids,
        }
        _log.info("call", extra={"fields": fields})

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
