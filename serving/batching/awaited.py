"""Calls that an event loop awaits: runs of a classifier, and requests to a batcher."""

import asyncio
import itertools
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

from serving.batching.batcher import ClientQueue, Queue
from serving.batching.runs import NEVER, Group, Owner, Ran, ResponseEncoder
from serving.errors import DeadlineExceeded, Overloaded, ServingError
from serving.predictions import Images, Predictions

FEW_IMAGES = 16
"""The largest call that is worth waiting for others: a run of 16 images takes as long as the way to
a thread and back, some 100 µs."""

_Waiting = tuple[Images, "asyncio.Future[Predictions]"]
_Outcome = Predictions | BaseException


class AwaitedCalls:
    """The small calls of one event loop; used on that loop's thread only."""

    def __init__(
        self, loop: asyncio.AbstractEventLoop, classify: Callable[[Images], Predictions],
        max_batch_size: int, num_threads: int,
    ) -> None:  # fmt: skip
        """Prepare; the threads are those of the loop's executor.

        Args:
            loop: the event loop.
            classify: runs one batch; safe to call from many threads.
            max_batch_size: images that are enough for a run of their own; the most in one.
            num_threads: the most concurrent runs.
        """
        self._loop = loop
        self._classify = classify
        self._max_batch_size = max_batch_size
        self._num_threads = num_threads
        self._num_running = 0
        self._waiting: deque[_Waiting] = deque()
        self._num_images = 0
        """Images of the calls that wait."""
        self._is_due = False
        """Whether the loop's next turn starts a run."""

    async def classify(self, images: Images) -> Predictions:
        """Classify images together with those of other calls.

        A call that is cancelled before its run begins is left out.

        Raises:
            ServingError: as from `classify` for these images.
        """
        future: asyncio.Future[Predictions] = self._loop.create_future()
        self._waiting.append((images, future))
        self._num_images += len(images)
        if not self._is_due:
            self._is_due = True
            self._loop.call_soon(self._start)  # behind the tasks that are ready to call, too
        return await future

    def _start(self) -> None:
        """Start a run if none is on, and further ones that are full."""
        self._is_due = False
        while self._num_images and (
            not self._num_running
            or (self._num_images >= self._max_batch_size and self._num_running < self._num_threads)
        ):
            images, futures = self._take()
            if not images:
                continue
            try:
                run = self._loop.run_in_executor(None, _run, self._classify, images)
            except RuntimeError as err:  # the executor was shut down
                _deliver(futures, [err] * len(futures))
                continue
            self._num_running += 1
            run.add_done_callback(partial(self._finish, futures))

    def _take(self) -> tuple[list[Images], list["asyncio.Future[Predictions]"]]:
        """Take the calls of one run, without those that were cancelled."""
        images, futures, room = [], [], self._max_batch_size
        while self._waiting and len(self._waiting[0][0]) <= room:
            some, future = self._waiting.popleft()
            self._num_images -= len(some)
            if not future.done():
                images.append(some)
                futures.append(future)
                room -= len(some)
        return images, futures

    def _finish(
        self, futures: list["asyncio.Future[Predictions]"],
        run: "asyncio.Future[Sequence[_Outcome]]",
    ) -> None:  # fmt: skip
        self._num_running -= 1
        self._start()
        if run.cancelled():  # the executor was shut down
            _deliver(futures, [asyncio.CancelledError()] * len(futures))
        else:
            _deliver(futures, run.result())


def _run(classify: Callable[[Images], Predictions], images: list[Images]) -> Sequence[_Outcome]:
    """Run a batch; if it fails, each call's images alone, so that only the guilty call fails."""
    if len(images) == 1:
        try:
            return [classify(images[0])]
        except BaseException as err:
            return [err]
    try:
        answer = classify(np.concatenate(images))
    except Exception:
        return [outcome for each in images for outcome in _run(classify, [each])]
    ends = np.cumsum([len(each) for each in images]).tolist()
    return [answer[first:end] for first, end in zip([0, *ends], ends, strict=False)]


def _deliver(futures: list["asyncio.Future[Predictions]"], outcomes: Sequence[_Outcome]) -> None:
    for future, outcome in zip(futures, outcomes, strict=True):
        if future.done():  # its caller left
            continue
        if isinstance(outcome, Predictions):
            future.set_result(outcome)
        else:
            future.set_exception(outcome)


_numbers = itertools.count()


class AsyncCaller:
    """Who sends calls: they take turns with those of others."""

    def __init__(self, address: str) -> None:
        self.address = address
        self.streams: set[Any] = set()
        self.queues: dict[Queue, ClientQueue] = {}
        self.gave_up_s = -math.inf


def submit_of_stream(group: Group) -> int:
    """Let a message of a stream wait for a run, if there is room; see `Batcher.submit`."""
    target = group.encoder.target
    if not target.room_for_stream(group.num_rows):
        return 0
    target.add(group)
    return 1


async def submit(
    owner: Owner, peer: AsyncCaller, message: Any, encoder: ResponseEncoder,
    deadline_s: float = math.inf, enter: Callable[[Group], int] | None = None,
) -> tuple[Any, Ran]:  # fmt: skip
    """Have a request run; if the task is cancelled, it does not run.

    Args:
        owner: the thread of the batchers.
        peer: who sends it.
        message: its rows.
        encoder: makes its answer.
        deadline_s: when it is late, in monotonic seconds.
        enter: lets it wait, on the owner's thread; by default as a unary call.

    Returns:
        The response, and the run.

    Raises:
        Overloaded: there is no room in the queue.
        DeadlineExceeded: the deadline came first.
        ModelError: the run failed.
    """
    call, arrived_s, number = _Submitted(), time.monotonic(), next(_numbers)
    peer.streams.add(number)
    streams: Sequence[Any] = [number]
    group = Group(peer, streams, [message], encoder, call, arrived_s, deadline_s)
    owner.post(partial(call.begin, enter or encoder.target.submit, group))
    try:
        left_s = None if deadline_s == math.inf else deadline_s - arrived_s
        response = await asyncio.wait_for(call.outcome, left_s)
    except TimeoutError:
        raise DeadlineExceeded from None
    finally:
        peer.streams.discard(number)
    return response, call.run


class _Submitted:
    """Takes the outcome of one call, on the owner's thread."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()
        self.outcome: asyncio.Future[Any] = self._loop.create_future()
        self.run = NEVER
        """The run that answered it."""

    def begin(self, enter: Callable[[Group], int], group: Group) -> None:
        if not enter(group):
            self.fail(group, Overloaded())

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses:
            self.run = run
            self._loop.call_soon_threadsafe(self._settle, self.outcome.set_result, responses[0])

    def fail(self, group: Group, error: ServingError) -> None:
        self._loop.call_soon_threadsafe(self._settle, self.outcome.set_exception, error)

    def _settle(self, settle: Callable[[Any], None], outcome: Any) -> None:
        if not self.outcome.done():  # cancelled meanwhile
            settle(outcome)
