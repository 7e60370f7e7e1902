"""A `Client`'s calls over HTTP/2: connects, and connects again."""

import time
from _thread import allocate_lock

import grpc

from serving.client.access import Access
from serving.client.calls import CUT_OFF, Failure
from serving.client.h2.connect import connect, failure_of, is_alarm
from serving.client.h2.threads import Link, ThreadCall
from serving.client.place import Place

_LATE: Failure = (grpc.StatusCode.DEADLINE_EXCEEDED, "no connection within the timeout")


class H2Calls:
    """Calls of threads over the newest connection; older ones end with their calls."""

    def __init__(self, place: Place, access: Access) -> None:
        """Prepare; the first call connects."""
        self._place = place
        self._access = access
        self._link: Link | None = None
        self._connecting = allocate_lock()
        self._num_failed = 0
        self._failure: Failure = CUT_OFF
        """Why the last attempt to connect failed."""
        self._is_closed = False

    def send(self, path: str, message: bytes, timeout_s: float) -> ThreadCall:
        """Start a call."""
        call = ThreadCall(timeout_s)
        link = self._link
        if link is None or not link.is_usable():
            connected = self._connect(call.deadline_s)
            if not isinstance(connected, Link):
                call.outcome = connected
                return call
            link = connected
        link.start(call, path, message, timeout_s, self._access.metadata)
        return call

    def outcome(self, call: ThreadCall) -> bytes | Failure:
        """Wait for the end of a call."""
        if call.outcome is None:
            assert call.link is not None
            return call.link.wait(call)
        return call.outcome

    def exchange(self, path: str, message: bytes, timeout_s: float) -> bytes | Failure:
        """Start a call and wait for its end."""
        return self.outcome(self.send(path, message, timeout_s))

    def close(self) -> None:
        """End all calls, and the connection."""
        self._is_closed = True
        link, self._link = self._link, None
        if link is not None:
            link.close(CUT_OFF)

    def _connect(self, deadline_s: float) -> Link | Failure:
        """Connect, or wait for the thread that does."""
        num_failed = self._num_failed
        if not self._connecting.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            return _LATE
        try:
            if self._is_closed:
                return CUT_OFF
            if self._link is not None and self._link.is_usable():
                return self._link
            if self._num_failed != num_failed:  # while this thread waited
                return self._failure
            try:
                link = Link(*connect(self._place, self._access, deadline_s))
            except OSError as err:
                if is_alarm(err):
                    raise
                self._num_failed += 1
                self._failure = failure_of(err)
                return self._failure
            self._link = link
            if self._is_closed:  # meanwhile
                link.close(CUT_OFF)
            return link
        finally:
            self._connecting.release()
