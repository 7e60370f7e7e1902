"""Requests that repeat an earlier one of their connection up to the rows at their end."""

from collections.abc import Callable, Sequence
from typing import Any

from serving.batching.group import Group
from serving.errors import DigitsError
from serving.protocols.encoding import ResponseEncoder
from serving.transports.http1.answers import Answer, problem
from serving.transports.http1.connection import HttpConnection, Known
from serving.transports.http1.runs import Runs


class KnownCalls:
    """Has their rows run without reading the rest; used by the loop's thread only."""

    def __init__(
        self, runs: Runs, refuse: Callable[[Answer], bytes],
        end: Callable[..., None],
    ) -> None:  # fmt: skip
        """Connect the parts.

        Args:
            runs: has rows run.
            refuse: counts a refusal and encodes it.
            end: sends an answer, whole or without its first two lines.
        """
        self._runs = runs
        self._refuse = refuse
        self._end = end

    def take(self, connection: HttpConnection, data: bytes, now_s: float) -> bool:
        """Have the rows of a request run; return False if it is not known."""
        known = connection.known
        if (
            known is None
            or len(data) != known.num_bytes
            or not data.startswith(known.prefix)
            or connection.streams  # its answer comes first
            or connection.engine.num_waiting
        ):
            return False
        connection.is_running, connection.active_s = True, now_s
        connection.stream += 1
        stream: Any = connection.stream
        connection.streams.add(stream)
        rows, deadline_s = data[len(known.prefix) :], now_s + known.timeout_s
        self._runs.submit(
            Group(connection, [stream], [rows], known.encoder, self, now_s, deadline_s)
        )
        return True

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`; the encoder makes answers but for their first two lines."""
        connection: Any = group.caller
        if connection.is_open:
            self._end(connection, responses[0], is_whole=False)

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`; the next request is read, for this one may be for a model that is gone."""
        connection: Any = group.caller
        if connection.is_open:
            connection.known = None
            self._end(connection, self._refuse(problem(error)), is_whole=True)


def learn(
    connection: HttpConnection, body: bytes, num_bytes: int, encoder: ResponseEncoder,
    timeout_s: float,
) -> None:  # fmt: skip
    """Recognise requests from now on that differ from the last one in their last bytes only."""
    head = connection.engine.head
    prefix = head + body[: len(body) - num_bytes]
    connection.known = Known(prefix, len(head) + len(body), encoder, timeout_s)
