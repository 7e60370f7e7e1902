"""For runs that nobody watches: programs get the usual signals, and a test that can't end ends all.

A plugin of pytest's.
"""

import faulthandler
import os
import signal

import pytest

LIMIT_S = pytest.StashKey[float]()
STDERR = pytest.StashKey[int]()
EXIT_S = 60.0
"""How long the interpreter may wait for threads at its end."""

for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
    if signal.getsignal(number) is signal.SIG_IGN:  # by nohup, or by a script's `make test &`
        signal.signal(number, lambda *_: None)  # the same for pytest; programs don't inherit it


def pytest_configure(config):
    """Keep stderr: that of a test is captured."""
    config.stash[STDERR] = os.dup(2)


@pytest.hookimpl(tryfirst=True)
def pytest_timeout_set_timer(item, settings):
    """Arm a second limit: the exception of the first one may end in a cleanup that hangs."""
    item.stash[LIMIT_S] = 1.25 * settings.timeout
    _arm(item)


@pytest.hookimpl(trylast=True)
def pytest_exception_interact(node):
    """Arm it again: pytest disarms it when a test fails, and fixtures are still to end."""
    if LIMIT_S in node.stash:
        _arm(node)


def pytest_timeout_cancel_timer():
    """Disarm it."""
    faulthandler.cancel_dump_traceback_later()


def pytest_unconfigure(config):
    """Bound the wait for threads that a test left; one of several workers waits for the others."""
    if not hasattr(config, "workerinput"):
        faulthandler.dump_traceback_later(EXIT_S, exit=True, file=config.stash[STDERR])


def _arm(node):
    stderr = node.config.stash[STDERR]
    faulthandler.dump_traceback_later(node.stash[LIMIT_S], exit=True, file=stderr)
