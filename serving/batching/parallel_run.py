"""Runs many images on several cores, for one caller."""

from _thread import LockType, allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from serving.batching.request import Model
from serving.images import Images
from serving.predictions import Probabilities

ENOUGH_IMAGES = 128
"""Images that are worth their own run on another core: in larger runs each is hardly cheaper."""


def run_shared(
    model: Model,
    images: Images,
    max_batch_size: int,
    num_threads: int,
    is_cancelled: Callable[[], bool],
) -> Probabilities:
    """Run images in parts, on this thread and on helper threads that end with the call.

    Starting a helper takes some 20 µs, a run of 128 images 600. Nothing is kept between calls, so
    there is nothing to close, to lose at a fork, or to hold when an exception ends the call.

    Args:
        model: the model; safe to call from many threads.
        images: (N, pixels) uint8.
        max_batch_size: the most images in one run.
        num_threads: the most concurrent runs.
        is_cancelled: once it returns True, no further run begins, and the answer is incomplete.

    Returns:
        (N, classes) float32; each row sums to 1.

    Raises:
        ModelError: a run failed.
    """
    num_parts = min(num_threads, -(-len(images) // ENOUGH_IMAGES))
    step = min(-(-len(images) // num_parts), max_batch_size)
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
            work()

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
