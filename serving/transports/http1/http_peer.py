"""One peer of HTTP/1.1: one request at a time, answered in order."""

import socket
from typing import Any

from serving.credentials.tls import Tls
from serving.http1.requests import ServerConnection
from serving.system.host import Host
from serving.transports.access_log import LoggedCall
from serving.transports.connections import Peer, peer_of
from serving.transports.http1.exchange import Exchange
from serving.transports.http1.known import Known
from serving.transports.http1.routing import RoutedRequest


class HttpConnection(Peer):
    """A `Peer` that speaks HTTP/1.1."""

    __slots__ = (
        "_answers", "begun_s", "engine", "exchange", "is_ahead", "is_early", "is_running", "known",
        "logged", "num_unsent", "plan", "recent", "stream",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, tls: Tls | None, host: Host) -> None:
        """See `Peer`."""
        super().__init__(sock, tls, host)
        self.engine = ServerConnection()
        self.streams: set[Any] = set()
        """The number of the request in progress, if there is one."""
        self.data_to_send = self._take_answers
        self._answers: list[bytes] = []
        self.num_unsent = 0
        """Bytes of answers that wait for the end of the round."""
        self.stream = 0
        """How many requests have begun."""
        self.is_early = True
        """Whether a head is on its way, which is bounded by time."""
        self.plan: RoutedRequest | None = None
        """The request in progress."""
        self.begun_s = 0.0
        """When its head had come."""
        self.recent: RoutedRequest | None = None
        """That of the last request: the same again if its head is."""
        self.exchange: Exchange | None = None
        self.is_running = False
        """Whether a request has come whole and is not answered."""
        self.is_ahead = False
        """Whether requests that have come wait for their turn."""
        self.known: Known | None = None
        self.logged: LoggedCall | None = None
        """The log entry of the request in progress."""

    @property
    def peer(self) -> str:
        """Its address and port."""
        return peer_of(self.socket)

    @property
    def is_established(self) -> bool:
        """See `Peer`."""
        return not self.is_early

    @property
    def is_kept(self) -> bool:
        """See `Peer`: a peer that has not sent all is slow."""
        return bool(self.is_running or self.output)

    @property
    def is_pending(self) -> bool:
        """See `Peer`."""
        return bool(self.is_running or self.output or self._answers)

    def read(self, buffer: memoryview) -> bytes | None:
        """See `Peer`; not while requests sent ahead wait for their turn or for room."""
        return b"" if self.is_ahead or self.unread else super().read(buffer)

    def forget_known(self) -> None:
        """See `Peer`."""
        self.known = self.recent = None

    def begin(self, now_s: float) -> None:
        """Begin a request."""
        self.begun_s = self.swept_s = self.active_s = now_s
        self.stream += 1
        self.streams.add(self.stream)

    def read_no_more(self) -> None:
        """Close the connection after the next answer, and forget its unread bytes."""
        self.is_last, self.engine = True, ServerConnection()

    def write(self, answer: bytes) -> None:
        """Have an answer, or a part of one, sent at the end of the round."""
        self._answers.append(answer)
        self.num_unsent += len(answer)

    def _take_answers(self) -> bytes:
        answers, self._answers, self.num_unsent = self._answers, [], 0
        return answers[0] if len(answers) == 1 else b"".join(answers)

    def close(self) -> None:
        """See `Peer`; its memory is free at once, without the circle to itself."""
        super().close()
        self.data_to_send = bytes

    def resume(self, now_s: float) -> None:
        """Read the next requests: the answers before them were sent."""
        self.home.calls.queue(self)
