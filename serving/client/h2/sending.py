"""The sending half of a connection that threads share."""

import math
import select
import socket
import time
from _thread import allocate_lock
from contextlib import suppress

from serving.client.h2.connect import is_alarm
from serving.client.h2.session import Session
from serving.client.transport import KEEPALIVE_TIME_S, KEEPALIVE_TIMEOUT_S, Failure
from serving.credentials.tls import Plain, Tls
from serving.protocols.status import StatusCode

_STALLED_S = KEEPALIVE_TIME_S + KEEPALIVE_TIMEOUT_S
"""How long a server may take to read a request."""


class SharedSocket:
    """A socket, its encryption, and the calls on it."""

    def __init__(self, sock: socket.socket, session: Session, cipher: Tls | Plain) -> None:
        """Take a connected socket, after TLS's handshake."""
        sock.settimeout(None)
        self._socket = sock
        self._session = session
        self._cipher = cipher
        self._lock = allocate_lock()
        """Guards the session and all flags; held for bookkeeping only."""
        self._is_writing = self._is_lost = False
        self._send(self._take())

    def __del__(self) -> None:
        # Not before: the number could go to another socket while a thread still reads.
        self._socket.close()

    def _end(self, failure: Failure) -> None:
        """End all calls; called with the lock."""
        if not self._is_lost:
            self._is_lost = True
            self._fail_all(failure)
            with suppress(OSError):  # the server was faster
                self._socket.shutdown(socket.SHUT_RDWR)  # wakes who reads

    def _fail_all(self, failure: Failure) -> None:
        """End all calls; called with the lock."""
        self._session.fail_all(failure)

    def _take(self) -> bytes:
        """Return the bytes to send, for `_send`, unless another thread sends; with the lock held.

        The thread that sends also sends bytes that other threads add meanwhile.
        """
        if self._is_writing or self._is_lost:
            return b""
        data = self._cipher.encrypt(self._session.data_to_send())
        self._is_writing = bool(data)
        return data

    def _send(self, data: bytes, until_s: float = math.inf) -> None:
        """Send the bytes of `_take`, and those ready then; a server may have to read first.

        Args:
            data: may be empty.
            until_s: when to give the connection up, if that is before `_STALLED_S` is over.
        """
        try:
            while data:
                sent = self._send_part(data, until_s)
                with self._lock:
                    self._is_writing = False
                    data = data[sent:] or self._take()
                    self._is_writing = bool(data)
        except BaseException as err:  # a part of the bytes is lost
            with self._lock:
                self._is_writing = False
                self._end((StatusCode.UNAVAILABLE, f"can't send: {err}"))
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
