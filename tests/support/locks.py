"""A lock that is handed in, and that a test can keep: does a method wait for it?"""

import threading
from contextlib import contextmanager

import pytest


class Kept(Exception):
    """In place of waiting for ever: the test has the lock."""


class KeptLock:
    """Any number of threads have it, until the test keeps it; then nobody gets it."""

    is_kept = False

    def __enter__(self):
        if self.is_kept:
            raise Kept

    def __exit__(self, *_):
        assert not self.is_kept


@contextmanager
def handed_in(lock):
    """Locks that are made meanwhile are this one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(threading, "Lock", lambda: lock)
        yield


def waits(lock, call):
    """Whether a call waits for a lock; it is ended there."""
    lock.is_kept = True
    try:
        call()
    except Kept:
        return True
    finally:
        lock.is_kept = False
    return False
