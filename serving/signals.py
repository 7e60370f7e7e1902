"""What SIGTERM, SIGINT and SIGHUP do, from a server's first moment to its last.

Until it serves, SIGTERM and SIGINT end it at once, exit code 0: it has accepted nothing, so that
nothing is lost. A SIGHUP is kept until there is something to reload. The handlers stay installed
when an event loop ends, so that no signal finds the kernel's own, which kill.
"""

import logging
import os
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from types import FrameType
from typing import NoReturn

STOP = (signal.SIGTERM, signal.SIGINT)
_ALL = (*STOP, signal.SIGHUP)


def heed() -> None:
    """Install the handlers; from the main thread, and as early as possible."""
    for number in _ALL:
        signal.signal(number, _handle)


def on_stop(callback: Callable[[int], None]) -> None:
    """Call this for SIGTERM and SIGINT from here on, in the main thread, between two bytecodes."""
    for number in STOP:
        _callbacks[number] = callback


def on_hang_up(callback: Callable[[int], None]) -> None:
    """Call this for SIGHUP from here on, and now if there was one already."""
    _callbacks[signal.SIGHUP] = callback
    while _early:
        callback(_early.pop())


def end_process(exit_code: int) -> NoReturn:
    """End at once, after what was logged is written.

    The interpreter's own end would wait for threads that hang, and daemon threads that come back
    from C++ meanwhile would abort it.
    """
    logging.shutdown()
    with suppress(OSError, ValueError, AttributeError):
        sys.stdout.flush()
    os._exit(exit_code)


def _handle(number: int, frame: FrameType | None) -> None:
    _callbacks[number](number)


def _leave(number: int) -> None:
    end_process(0)


_early: list[int] = []
_callbacks: dict[int, Callable[[int], None]] = {
    signal.SIGTERM: _leave,
    signal.SIGINT: _leave,
    signal.SIGHUP: _early.append,
}
