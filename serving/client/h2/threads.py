"""A `Client`'s calls over HTTP/2: many threads on one connection, without a thread of its own.

A thread that waits for an answer while nobody reads becomes the reader: it reads for all threads,
wakes those whose answers came, and hands reading over when it has its own. A call that is alone in
flight is written and read by its own thread, without a switch.
"""

import errno
import math
import select
import socket
import ssl
import struct
import time
from _thread import allocate_lock, get_ident
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import TypeVar

from serving.client import transport
from serving.client.addresses import Address
from serving.client.credentials import Credentials
from serving.client.h2.session import (
    CONNECT_S,
    STREAMS,
    ClientCall,
    Messages,
    Session,
    failure_of,
)
from serving.client.transport import Metadata, Outcome, PendingCall, PendingStream, Transport
from serving.http2 import Http2Error, Limits
from serving.protocols.status import Failure, StatusCode
from serving.security.tls import Plain, Tls

_READ_BYTES = 256 << 10
_BLOCK_S = 1.0
"""The longest that `recv` waits: this timeout of the socket's is set once, others before a call."""
_IDLE_S = 0.05
"""After this time without calls the server may have closed the connection."""
_LOOK_S = 1.0
"""The longest that a thread sleeps without a look: the one that was to wake it may have been
interrupted."""
_INTERRUPTED = "a call was interrupted, such as by Ctrl-C"
_STALLED_S = transport.KEEPALIVE_TIME_S + transport.KEEPALIVE_TIMEOUT_S
"""How long a server may take to read a request."""
_HANDSHAKE_BYTES = 64 << 10


class ThreadCall(ClientCall):
    """A call that a thread can wait for."""

    __slots__ = ("_connection", "woken")

    def __init__(
        self,
        deadline_s: float,
        connection: "Http2Connection",
        messages: Messages | None = None,
    ) -> None:
        super().__init__(deadline_s, messages)
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


class ThreadStream(ThreadCall):
    """A call whose messages a thread can wait for.

    Its `outcome` is the next message, or the end, once there is one.
    """

    __slots__ = ("last",)

    def __init__(self, deadline_s: float, connection: "Http2Connection") -> None:
        super().__init__(deadline_s, connection, Messages())
        self.last: Outcome | None = None
        """The end, behind the messages."""

    def note_message(self) -> None:
        if self.outcome is None:
            self._connection.take_message(self)
            self._connection.wake(self)

    def end(self, outcome: Outcome) -> None:
        """Take the end, behind the messages."""
        self.last = outcome
        if self.outcome is None:
            self._connection.take_message(self)
            self._connection.wake(self)

    def cancel(self) -> None:
        if self.last is None:
            self._connection.cancel(self)

    async def next(self) -> Outcome:
        """Wait for the next message, or the end."""
        found = self._connection.wait(self)
        self._connection.advance(self)
        return found


_ThreadCall = TypeVar("_ThreadCall", bound=ThreadCall)


