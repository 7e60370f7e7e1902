"""Large requests in process, divided among the cores."""

import os
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from serving.errors import (
    Unavailable,
)
from serving.tensors import (
    Array,
    Feeds,
)

_busy: set[int] = set()
"""Threads that are in `run_parallel`, callers and helpers, of all models: they share the cores."""
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_busy.clear)


def run_parallel(
    run: Callable[[Feeds], list[Array]],
    feeds: Feeds,
    max_batch_size: int,
    enough_rows: int,
    num_threads: int,
    is_cancelled: Callable[[], bool],
    alone: Callable[[Feeds], list[Array]] | None = None,
) -> list[Array]:
    """Run rows in slices, on this thread and on helper threads that end with the call.

    Helpers start for cores that no other call uses: callers that keep all cores busy by themselves
    run whole batches. Starting a helper takes some 20 µs, a run of 128 rows 600. Nothing is kept
    between calls, so there is nothing to close, to lose at a fork, or to hold when an exception
    ends the call.

    Args:
        run: the model, whose rows are independent; safe to call from many threads.
        feeds: N rows of each input, N >= 1.
        max_batch_size: the most rows in one run.
        enough_rows: how many are worth their own run on another core.
        num_threads: the most concurrent runs of all calls together.
        is_cancelled: once it returns True, no further run begins.
        alone: runs the model on all cores, for a call beside which no other one runs; None if that
            gains nothing.

    Returns:
        N rows of each output.

    Raises:
        ModelError: a run failed.
        Unavailable: the call was cancelled.
    """
    thread, num_rows = get_ident(), len(next(iter(feeds.values())))
    try:
        _busy.add(thread)
        if alone is not None and len(_busy) == 1 and num_rows <= max_batch_size:
            return alone(feeds)
        num_free = max(1, 1 + num_threads - len(_busy))
        num_slices = min(num_free, -(-num_rows // enough_rows))
        if num_slices == 1 and num_rows <= max_batch_size:
            return run(feeds)
        step = min(-(-num_rows // num_slices), max_batch_size)
        return _run_slices(run, feeds, range(0, num_rows, step), num_slices, is_cancelled)
    finally:
        _busy.discard(thread)


def run_whole(
    run: Callable[[Feeds], list[Array]],
    feeds: Feeds,
    alone: Callable[[Feeds], list[Array]] | None,
) -> list[Array]:
    """Run a call that can't be divided: on all cores if no other one runs, as `run_parallel`."""
    thread = get_ident()
    try:
        _busy.add(thread)
        return run(feeds) if alone is None or len(_busy) > 1 else alone(feeds)
    finally:
        _busy.discard(thread)


def _run_slices(
    run: Callable[[Feeds], list[Array]],
    feeds: Feeds,
    starts: range,
    num_threads: int,
    is_cancelled: Callable[[], bool],
) -> list[Array]:
    todo, done = deque(starts), dict[int, list[Array]]()

    def run_slice(first: int) -> None:
        chosen = slice(first, first + starts.step)
        done[first] = run({name: rows[chosen] for name, rows in feeds.items()})

    def work() -> None:
        with suppress(IndexError):  # another thread took the last slice
            while todo and not is_cancelled():
                run_slice(todo.popleft())

    def help_out(busy: LockType) -> None:
        with busy, suppress(Exception):
            thread = get_ident()
            try:
                _busy.add(thread)
                work()
            finally:
                _busy.discard(thread)

    helpers = [allocate_lock() for _ in range(min(num_threads, len(starts)) - 1)]
    try:
        with suppress(RuntimeError):  # the system has no more threads: fewer will do
            for busy in helpers:
                start_new_thread(help_out, (busy,))
        work()
        for busy in helpers:
            with busy:  # it has finished, or will find no slice left
                pass
        for first in starts:
            if first not in done and not is_cancelled():  # a helper failed on it
                run_slice(first)
    finally:
        todo.clear()  # so that helpers stop soon if the call ends early
    if len(done) < len(starts):
        raise Unavailable("the call was cancelled")
    outputs = zip(*(done[first] for first in starts), strict=True)
    return [np.concatenate(slices) for slices in outputs]
