"""Keeps threads out of ONNX Runtime while the process forks or exits.

A lock of the runtime that another thread holds at a fork stays locked in the child. A daemon thread
that returns from the runtime while the interpreter shuts down is ended by it, and the C++ frames of
that thread then abort the process ("terminate called without an active exception").
"""

import atexit
import os
import time
from _thread import RLock
from threading import get_ident

_MAX_WAIT_S = 5.0
"""How long a fork or an exit waits for runs that may hang."""

_locks: dict[int, RLock] = {}
"""Each thread's lock, held during its runs. An RLock, so that a thread can't deadlock on its
own."""
_newcomers = RLock()
"""Held while a thread is added."""
_held: list[RLock] = []


def native_run() -> RLock:
    """Return the lock that this thread holds while it runs native code."""
    return _locks.get(get_ident()) or _new_lock()


def _new_lock() -> RLock:
    with _newcomers:
        return _locks.setdefault(get_ident(), RLock())


def _pause() -> None:
    """Wait until the other threads have left ONNX Runtime, and keep them out."""
    until_s = time.monotonic() + _MAX_WAIT_S
    _hold(_newcomers, until_s)
    for ident, lock in list(_locks.items()):
        if ident != get_ident():
            _hold(lock, until_s)


def _hold(lock: RLock, until_s: float) -> None:
    if lock.acquire(timeout=max(0.0, until_s - time.monotonic())):
        _held.append(lock)


def _resume() -> None:
    while _held:
        _held.pop().release()


def _forget() -> None:
    """Start empty in the child of a fork, where the other threads are gone."""
    global _newcomers
    _newcomers = RLock()
    _locks.clear()
    _held.clear()


atexit.register(_pause)
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(before=_pause, after_in_parent=_resume, after_in_child=_forget)
