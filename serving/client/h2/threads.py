"""Calls of many threads on one connection, without a thread of its own.

A thread that waits for an answer while nobody reads becomes the reader: it reads for all threads,
wakes those whose answers came, and hands reading over when it has its own. A call that is alone in
flight is written and read by its own thread, without a switch.
"""

import math
import socket
import struct
import time
from _thread import allocate_lock
from collections import deque
from contextlib import suppress

from serving.client.h2.connect import is_alarm
from serving.client.h2.sending import SharedSocket
from serving.client.h2.session import Call, Metadata, Session
from serving.client.transport import LATE, Failure, Outcome
from serving.credentials.tls import Plain, Tls
from serving.http2.frames import Http2Error
from serving.protocols.status import StatusCode

_READ_BYTES = 256 << 10
_BLOCK_S = 1.0
"""The longest that `recv` waits: this timeout of the socket's is set once, others before a call."""
_IDLE_S = 0.05
"""After this time without calls the server may have closed the connection."""


class ThreadCall(Call):
    """A call that a thread can wait for."""

    __slots__ = ("_connection", "woken")

    def __init__(self, deadline_s: float, connection: "Http2Connection") -> None:
        """Make a call that has not begun."""
        super().__init__(deadline_s)
        self._connection = connection
        self.woken = allocate_lock()
        """Held until the call has its outcome or its turn to read."""
        self.woken.acquire()

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""
        if self.outcome is None:
            self._connection.cancel(self)

    def end(self, outcome: Outcome) -> None:
        """Take the outcome, and wake the thread that waits for it."""
        self.outcome = outcome
        self._connection.wake(self)

    async def result(self) -> Outcome:
        """Wait for the end of the call."""
        return self.outcome if self.outcome is not None else self._connection.wait(self)


class Http2Connection(SharedSocket):
    """A connection that threads share."""

    def __init__(self, sock: socket.socket, session: Session, cipher: Tls | Plain) -> None:
        """Take a connected socket, after TLS's handshake."""
        self._read_timeout_s = 0.0
        self._is_reading = False
        self._waiting: dict[ThreadCall, None] = {}
        """Calls whose threads sleep."""
        self._ready: deque[ThreadCall] = deque()
        """Calls that have ended, whose threads still sleep."""
        self._used_s = time.monotonic()
        """When calls were in flight, more or less."""
        super().__init__(sock, session, cipher)

    def is_usable(self) -> bool:
        """Return whether calls may begin; reads bytes that came while nobody waited."""
        if not self._session.calls and time.monotonic() - self._used_s > _IDLE_S:
            with self._lock:
                is_reader, self._is_reading = not self._is_reading, True
            if is_reader:
                try:
                    self._read(0.0)
                finally:
                    self._stop_reading()
        return self._session.failure is None

    def start(self, path: str, message: bytes, metadata: Metadata, deadline_s: float) -> ThreadCall:
        """Begin a call; a connection that is lost ends it at once."""
        call = ThreadCall(deadline_s, self)
        with self._lock:
            self._session.start(call, path, message, metadata)
            data = self._take()
        self._send(data, deadline_s)
        return call

    def cancel(self, call: ThreadCall) -> None:
        """Forget a call."""
        with self._lock:
            self._session.cancel(call)
            data = self._take()
        self._send(data)

    def wait(self, call: ThreadCall) -> Outcome:
        """Wait for the outcome of a call."""
        try:
            while call.outcome is None:
                with self._lock:
                    if call.outcome is not None:
                        break
                    is_reader = not self._is_reading
                    if is_reader:
                        self._is_reading = True
                    else:
                        self._waiting[call] = None
                if is_reader:
                    self._read_until(call)
                else:
                    call.woken.acquire(timeout=max(0.0, call.deadline_s - time.monotonic()))
                if call.outcome is None and time.monotonic() >= call.deadline_s:
                    self._forget(call)
                    if call.outcome is None:
                        call.outcome = LATE
        except BaseException:  # KeyboardInterrupt
            self._forget(call)
            raise
        finally:
            self._wake_next()  # also where this call was woken, or gave up
        return call.outcome

    def close(self, failure: Failure) -> None:
        """End all calls, and the connection."""
        with self._lock:
            self._end(failure)

    def _forget(self, call: ThreadCall) -> None:
        """Cancel a call; if it was about to read, another one does."""
        with self._lock:
            self._waiting.pop(call, None)
            if not self._is_reading:
                self._wake_reader()
        self.cancel(call)

    def _stop_reading(self) -> None:
        with self._lock:
            self._is_reading = False
            self._wake_reader()

    def _wake_reader(self) -> None:
        """Let a thread that sleeps read; called with the lock."""
        if self._waiting:
            call = next(iter(self._waiting))
            del self._waiting[call]
            call.woken.release()

    def _read_until(self, call: ThreadCall) -> None:
        """Read for all calls, until this one has its outcome or its time is over."""
        try:
            while call.outcome is None and (now_s := time.monotonic()) < call.deadline_s:
                until_s = min(call.deadline_s, self._session.keepalive.due_s())
                if now_s < until_s:
                    self._read(until_s - now_s)
                else:
                    self._check_alive()
        finally:
            self._stop_reading()

    def _read(self, timeout_s: float) -> None:
        """Wait for a while, process incoming bytes, and wake threads whose calls have ended."""
        timeout_s = min(timeout_s, _BLOCK_S)
        try:
            if timeout_s not in (0.0, self._read_timeout_s):
                timeval = struct.pack("ll", *divmod(math.ceil(timeout_s * 1e6), 10**6))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
                self._read_timeout_s = timeout_s
            data = self._socket.recv(_READ_BYTES, 0 if timeout_s else socket.MSG_DONTWAIT)
        except BlockingIOError:
            return
        except OSError as err:
            self.close((StatusCode.UNAVAILABLE, str(err)))
            if is_alarm(err):
                raise
            return
        with self._lock:
            if not data:
                self._end((StatusCode.UNAVAILABLE, "the server closed the connection"))
                return
            self._used_s = time.monotonic()
            try:
                self._session.receive(self._cipher.decrypt(data))
                self._wake_next()
            except (Http2Error, OSError) as err:
                self._end((StatusCode.UNAVAILABLE, f"the connection broke: {err}"))
                if is_alarm(err):
                    raise
                return
            reply = self._take()
        self._send(reply)

    def wake(self, call: ThreadCall) -> None:
        """Wake the thread of a call, if it sleeps; called with the lock."""
        if self._waiting.pop(call, 0) is None:
            self._ready.append(call)

    def _wake_next(self) -> None:
        """Wake one thread whose call has ended; it will wake the next.

        All at once would fight for the interpreter's lock: twice the switches of threads.
        """
        if self._ready:
            with suppress(IndexError):  # another thread was faster
                self._ready.popleft().woken.release()

    def _fail_all(self, failure: Failure) -> None:
        super()._fail_all(failure)
        self._wake_next()

    def _check_alive(self) -> None:
        """Ask a silent server for a sign of life; give it up if there is none."""
        with self._lock:
            if not self._session.is_alive():
                self._end((StatusCode.UNAVAILABLE, "the server is silent"))
            data = self._take()
        self._send(data)