class Http2Connection:
    """A connection that threads share.

    An error of a signal's handler, such as KeyboardInterrupt, may end any step of a thread. The
    reader and the writer are known by name, so that none that has gone is waited for; a step that
    was left half done ends the connection, since bytes may be lost.
    """

    def __init__(self, sock: socket.socket, session: Session, cipher: Tls | Plain) -> None:
        sock.settimeout(None)
        self._socket = sock
        self._session = session
        self._cipher = cipher
        self._lock = allocate_lock()
        """Guards the session and all flags; held for bookkeeping only."""
        self._is_lost = False
        self._reader: object = None
        """The call whose thread reads, if one does."""
        self._writer: int | None = None
        """The thread that sends, if one does."""
        self._read_timeout_s = 0.0
        self._waiting: dict[ThreadCall, None] = {}
        """Calls whose threads sleep."""
        self._ready: deque[ThreadCall] = deque()
        """Calls that have ended, whose threads still sleep."""
        self._used_s = time.monotonic()
        """When calls were in flight, more or less."""
        self._flush()

    def __del__(self) -> None:
        # Not before: the number could go to another socket while a thread still reads.
        self._socket.close()

    def is_usable(self) -> bool:
        """Return whether calls may begin; reads bytes that came while nobody waited."""
        if not self._session.calls and time.monotonic() - self._used_s > _IDLE_S:
            reader = object()
            try:
                with self._lock:
                    if self._reader is None:
                        self._reader = reader
                if self._reader is reader:
                    self._read(0.0)
            finally:
                self._stop_reading(reader)
        return self._session.failure is None and not self._is_lost

    def start(
        self,
        path: str,
        message: bytes,
        metadata: Metadata,
        deadline_s: float,
        kind: "Callable[[float, Http2Connection], _ThreadCall]" = ThreadCall,  # type: ignore[assignment]
    ) -> _ThreadCall:
        """Begin a call; a connection that is lost ends it at once."""
        call = kind(deadline_s, self)
        with self._lock:
            try:
                self._session.start(call, path, message, metadata)
            except BaseException:
                self._end(Failure(StatusCode.UNAVAILABLE, _INTERRUPTED))
                raise
        self._flush(deadline_s)
        return call

    def take_message(self, call: ThreadStream) -> None:
        """Make a call's next message its outcome, or its end; called with the lock."""
        message = self._session.take_message(call)
        call.outcome = call.last if message is None else message

    def advance(self, call: ThreadStream) -> None:
        """Go on to a call's next message; the end stays."""
        with self._lock:
            if isinstance(call.outcome, bytes):
                self.take_message(call)
        self._flush()

    def cancel(self, call: ThreadCall) -> None:
        """Forget a call."""
        with self._lock:
            try:
                self._session.cancel(call)
            except BaseException:
                self._end(Failure(StatusCode.UNAVAILABLE, _INTERRUPTED))
                raise
        self._flush()

    def wait(self, call: ThreadCall) -> Outcome:
        """Wait for the outcome of a call."""
        try:
            while call.outcome is None:
                # Looked at again with the lock: its outcome may have come since, and nobody would
                # wake a call that goes to sleep behind it.
                with self._lock:
                    if call.outcome is not None:
                        break
                    if self._is_lost:
                        call.outcome = self._session.failure or transport.CUT_OFF
                        break
                    if self._reader is None:
                        self._waiting.pop(call, None)
                        self._reader = call
                    else:
                        self._waiting[call] = None
                if self._reader is call:
                    self._read_until(call)
                else:
                    left_s = max(0.0, call.deadline_s - time.monotonic())
                    call.woken.acquire(timeout=min(left_s, _LOOK_S))
                if call.outcome is None and time.monotonic() >= call.deadline_s:
                    self._forget(call)
                    if call.outcome is None:
                        call.outcome = transport.LATE
        except BaseException:  # KeyboardInterrupt
            self._forget(call)
            raise
        finally:
            # Also where this call was woken, or gave up: each that wakes up wakes the next, and a
            # chain that ends here would leave the others asleep.
            self._wake_next()
        return call.outcome

    def close(self, failure: Failure) -> None:
        """End all calls, and the connection."""
        with self._lock:
            self._end(failure)

    def _forget(self, call: ThreadCall) -> None:
        """Cancel a call; if it reads or was about to, another one does."""
        with self._lock:
            self._waiting.pop(call, None)
        self._stop_reading(call)
        self.cancel(call)

    def _stop_reading(self, reader: object) -> None:
        """Let a thread that sleeps read, unless a third one does."""
        with self._lock:
            if self._reader is reader:
                self._reader = None
            if self._reader is None and self._waiting:
                call = next(iter(self._waiting))
                del self._waiting[call]
                _wake(call)

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
            self._stop_reading(call)

    def _read(self, timeout_s: float) -> None:
        """Wait for a while, process incoming bytes, and wake threads whose calls have ended."""
        timeout_s = min(timeout_s, _BLOCK_S)
        try:
            # With `settimeout` each `recv` would be a `poll` and a `recv`. The kernel's own limit
            # is set again only where another one is needed.
            if timeout_s not in (0.0, self._read_timeout_s):
                timeval = struct.pack("ll", *divmod(math.ceil(timeout_s * 1e6), 10**6))
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVTIMEO, timeval)
                self._read_timeout_s = timeout_s
            data = self._socket.recv(_READ_BYTES, 0 if timeout_s else socket.MSG_DONTWAIT)
            self._receive(data)
        except BlockingIOError:
            return
        except OSError as err:
            self.close(Failure(StatusCode.UNAVAILABLE, str(err)))
            if is_alarm(err):
                raise
        except BaseException:  # bytes that were received may be lost
            self.close(Failure(StatusCode.UNAVAILABLE, _INTERRUPTED))
            raise

    def _receive(self, data: bytes) -> None:
        """Process incoming bytes, and wake a thread whose call has ended."""
        with self._lock:
            if not data:
                self._end(Failure(StatusCode.UNAVAILABLE, "the server closed the connection"))
                return
            self._used_s = time.monotonic()
            try:
                self._session.receive(self._cipher.decrypt(data))
                self._wake_next()
            except (Http2Error, OSError) as err:
                self._end(Failure(StatusCode.UNAVAILABLE, f"the connection broke: {err}"))
                if is_alarm(err):
                    raise
                return
            except BaseException:
                self._end(Failure(StatusCode.UNAVAILABLE, _INTERRUPTED))
                raise
        self._flush()

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
                _wake(self._ready.popleft())

    def _check_alive(self) -> None:
        """Ask a silent server for a sign of life; give it up if there is none."""
        with self._lock:
            if not self._session.is_alive():
                self._end(Failure(StatusCode.UNAVAILABLE, "the server is silent"))
        self._flush()

    # Sending

    def _end(self, failure: Failure) -> None:
        """End all calls; called with the lock."""
        if not self._is_lost:
            self._is_lost = True
            self._session.fail_all(failure)
            self._wake_next()
            with suppress(OSError):  # the server was faster
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads

    def _take(self) -> bytes:
        """Return the bytes to send, unless another thread sends; called with the lock.

        The thread that sends also sends bytes that other threads add meanwhile.
        """
        # Encrypted in the order in which it is sent: so only who sends may take.
        if self._writer is not None or self._is_lost:
            return b""
        self._writer = get_ident()
        return self._take_more()

    def _take_more(self) -> bytes:
        """Return the bytes to send of the thread that sends; called with the lock.

        It stays the one that sends until there are none: others rely on it to send theirs, and
        find out that it was interrupted only as long as it is.
        """
        data = self._cipher.encrypt(self._session.data_to_send())
        if not data:
            self._writer = None
        return data

    def _flush(self, until_s: float = math.inf) -> None:
        """Send the bytes that are ready, and those ready then; a server may have to read first.

        Args:
            until_s: when to give the connection up, if that is before `_STALLED_S` is over.
        """
        try:
            with self._lock:
                data = self._take()
            while data:
                sent = self._send_part(data, until_s)
                data = data[sent:]
                if not data:
                    with self._lock:
                        data = self._take_more()
        except BaseException as err:  # a part of the bytes is lost
            with self._lock:
                if self._writer == get_ident():
                    self._writer = None
                    self._end(Failure(StatusCode.UNAVAILABLE, f"can't send: {err}"))
            if not isinstance(err, OSError) or is_alarm(err):
                raise

    def _send_part(self, data: bytes, until_s: float) -> int:
        while True:
            try:
                return self._socket.send(data, socket.MSG_DONTWAIT)
            except BlockingIOError:
                left_s = min(until_s - time.monotonic(), _STALLED_S)
                writable = select.poll()
                writable.register(self._socket, select.POLLOUT)
                if left_s <= 0 or not writable.poll(left_s * 1e3 + 1):
                    raise BrokenPipeError("the server does not read") from None


