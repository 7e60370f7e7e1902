"""Runs many images on several cores, for one caller."""

from _thread import LockType, allocate_lock, start_new_thread
from collections import deque
from collections.abc import Callable
from contextlib import suppress

import numpy as np

from serving.batching.request import Model
from serving.images import Images
from serving.predictions import NUM_CLASSES, Probabilities


def run_shared(
    model: Model, images: Images, step: int, num_threads: int, is_cancelled: Callable[[], bool]
) -> Probabilities:
    """Run images in parts, on this thread and on helpers that live as long as the call.

    Starting a helper takes some 20 µs, a run of 128 images 600. There is nothing to keep between
    calls, so nothing to close, to lose at a fork, or to hold when an exception ends the call.

    Args:
        model: what runs; safe to call from many threads.
        images: (N, 784) uint8.
        step: images in one run.
        num_threads: the most runs at once.
        is_cancelled: once it says True, no further run begins, and the answer is not whole.

    Raises:
        ModelError: a run failed.
    """
    probabilities = np.empty((len(images), NUM_CLASSES), np.float32)
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

    helpers: list[LockType] = []
    try:
        with suppress(RuntimeError):  # no more threads to be had: fewer do
            while len(helpers) < min(num_threads, len(starts)) - 1:
                helpers.append(allocate_lock())
                start_new_thread(help_out, (helpers[-1],))
        work()
        for busy in helpers:
            with busy:  # it has finished, or will find nothing to do
                pass
        for first in starts:
            if first not in done and not is_cancelled():  # a helper failed at it
                run(first)
    finally:
        todo.clear()  # the helpers of a call that ended early stop soon
    return probabilities
