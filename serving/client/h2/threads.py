"""Calls of many threads on one connection, without a thread of its own.

Whoever waits for an answer while nobody reads becomes the reader: it takes what comes for all,
wakes those whose answers came, and hands reading over when it has its own. A call that is alone in
flight is written and read by its own thread, without a switch.
"""

import select
import socket
import time
from _thread import allocate_lock
from contextlib import suppress

import grpc

from serving.client.h2.connect import is_alarm
from serving.client.h2.session import Call, Metadata, Session
from serving.client.transport import (
    KEEPALIVE_TIME_S,
    KEEPALIVE_TIMEOUT_S,
    LATE,
    Failure,
    Outcome,
)
from serving.credentials.tls import Plain, Tls
from serving.http2.frames import Http2Error

_READ_BYTES = 256 << 10
_IDLE_S = 0.05
"""After this time without calls the server may have closed the connection."""
_PATIENCE_S = 5.0
"""How long a server may take to read what is no call."""


class ThreadCall(Call):
    """A call that a thread can wait for."""

    __slots__ = ("_connection", "woken")

    def __init__(self, deadline_s: float) -> None:
        """Make a call that has not begun."""
        super().__init__(deadline_s)
        self._connection: Http2Connection | None = None
        self.woken = allocate_lock()
        """Held until the call has its outcome or its turn to read."""
        self.woken.acquire()

    def begin(self, connection: "Http2Connection") -> None:
        """Note the connection that it was sent on."""
        self._connection = connection

    def cancel(self) -> None:
        """Forget the call, if it has not ended."""
        if self._connection is not None and self.outcome is None:
            self._connection.cancel(self)

    def end(self, outcome: Outcome) -> None:
        """Take the outcome, and wake the thread that waits for it."""
        self.outcome = outcome
        if self._connection is not None:
            self._connection.wake(self)

    async def result(self) -> Outcome:
        """Wait for the end of the call."""
        if self.outcome is None and self._connection is not None:
            self._connection.wait(self)
        assert self.outcome is not None
        return self.outcome


class Http2Connection:
    """A connection that threads share."""

    def __init__(self, sock: socket.socket, session: Session, cipher: Tls | Plain) -> None:
        """Take a connected socket.

        Args:
            sock: connected, and after TLS's handshake.
            session: the calls on it.
            cipher: its encryption.
        """
        sock.setblocking(False)
        self._socket = sock
        self._session = session
        self._cipher = cipher
        self._readable = select.poll()
        self._readable.register(sock, select.POLLIN)
        self._writable = select.poll()
        self._writable.register(sock, select.POLLOUT)
        self._lock = allocate_lock()
        """Guards all that follows, and the session; held for bookkeeping only."""
        self._is_writing = self._is_reading = False
        self._waiting: dict[ThreadCall, None] = {}
        """Calls whose threads sleep."""
        self._is_lost = False
        self._used_s = time.monotonic()
        """When calls were in flight, more or less."""
        self.write(self._used_s + _PATIENCE_S)

    def __del__(self) -> None:
        # Not before: the number could go to another socket while a thread still reads.
        self._socket.close()

    def is_usable(self, now_s: float) -> bool:
        """Return whether calls may begin; reads what came while nobody waited."""
        if not self._session.calls and now_s - self._used_s > _IDLE_S:
            self._read_what_came()
        return self._session.failure is None

    def _read_what_came(self) -> None:
        with self._lock:
            if self._is_reading:
                return
            self._is_reading = True
        try:
            if self._readable.poll(0):
                self._read()
        finally:
            self._stop_reading()

    def start(
        self, call: ThreadCall, path: str, message: bytes, metadata: Metadata, now_s: float
    ) -> None:
        """Begin a call; a connection that is lost ends it at once."""
        call.begin(self)
        with self._lock:
            self._session.start(call, path, message, metadata, now_s)
        self.write(call.deadline_s)

    def cancel(self, call: ThreadCall) -> None:
        """Forget a call."""
        with self._lock:
            self._session.cancel(call)
        self.write(time.monotonic() + _PATIENCE_S)

    def wait(self, call: ThreadCall) -> None:
        """Wait until a call has its outcome."""
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
                    call.outcome = LATE
        except BaseException:  # KeyboardInterrupt
            self._forget(call)
            raise

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
            self.wake(next(iter(self._waiting)))

    def _read_until(self, call: ThreadCall) -> None:
        """Read for all calls, until this one has its outcome or its time is over."""
        try:
            while call.outcome is None:
                now_s = time.monotonic()
                if now_s >= call.deadline_s:
                    break
                until_s = min(call.deadline_s, self._session.keepalive.due_s())
                if self._readable.poll(max(0.0, until_s - now_s) * 1e3 + 1):
                    self._read()
                else:
                    self._check_alive(time.monotonic())
        finally:
            self._stop_reading()

    def _read(self) -> None:
        """Take what has come, and wake those whose calls it ends."""
        try:
            data = self._socket.recv(_READ_BYTES)
        except BlockingIOError:
            return
        except OSError as err:
            self.close((grpc.StatusCode.UNAVAILABLE, str(err)))
            if is_alarm(err):
                raise
            return
        with self._lock:
            if not data:
                self._end((grpc.StatusCode.UNAVAILABLE, "the server closed the connection"))
                return
            self._used_s = time.monotonic()
            try:
                self._session.receive(self._cipher.decrypt(data))
            except (Http2Error, OSError) as err:
                self._end((grpc.StatusCode.UNAVAILABLE, f"the connection broke: {err}"))
                if is_alarm(err):
                    raise
                return
        self.write(self._used_s + _PATIENCE_S)

    def wake(self, call: ThreadCall) -> None:
        """Wake the thread of a call, if it sleeps; called with the lock."""
        if self._waiting.pop(call, 0) is None:
            call.woken.release()

    def _end(self, failure: Failure) -> None:
        """End all calls; called with the lock."""
        if not self._is_lost:
            self._is_lost = True
            self._session.fail_all(failure)
            with suppress(OSError):  # the server was faster
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads

    def _check_alive(self, now_s: float) -> None:
        """Ask a silent server for a sign of life; give it up if there is none."""
        with self._lock:
            if not self._session.is_alive(now_s):
                self._end((grpc.StatusCode.UNAVAILABLE, "the server is silent"))
        self.write(now_s + _PATIENCE_S)

    def write(self, until_s: float) -> None:
        """Send what is ready. Whoever writes takes along what others add meanwhile.

        Args:
            until_s: how long to wait for a server that does not read.
        """
        with self._lock:
            if self._is_writing or self._is_lost:
                return
            data = self._next()
            self._is_writing = bool(data)
        try:
            while data:
                sent = self._send(data, until_s)
                with self._lock:
                    data = data[sent:] or self._next()
                    self._is_writing = bool(data)
        except BaseException as err:  # a part of the bytes is lost
            with self._lock:
                self._is_writing = False
                self._end((grpc.StatusCode.UNAVAILABLE, f"can't send: {err}"))
            if not isinstance(err, OSError) or is_alarm(err):
                raise

    def _next(self) -> bytes:
        return self._cipher.encrypt(self._session.data_to_send())

    def _send(self, data: bytes, until_s: float) -> int:
        while True:
            try:
                return self._socket.send(data)
            except BlockingIOError:
                left_s = min(until_s - time.monotonic(), KEEPALIVE_TIME_S + KEEPALIVE_TIMEOUT_S)
                if left_s <= 0 or not self._writable.poll(left_s * 1e3 + 1):
                    raise BrokenPipeError("the server does not read") from None
