"""A function's results for many items, each made in a process."""

from collections import deque
from collections.abc import Callable, Generator, Iterable
from concurrent.futures import Future
from typing import Any

from serving.errors import DeadlineExceeded, InvalidRequest
from serving.system.processes.pool import Processes
from serving.system.processes.zygote import CAN_FORK


def mapped(
    pool: Processes, function: Callable[..., Any], items: Iterable[Any], ahead: int
) -> Generator[Any, None, None]:
    """Yield a function's result for each item, in order; for one that crashes, why: a text.

    Windows has no fork: there the jobs are done in this process, which a crash takes along.

    Args:
        pool: makes the results.
        function: of a module.
        items: its argument; `ahead` of them are read before their results are wanted.
        ahead: see above.
    """
    if not CAN_FORK:
        yield from map(function, items)
        return
    futures: deque[Future[Any]] = deque()
    try:
        for item in items:
            futures.append(pool.submit("", function, item))
            if len(futures) > ahead:
                yield _outcome(futures.popleft())
        while futures:
            yield _outcome(futures.popleft())
    finally:
        for future in futures:
            future.cancel()


def _outcome(future: "Future[Any]") -> Any:
    try:
        return future.result()
    except (InvalidRequest, DeadlineExceeded) as err:
        return str(err)
