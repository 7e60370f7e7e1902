"""Where bytes of strangers are decoded, so that the loop never does."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any


class Pool:
    """Calls functions on threads of its own."""

    def __init__(
        self, num_threads: int, post: Callable[[Callable[[], None]], None], name: str = "pictures"
    ) -> None:
        """Start without a thread; `post` runs a function on the loop's thread."""
        self._threads = ThreadPoolExecutor(num_threads, name)
        self._post = post

    def submit(
        self, done: Callable[["Future[Any]"], None], function: Callable[..., Any], *args: Any
    ) -> "Future[Any]":
        """Call a function of a module; `done` gets its future on the loop's thread."""
        future = self._threads.submit(function, *args)
        future.add_done_callback(lambda ended: self._post(partial(done, ended)))
        return future

    def close(self) -> None:
        """Begin no further call."""
        self._threads.shutdown(wait=False, cancel_futures=True)
