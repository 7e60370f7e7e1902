"""The way of requests to the batchers, which may belong to another thread."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.batching.group import Group, Sink
from serving.errors import DigitsError, Overloaded
from serving.router import Router
from serving.telemetry.tracing import latest_run
from serving.transports.http1.http_peer import HttpConnection, Known
from serving.transports.http1.replies import Replies
from serving.transports.sockets.loop import Loop


class BatcherProxy:
    """Has rows run; used by the loop's thread only."""

    def __init__(self, router: Router, loop: Loop) -> None:
        """Submit to the batchers of `router`, whether they belong to `loop` or not."""
        self._router = router
        self._loop = loop

    def submit(self, group: Group) -> None:
        """Have the rows of a request run; its sink gets the outcome, on the loop's thread."""
        if self._router.owner is self._loop:
            _submit(group)
        else:
            group.sink = _Posted(group.sink, self._loop.post)
            self._post(partial(_submit, group))

    def forget(self, connection: Any) -> None:
        """Drop the waiting calls of a connection that is over."""
        for batcher in self._router.batchers:
            if self._router.owner is self._loop:
                batcher.forget(connection)
            else:
                self._post(partial(batcher.forget, connection))

    def _post(self, task: Callable[[], None]) -> None:
        assert self._router.owner is not None
        self._router.owner.post(task)


class KnownCall:
    """Takes the outcomes of requests that were recognised, of which only the rows were read."""

    def __init__(self, replies: Replies) -> None:
        """Answer by `replies`."""
        self._replies = replies

    def group(self, connection: HttpConnection, known: Known, data: bytes, now_s: float) -> Group:
        """Return the batcher's side of a request."""
        stream: Any = connection.stream
        rows, deadline_s = data[len(known.prefix) :], now_s + known.timeout_s
        return Group(connection, [stream], [rows], known.encoder, self, now_s, deadline_s)

    def answer(self, group: Group, responses: Sequence[bytes]) -> None:
        """See `Sink`; the encoder makes answers but for their first two lines."""
        self._end(group, responses[0])

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        self._end(group, error)

    def _end(self, group: Group, answer: bytes | DigitsError) -> None:
        connection: Any = group.caller
        if connection.is_open:
            self._replies.end_known(connection, answer)


class _Posted:
    """Takes outcomes on the thread of the batchers' owner, and hands them on to the loop."""

    def __init__(self, sink: Sink, post: Callable[[Callable[[], None]], None]) -> None:
        self._sink = sink
        self._post = post

    def answer(self, group: Group, responses: Sequence[Any]) -> None:
        run = latest_run.get()

        def hand_on() -> None:
            latest_run.set(run)
            self._sink.answer(group, responses)

        if responses:
            self._post(hand_on)

    def fail(self, group: Group, error: DigitsError) -> None:
        self._post(partial(self._sink.fail, group, error))


def _submit(group: Group) -> None:
    encoder: Any = group.encoder
    if not encoder.target.submit(group):
        group.sink.fail(group, Overloaded())
