"""A port's listening socket: when it accepts, and which callers it leaves to other workers."""

import errno
import logging
import selectors
import socket
from collections.abc import Callable, Iterator

from serving.system.listening import shares

_log = logging.getLogger(__name__)
_STARVED_LOG_S = 60.0
"""The least time between two lines that say that new connections wait."""
_LEFT_S = 1e-3
"""How long a new connection is left to another worker, which has fewer but may be busy."""
_MAX_ACCEPTED = 64
"""New connections accepted in a round."""


class Acceptor:
    """Accepts a port's connections; of the loop's thread."""

    def __init__(
        self,
        listener: socket.socket,
        port: object,
        selector: selectors.BaseSelector,
        hurry: Callable[[float], None],
    ) -> None:
        """Take over a socket; `listen` begins.

        Args:
            listener: listens already, and does not block; other workers may have it, too.
            port: whose socket it is: the data of its selector's key.
            selector: the loop's.
            hurry: has the loop's due work done so soon.
        """
        self._listener = listener
        self._port = port
        self._selector = selector
        self._hurry = hurry
        self._share = next((each for each in shares.values() if each.socket is listener), None)
        self._is_listening = False
        self.is_closed = False
        self._starved_s = -_STARVED_LOG_S
        """When the last line was logged about new connections that wait."""
        self._left_s = 0.0
        """Since when a connection is left to other workers, which have fewer; 0 if none is."""

    def listen(self, num_connections: int) -> None:
        """Accept new connections from now on, beside the `num_connections` that the port has."""
        if not self._is_listening and not self.is_closed:
            self._selector.register(self._listener, selectors.EVENT_READ, self._port)
            self._is_listening = True
            self.note(num_connections)

    def pause(self) -> None:
        """Leave new connections in the kernel's queue."""
        if self._is_listening:
            self._selector.unregister(self._listener)
            self._is_listening = False

    def close(self) -> None:
        """Close the socket."""
        self.is_closed = True
        self.pause()
        self._listener.close()

    def note(self, num_connections: int) -> None:
        """Tell other workers how many connections this one has."""
        if self._share is not None:
            self._share.note(num_connections)

    def accept(self, room: int, now_s: float) -> Iterator[socket.socket]:
        """Yield new connections, `room` at most; without descriptors for more it pauses."""
        for _ in range(min(room, _MAX_ACCEPTED if self._share is None else 1)):
            try:
                sock, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as err:
                self._note_failure(err, now_s)
                return
            yield sock

    def _note_failure(self, err: OSError, now_s: float) -> None:
        if err.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            if now_s - self._starved_s >= _STARVED_LOG_S:
                self._starved_s = now_s
                _log.warning("new connections wait: %s", err.strerror)
            self.pause()
        elif err.errno == errno.EINVAL and self._share is not None:
            self._share.listen()
        # Else the connection was gone before it was accepted.

    # Connections that other workers may take

    def leaves_to_others(self, now_s: float) -> bool:
        """Return whether the next connection is for a worker that has fewer, if it is quick."""
        if self._share is None or self._share.is_small:
            self._left_s = 0.0
        elif not self._left_s:
            self._left_s = now_s
            self._hurry(_LEFT_S)
        elif now_s - self._left_s >= _LEFT_S:
            self._left_s = 0.0
        return self._left_s > 0

    def is_left_too_long(self, now_s: float) -> bool:
        """Return whether no other worker may have taken a connection in time."""
        return self._left_s > 0 and now_s - self._left_s >= _LEFT_S

    def take_back(self) -> None:
        """Leave no connection to others for now."""
        self._left_s = 0.0
