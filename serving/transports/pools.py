"""Where calls do work that may take long, away from the loop: on threads of this process."""

from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any, Protocol

from serving.processes.pool import JobLimits
from serving.router import Router
from serving.system.batch_threads import Task
from serving.system.host import Host

_LIMITS = JobLimits(192 << 20, 10.0)
"""Limits of what strangers send: 24 MB of numbers as JSON, a picture of 640 x 640 in colour, take
some 150 MB."""


class Pool(Protocol):
    """Calls functions where they may take long, such as `ProcessPool`."""

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        """Call a function of a module; the number of waiting calls of `owner` is limited."""

    def close(self) -> None:
        """Begin no further call."""


def decoders(router: Router, modules: Iterable[str]) -> Pool:
    """Return processes that read what strangers send: pictures, JSON, typed contents.

    Args:
        router: has them.
        modules: imports of the jobs.
    """
    return router.bounded_pool(modules, _LIMITS)


class OneThread:
    """A `Pool` for trusted work."""

    def __init__(self, name: str) -> None:
        self._thread = ThreadPoolExecutor(1, name)

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        return self._thread.submit(function, *args)

    def close(self) -> None:
        self._thread.shutdown(wait=False, cancel_futures=True)


_Post = Callable[[Callable[[], None]], None]


class ThreadEach:
    """A `Pool` with a thread for each function."""

    def __init__(self, host: Host, post: _Post) -> None:
        self._host, self._post = host, post

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        pool = FewThreads(self._host, self._post, 1)
        future = pool.submit(owner, function, *args)
        pool.close()
        return future

    def close(self) -> None:
        """Keep nothing open: each thread ends with its function."""


class FewThreads:
    """A `Pool` of threads that are kept; used by one thread, the loop's."""

    def __init__(self, host: Host, post: _Post, number: int) -> None:
        self._runners, self._post = host.runners(number), post

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]":
        future: Future[Any] = Future()

        def work() -> Task:
            if future.cancelled():  # the caller has left
                return lambda: None
            try:
                return partial(_settle, future, function(*args))
            except Exception as err:
                return partial(_settle, future, None, err)

        self._runners.put(work, self._post)
        return future

    def close(self) -> None:
        self._runners.close()


def _settle(future: "Future[Any]", outcome: Any, error: Exception | None = None) -> None:
    """Give a function's caller its outcome, on the loop's thread, unless the call is over."""
    if future.done():
        return
    if error is None:
        future.set_result(outcome)
    else:
        future.set_exception(error)
