"""Where the loop has done what may take long: on threads what is trusted, the rest in processes."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import Any

from serving.system.processes.pool import Processes


class Pool:
    """Calls functions elsewhere, and has the loop told."""

    def __init__(
        self, workers: Processes | ThreadPoolExecutor, post: Callable[[Callable[[], None]], None]
    ) -> None:
        """Start nothing; `post` runs a function on the loop's thread."""
        self._workers = workers
        self._post = post

    def submit(
        self, owner: str, done: Callable[["Future[Any]"], None], function: Callable[..., Any],
        *args: Any,
    ) -> "Future[Any]":  # fmt: skip
        """Call a function of a module.

        Args:
            owner: the caller's address: processes have a share for each.
            done: gets the future on the loop's thread.
            function: of a module.
            args: its arguments.

        Raises:
            Overloaded: too many wait.
        """
        workers = self._workers
        if isinstance(workers, Processes):
            future = workers.submit(owner, function, *args)
        else:
            future = workers.submit(function, *args)
        future.add_done_callback(lambda ended: self._post(partial(done, ended)))
        return future

    def close(self) -> None:
        """Begin no further call."""
        if isinstance(self._workers, Processes):
            self._workers.close()
        else:
            self._workers.shutdown(wait=False, cancel_futures=True)