class ReconnectingChannel(Transport):
    """Calls of threads over the newest connection; older ones end with their calls."""

    def __init__(
        self, address: Address, credentials: Credentials, limits: Limits | None = None
    ) -> None:
        self._address, self._limits = address, limits
        self._credentials = credentials
        self._connection: Http2Connection | None = None
        self._connecting = allocate_lock()
        self._num_failed = 0
        self._failure: Failure = transport.CUT_OFF
        """Why the last attempt to connect failed."""
        self._is_closed = False
        self._streams = (
            ReconnectingChannel(address, credentials, STREAMS) if limits is None else None
        )
        """A connection of their own for calls that many messages answer."""

    async def send(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> PendingCall:
        """Start a call."""
        return self._send(ThreadCall, path, message, timeout_s, metadata)

    async def stream(
        self, path: str, message: bytes, timeout_s: float, metadata: Metadata = ()
    ) -> PendingStream:
        """Start a call that any number of messages answer."""
        streams = self._streams or self
        return streams._send(ThreadStream, path, message, timeout_s, metadata)

    def _send(
        self,
        kind: Callable[[float, Http2Connection], _ThreadCall],
        path: str,
        message: bytes,
        timeout_s: float,
        metadata: Metadata,
    ) -> _ThreadCall | transport.EndedCall:
        deadline_s = time.monotonic() + timeout_s
        connection: Http2Connection | Failure | None = self._connection
        if not isinstance(connection, Http2Connection) or not connection.is_usable():
            connection = self._connect(deadline_s)
            if not isinstance(connection, Http2Connection):
                return transport.EndedCall(connection)
        all_metadata = self._credentials.metadata
        if metadata:
            all_metadata = (*all_metadata, *metadata)
        return connection.start(path, message, all_metadata, deadline_s, kind)

    async def close(self) -> None:
        """End all calls, and the connection."""
        self._is_closed = True
        connection, self._connection = self._connection, None
        if connection is not None:
            connection.close(transport.CUT_OFF)
        if self._streams is not None:
            await self._streams.close()

    def _connect(self, deadline_s: float) -> Http2Connection | Failure:
        """Connect, or wait for the thread that does."""
        num_failed = self._num_failed
        if not self._connecting.acquire(timeout=max(0.0, deadline_s - time.monotonic())):
            return transport.LATE
        try:
            if self._is_closed:
                return transport.CUT_OFF
            if self._connection is not None and self._connection.is_usable():
                return self._connection
            # While this thread waited: threads share one attempt, and its failure.
            if self._num_failed != num_failed:
                return self._failure
            try:
                sock, cipher = connect(self._address, self._credentials, deadline_s)
            except OSError as err:
                if is_alarm(err):
                    raise
                self._num_failed += 1
                self._failure = failure_of(err)
                return self._failure
            session = Session(self._address.authority, self._credentials.scheme, self._limits)
            self._connection = connection = Http2Connection(sock, session, cipher)
            if self._is_closed:  # meanwhile
                connection.close(transport.CUT_OFF)
            return connection
        finally:
            self._connecting.release()


def connect(
    address: Address, credentials: Credentials, deadline_s: float
) -> tuple[socket.socket, Tls | Plain]:
    """Connect, and shake hands if there is TLS.

    Args:
        address: where to.
        credentials: certificates.
        deadline_s: when to give up, on the monotonic clock.

    Raises:
        OSError: nobody answers, or TLS fails.
    """
    until_s = min(deadline_s, time.monotonic() + CONNECT_S)
    sock = None
    try:
        sock = socket.create_connection((address.host, address.port), _left(until_s))
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        context = credentials.tls_context()
        if context is None:
            return sock, Plain()
        return sock, _shake_hands(sock, context, address.host, until_s)
    except BaseException as err:
        if sock is not None:
            sock.close()
        if isinstance(err, TimeoutError) and time.monotonic() >= until_s:
            raise TimeoutError(errno.ETIMEDOUT, "no answer") from err  # a socket's has no number
        raise


def _wake(call: ThreadCall) -> None:
    with suppress(RuntimeError):  # it was woken before, and has not slept since
        call.woken.release()


def is_alarm(error: BaseException) -> bool:
    """Return whether a handler of a signal raised an error: those of the system have a number."""
    return isinstance(error, TimeoutError) and error.errno is None


def _shake_hands(sock: socket.socket, context: ssl.SSLContext, host: str, until_s: float) -> Tls:
    tls, received = Tls(context, host), b""
    while not tls.shake_hands(received):
        sock.sendall(tls.encrypt(b""))
        sock.settimeout(_left(until_s))
        received = sock.recv(_HANDSHAKE_BYTES)
        if not received:
            raise ConnectionResetError("the server closed the connection during TLS's start")
    return tls


def _left(until_s: float) -> float:
    return max(0.001, until_s - time.monotonic())
