"""Runs many images on several cores, for one caller."""

import os
from _thread import LockType, allocate_lock, get_ident, start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from serving.batching.request import Model
from serving.images import Images
from serving.predictions import Probabilities

_busy: set[int] = set()
"""Threads that are in `run_shared`, callers and helpers, of all models: they share the cores."""
if hasattr(os, "register_at_fork"):  # not on Windows, which has no fork
    os.register_at_fork(after_in_child=_busy.clear)


def run_shared(
    model: Model,
    images: Images,
    max_batch_size: int,
    enough_images: int,
    num_threads: int,
    is_cancelled: Callable[[], bool],
) -> Probabilities:
    """Run images in parts, on this thread and on helper threads that end with the call.

    Helpers start for cores that no other call uses: callers that keep all cores busy by themselves
    run whole batches. Starting a helper takes some 20 µs, a run of 128 images 600. Nothing is kept
    between calls, so there is nothing to close, to lose at a fork, or to hold when an exception
    ends the call.

    Args:
        model: the model; safe to call from many threads.
        images: (N, pixels) uint8.
        max_batch_size: the most images in one run.
        enough_images: how many are worth their own run on another core.
        num_threads: the most concurrent runs of all calls together.
        is_cancelled: once it returns True, no further run begins, and the answer is incomplete.

    Returns:
        (N, classes) float32; each row sums to 1.

    Raises:
        ModelError: a run failed.
    """
    thread = get_ident()
    try:
        _busy.add(thread)
        num_free = max(1, 1 + num_threads - len(_busy))
        num_parts = min(num_free, -(-len(images) // enough_images))
        if num_parts == 1 and len(images) <= max_batch_size:
            return model.run(images)
        return _run_parts(model, images, max_batch_size, num_parts, is_cancelled)
    finally:
        _busy.discard(thread)


def _run_parts(
    model: Model,
    images: Images,
    max_batch_size: int,
    num_threads: int,
    is_cancelled: Callable[[], bool],
) -> Probabilities:
    step = min(-(-len(images) // num_threads), max_batch_size)
    probabilities = np.empty((len(images), model.signature.num_classes), np.float32)
    starts = range(0, len(images), step)
    todo, done = deque(starts), set()

    def run(first: int) -> None:
        part = slice(first, first + step)
        probabilities[part] = model.run(images[part])
        done.add(first)

    def work() -> None:
        with suppress(IndexError):  # another thread took the last part
            while todo and not is_cancelled():
                run(todo.popleft())

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
            with busy:  # it has finished, or will find no part left
                pass
        for first in starts:
            if first not in done and not is_cancelled():  # a helper failed on it
                run(first)
    finally:
        todo.clear()  # so that helpers stop soon if the call ends early
    return probabilities
