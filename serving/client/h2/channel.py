"""A `Client`'s calls over HTTP/2: connects, and connects again."""

import time
from _thread import allocate_lock

from serving.client.credentials import Credentials
from serving.client.h2.connect import connect, failure_of, is_alarm
from serving.client.h2.session import Session
from serving.client.h2.threads import Http2Connection
from serving.client.target import Address
from serving.client.transport import CUT_OFF, LATE, EndedCall, Failure, PendingCall, Transport


class ReconnectingChannel(Transport):
    """Calls of threads over the newest connection; older ones end with their calls."""

    def __init__(self, address: Address, credentials: Credentials) -> None:
        """Prepare; the first call connects."""
        self._address = address
        self._credentials = credentials
        self._connection: Http2Connection | None = None
        self._connecting = allocate_lock()
        self._num_failed = 0
        self._failure: Failure = CUT_OFF
        """Why the last attempt to connect failed."""
        self._is_closed = False

    async def send(self, path: str, message: bytes, timeout_s: float) -> PendingCall:
        """Start a call."""
        deadline_s = time.monotonic() + timeout_s
        connection: Http2Connection | Failure | None = self._connection
        if not isinstance(connection, Http2Connection) or not connection.is_usable():
            connection = self._connect(deadline_s)
            if not isinstance(connection, Http2Connection):
                return EndedCall(connection)
        return connection.start(path, message, self._credentials.metadata, deadline_s)

    async def close(self) -> None:
        """End all calls, and the connection."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(CUT_OFF)

    def _connect(self, deadline_s: float) -> Http2Connection | Failure:
        """Connect, or wait for the thread that does."""
        num_failed = self._num_failed
        if not self._connecting.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            return LATE
        try:
            if self._is_closed:
                return CUT_OFF
            if self._connection is not None and self._connection.is_usable():
                return self._connection
            if self._num_failed != num_failed:  # while this thread waited
                return self._failure
            try:
                sock, cipher = connect(self._address, self._credentials, deadline_s)
            except OSError as err:
                if is_alarm(err):
                    raise
                self._num_failed += 1
                self._failure = failure_of(err)
                return self._failure
            session = Session(self._address.authority, self._credentials.scheme)
            self._connection = connection = Http2Connection(sock, session, cipher)
            if self._is_closed:  # meanwhile
                connection.close(CUT_OFF)
            return connection
        finally:
            self._connecting.release()
