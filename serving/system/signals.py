"""The server's handlers of SIGTERM, SIGINT and SIGHUP.

Before the server is ready, SIGTERM and SIGINT end it at once with exit code 0: it has accepted no
calls, so none is lost. A SIGHUP is kept until there is something to reload. The handlers stay
installed when the event loop ends; the kernel's default would kill the process.
"""

import os
import signal
from collections.abc import Callable
from contextlib import suppress
from functools import cache
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

if TYPE_CHECKING:
    import asyncio

_STOPS = (signal.SIGTERM, signal.SIGINT)
HANG_UP: int | None = getattr(signal, "SIGHUP", None)
"""None on Windows, where the other commands run."""
_early: list[int] = []


def install() -> None:
    """Install the handlers; from the main thread, and as early as possible."""
    for number in _callbacks:
        signal.signal(number, _handle)


def queue_stops() -> "asyncio.Queue[int]":
    """From now on, put SIGTERM and SIGINT into a queue.

    Returns:
        The queue of signal numbers, for the running event loop.
    """
    import asyncio

    loop = asyncio.get_running_loop()
    pipe = _woken_by_signals()
    loop.add_reader(pipe, os.read, pipe, 4096)
    stops: asyncio.Queue[int] = asyncio.Queue()
    for number in _STOPS:
        _callbacks[number] = lambda number: _call(loop, stops.put_nowait, number)
    return stops


@cache
def _woken_by_signals() -> int:
    """Return a pipe that every signal writes to.

    The kernel may deliver a signal to another thread, and Python's handler waits for the main one:
    without the pipe, an idle event loop would sleep on. uvloop has its own.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    before = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    if before != -1:
        signal.set_wakeup_fd(before, warn_on_full_buffer=False)
    return reader


def on_hang_up(callback: Callable[[], None]) -> None:
    """From now on, call `callback` on the running event loop at SIGHUP; at once if one was kept."""
    import asyncio

    loop = asyncio.get_running_loop()
    assert HANG_UP is not None
    _callbacks[HANG_UP] = lambda number: _call(loop, callback)
    if _early:
        _early.clear()
        callback()


def _call(loop: "asyncio.AbstractEventLoop", callback: Callable[..., None], *args: int) -> None:
    with suppress(RuntimeError):  # the loop has ended, and the process is ending
        loop.call_soon_threadsafe(callback, *args)


def end_process(exit_code: int) -> NoReturn:
    """End the process at once, after the log is written.

    A normal exit would wait for threads that hang, and daemon threads that return from C++
    meanwhile would abort it.
    """
    with suppress(Exception):  # a signal can come while logging is being imported
        import logging

        logging.shutdown()
    os._exit(exit_code)


def _handle(number: int, frame: FrameType | None) -> None:
    _callbacks[number](number)


def _leave(number: int) -> None:
    end_process(0)


_callbacks: dict[int, Callable[[int], None]] = dict.fromkeys(_STOPS, _leave)


if HANG_UP is not None:
    _callbacks[HANG_UP] = _early.append


HANDLED = tuple(_callbacks)
"""The signals that `install` handles."""
