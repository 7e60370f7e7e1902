"""The way of requests to the batchers, which may belong to another thread."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from serving.batching.group import Group, Sink
from serving.errors import DigitsError, Overloaded
from serving.router import Router
from serving.telemetry.tracing import latest_run
from serving.transports.h2.loop import Loop


class Runs:
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
        """Drop what waits of a connection that is over."""
        for batcher in self._router.batchers:
            if self._router.owner is self._loop:
                batcher.forget(connection)
            else:
                self._post(partial(batcher.forget, connection))

    def _post(self, task: Callable[[], None]) -> None:
        assert self._router.owner is not None
        self._router.owner.post(task)


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
