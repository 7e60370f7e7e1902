"""Limits of processor time for steps that can't be stopped."""

import concurrent.futures
import logging
import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import TypeVar

_log = logging.getLogger(__name__)

SLOW_S = 2.0
"""After this time on the clock a step is reported."""
_LOOK_S = 0.25
_MAX_QUIET_LOOKS = 240
"""Looks in a row, a minute in all, in which a step takes no processor time: it hangs in a file or
in a driver. Looks are counted, since a process that is stopped for an hour makes none."""
_Result = TypeVar("_Result")


def note_slow(name: str, step: str, limit_s: float) -> None:
    """Log that a step takes long."""
    _log.info(
        "model %s: %s goes on after %g s; the limit is %g s of processor time",
        name,
        step,
        SLOW_S,
        limit_s,
    )


def within(
    limit_s: float,
    work: Callable[[], _Result],
    look_s: float = _LOOK_S,
    on_slow: Callable[[], None] = lambda: None,
) -> _Result:
    """Do some work on a thread of its own, since a file or a graph that hangs can't be stopped.

    Args:
        limit_s: the most processor time of the thread, in seconds. macOS and Windows don't show
            it to other threads: there it is time on the clock.
        work: the step.
        look_s: seconds between two looks at the thread.
        on_slow: called once if the work takes more than 2 s on the clock.

    Raises:
        TimeoutError: it takes longer, or makes no progress for a minute; the thread is left
            behind.
    """
    future: Future[_Result] = Future()
    clock: Future[Callable[[], float]] = Future()

    def run() -> None:
        try:
            clock.set_result(_thread_clock())
            future.set_result(work())
        except BaseException as err:
            future.set_exception(err)

    threading.Thread(target=run, name="model-loader", daemon=True).start()
    used_s, num_quiet, slow_s = 0.0, 0, time.monotonic() + SLOW_S
    while not concurrent.futures.wait([future], look_s).done:
        if time.monotonic() >= slow_s:
            slow_s = math.inf
            on_slow()
        try:
            before_s, used_s = used_s, clock.result()()
        except OSError:  # the thread has ended since
            continue
        if used_s > limit_s:
            raise TimeoutError(f"is not ready after {limit_s:g} s of processor time")
        num_quiet = num_quiet + 1 if used_s == before_s else 0
        if num_quiet >= _MAX_QUIET_LOOKS:
            raise TimeoutError(f"makes no progress for {_MAX_QUIET_LOOKS * look_s:g} s")
    return future.result()


def _thread_clock() -> Callable[[], float]:
    """Return a clock of this thread's processor time that other threads can read."""
    if not hasattr(time, "pthread_getcpuclockid"):
        begin_s = time.monotonic()
        return lambda: time.monotonic() - begin_s
    clock_id = time.pthread_getcpuclockid(threading.get_ident())
    return partial(time.clock_gettime, clock_id)
