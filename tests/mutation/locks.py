"""Files of the cache that runs at the same time share: one run at a time has each."""

import contextlib
import fcntl

WAITS = fcntl.LOCK_EX
REFUSES = fcntl.LOCK_EX | fcntl.LOCK_NB


class Busy(Exception):
    """Another run has the file; the text says which."""


@contextlib.contextmanager
def locked(path, how):
    """Have a file for this run alone.

    Args:
        path: the file; it need not be there.
        how: whether it waits for a run that has the file, or refuses: WAITS or REFUSES.

    Raises:
        Busy: another run has it.
    """
    with path.with_suffix(".lock").open("w") as lock:
        try:
            fcntl.flock(lock, how)
        except BlockingIOError:
            text = f"another run of the same draw has {path}: wait, or draw another seed"
            raise Busy(text) from None
        yield
