"""A request and its answer: a coroutine of the loop, which waits for runs and for other threads."""

import types
from collections.abc import Callable, Coroutine, Generator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol, TypeVar

from serving.batching.queue import Group, ResponseEncoder
from serving.errors import DigitsError, Overloaded
from serving.telemetry.tracing import NEVER, latest_run
from serving.transports.http1.problems import Answer
from serving.transports.http1.routing import RoutedRequest

SMALL_BYTES = 4096
"""The most that the loop itself decodes or writes: some 100 µs."""

Result = TypeVar("Result")


class Pool(Protocol):
    """Calls functions where they may take long, such as `Processes`."""

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function of a module; the number of waiting calls of `owner` is limited."""

    def close(self) -> None:
        """Begin no further call."""


class OneThread:
    """A `Pool` for trusted work."""

    def __init__(self, name: str) -> None:
        """Start nothing yet."""
        self._thread = ThreadPoolExecutor(1, name)

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """See `Pool`."""
        return self._thread.submit(function, *args)

    def close(self) -> None:
        """See `Pool`."""
        self._thread.shutdown(wait=False, cancel_futures=True)


@types.coroutine
def _outcome(begin: Callable[[], None]) -> Generator[Callable[[], None], Any, Any]:
    """Wait for the outcome of the work that `begin` begins."""
    return (yield begin)


def submit(group: Group) -> None:
    """Have the rows of a request run; its sink gets the outcome."""
    if not group.encoder.target.submit(group):
        group.sink.fail(group, Overloaded())


class Exchange:
    """A request that has come whole; used by the loop's thread only."""

    def __init__(
        self, calls: Any, connection: Any, plan: RoutedRequest, body: bytes, begun_s: float
    ) -> None:
        """Prepare; `start` begins.

        Args:
            calls: the `Calls` that it is one of.
            connection: the `HttpConnection` that it came on.
            plan: its routing.
            body: of the request.
            begun_s: when its head had come, in monotonic seconds.
        """
        self._calls = calls
        self.connection = connection
        self.plan = plan
        self.body = body
        self.deadline_s = begun_s + plan.timeout_s
        self.stream = connection.stream
        self.last_run = NEVER
        """The last run that answered it."""
        self._steps: Coroutine[Callable[[], None], Any, Answer] | None = None
        self._work: Future[Any] | None = None

    def start(self) -> None:
        """Begin to answer."""
        self._steps = self.plan.handler(self)
        self._step(self._steps.send, None)

    async def run(self, message: Any, encoder: ResponseEncoder, deadline_s: float) -> Any:
        """Have rows run, and return the response.

        Args:
            message: the rows: bytes, or an array for each input.
            encoder: makes the response.
            deadline_s: in monotonic seconds.

        Raises:
            DigitsError: there is no room, it was too late, or it failed.
        """
        group = Group(
            self.connection, [self.stream], [message], encoder, self, self._calls.clock(),
            deadline_s,
        )  # fmt: skip
        return await _outcome(partial(submit, group))

    async def work(
        self, function: Callable[..., Result], *args: Any, size: int | None = None,
        pool: Pool | None = None,
    ) -> Result:  # fmt: skip
        """Call a function where it may take long.

        Args:
            function: of a module.
            args: its arguments.
            size: bytes that it reads or writes; here and now if they are few.
            pool: where, if not in that for bytes of callers.

        Raises:
            DigitsError: see the function.
        """
        if size is not None and size <= SMALL_BYTES:
            return function(*args)

        post = self._calls.post

        def begin() -> None:
            where, owner = pool or self._calls.pool, self.connection.address or "unix"
            self._work = where.submit(owner, function, *args)
            self._work.add_done_callback(lambda future: post(partial(self._end_work, future)))

        result: Result = await _outcome(begin)
        return result

    def encode(self, answer: Answer) -> bytes:
        """Write an answer as this request has it, from its third line on."""
        encoded: bytes = self._calls.replies.encode(self.plan, answer)
        return encoded

    def learn(self, num_bytes: int, encoder: ResponseEncoder) -> None:
        """Have requests recognised that differ from this one in their last bytes only."""
        self._calls.learn(self, num_bytes, encoder)

    def _end_work(self, future: "Future[Any]") -> None:
        if self._steps is None or future is not self._work:
            return
        error = CancelledError() if future.cancelled() else future.exception()
        if error is None:
            self._step(self._steps.send, future.result())
            return
        self._step(self._steps.throw, error)
        error.__traceback__ = None  # a circle through the future, which would keep the body

    def answer(self, group: Group, responses: Sequence[Any]) -> None:
        """See `Sink`."""
        if responses and self._steps is not None:
            self.last_run = latest_run.get()
            self._step(self._steps.send, responses[0])

    def fail(self, group: Group, error: DigitsError) -> None:
        """See `Sink`."""
        if self._steps is not None:
            self._step(self._steps.throw, error)

    def end(self) -> None:
        """Give the rest up."""
        steps, self._steps = self._steps, None
        if steps is not None:
            steps.close()
        work, self._work, self.body = self._work, None, b""  # a circle, which would keep the body
        if work is not None:
            work.cancel()

    def _step(self, resume: Callable[[Any], Callable[[], None]], outcome: Any) -> None:
        """Go on with an outcome, up to the next thing to wait for."""
        try:
            resume(outcome)()
        except StopIteration as end:
            self._calls.replies.reply(self.connection, end.value)
        except Exception as err:
            self._calls.replies.fail(self.connection, err)
