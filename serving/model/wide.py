"""Whether a call that is alone gains by several threads: measured, not guessed.

One thread a run is best where several callers wait: each core has a run of its own. A lone caller
of a large network then waits while the other cores idle: a row of ResNet50 takes 72 ms on one
thread and 37 on two. ONNX Runtime fixes a session's threads when it is built, so a second, wide
session stands beside the narrow one, with weights of its own.

What is measured is the processor time of the thread that asks for a run: where other threads take
their parts of it, it has less. Seconds on the clock would say the same on an idle machine alone.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Callable
from itertools import count
from statistics import median
from typing import Protocol, TypeVar

import numpy as np

from serving.errors import InvalidRequest, ModelError
from serving.tensors import Array, Feeds, TensorSignature

_log = logging.getLogger(__name__)

_LONG_S = 0.0004
"""Processor time of a run that may gain: waking a thread takes some 0.05 ms. A run of an LSTM of
0.45 ms takes 0.28 on two threads."""
_MOST_SHARE = 0.85
"""The most of a run that its own thread does, or the wide session is not worth its memory."""
_NUM_TRIES, _TRIES_S = 5, 0.2
"""Wide runs at least, and this thread's time for more; the smallest share counts, for other threads
may not get a core at once, and this one spins meanwhile."""
MANY_ROWS = 32
"""Rows of a call that may gain where one is too short: of a network of convolutions of 0.35 ms a
row 12.4 ms on one thread, 6.5 on two."""
_OPEN_SIZE = 64
"""The size of axes that callers choose: drawn rows have a few, which shows nothing."""

_MAX_BYTES = 1 << 20
"""The most bytes of such inputs: an axis of pictures that can't be batched is no text's length."""

_Run = Callable[[Feeds], list[Array]]


class _Engine(Protocol):
    def run(self, feeds: Feeds) -> list[Array]:
        """Run the model once."""


_Wide = TypeVar("_Wide", bound=_Engine)


class Alone:
    """Which engine runs the next call that is alone: the one that was faster for such sizes.

    The trial at the load shows that several threads can gain. Whether they do depends on the rows,
    and on the other programs of the machine: each waits for the slowest of its threads, so a run of
    20 ms on two threads takes 30 beside a busy process, and 17 on one. Safe to use from any thread.

    Only runs behind one of their own kind count: the first one wakes threads, and finds its memory
    out of the caches (8 rows of a small network of convolutions: 2.9 ms, then 1.9).
    """

    _NUM_FIRST = 3
    """Runs of each before one is chosen."""
    _AGAIN, _TRIES = 64, 2
    """Calls after which the other one is tried, and how often: 3 % of them may take longer."""
    _KEPT, _CHOOSE = 7, 8
    """Times whose median counts, and calls after which it is compared again: that takes 3 us."""

    def __init__(self) -> None:
        self._times_s: dict[int, tuple[deque[float], deque[float]]] = {}
        """By the size of a call, as a power of two: the last times of the narrow and the wide."""
        self._calls: Counter[int] = Counter()
        self._chosen: dict[int, bool] = {}
        """Whether such calls run wide, once both have been tried."""
        self._last: dict[int, bool] = {}
        """Whether the last run of such a call was wide."""

    def is_wide(self, size: int) -> bool:
        """Return whether a call is to run on several threads.

        Args:
            size: the elements of its inputs.
        """
        size = size.bit_length()
        number = self._calls[size] = self._calls[size] + 1
        chosen = self._chosen.get(size)
        if chosen is None:
            _, wide_s = self._times_s.get(size, ((), ()))
            return len(wide_s) < self._NUM_FIRST
        return chosen != (number % self._AGAIN < self._TRIES)

    def note(self, size: int, seconds: float, *, is_wide: bool) -> None:
        """Note how long a call took."""
        size = size.bit_length()
        before, self._last[size] = self._last.get(size), is_wide
        if before != is_wide:
            return
        both = self._times_s.get(size)
        if both is None:
            new = deque[float](maxlen=self._KEPT), deque[float](maxlen=self._KEPT)
            both = self._times_s.setdefault(size, new)
        both[is_wide].append(seconds)
        if is_wide is self._chosen.get(size) and self._calls[size] % self._CHOOSE:
            return
        narrow_s, wide_s = both
        if min(len(narrow_s), len(wide_s)) >= self._NUM_FIRST:
            self._chosen[size] = bool(median([*wide_s]) < median([*narrow_s]))


def gains(
    label: tuple[str, str],
    run: _Run,
    widen: Callable[[], _Wide],
    feeds: Feeds,
    many: Feeds | None = None,
) -> _Wide | None:
    """Return a wide engine if a call alone gains by it.

    Args:
        label: the model's name and its version, for the log.
        run: runs the model on one thread.
        widen: builds an engine whose runs have several threads; called for long runs alone.
        feeds: the inputs of a call that runs.
        many: those of a call of several rows, which may gain where a row is too short.
    """
    narrow_s = min(_thread_s(run, feeds) for _ in range(2))  # the first one reserves memory
    if narrow_s < _LONG_S and many is not None:
        feeds = many
        narrow_s = min(_thread_s(run, feeds) for _ in range(2))
    if narrow_s < _LONG_S:
        return None
    wide = widen()
    wide.run(feeds)
    until_s = time.thread_time() + _TRIES_S
    for number in count(1):
        if number > _NUM_TRIES and time.thread_time() > until_s:
            break
        if _thread_s(wide.run, feeds) <= _MOST_SHARE * narrow_s:
            _log.info("model %s version %s: a call that is alone runs on several threads", *label)
            return wide
    return None


def _thread_s(run: _Run, feeds: Feeds) -> float:
    """Return the processor time of this thread during a run."""
    begin_s = time.thread_time()
    run(feeds)
    return time.thread_time() - begin_s


def usual_feeds(run: _Run, tensors: TensorSignature, feeds: Feeds) -> Feeds:
    """Return inputs of a usual size where callers choose the sizes, if the model takes them.

    Args:
        run: runs the model.
        tensors: its inputs and outputs.
        feeds: inputs that were drawn, and that it takes.
    """
    larger = {}
    for tensor in tensors.inputs:
        array = feeds[tensor.name]
        is_open = [
            size == -1 and not (at == 0 and tensors.is_batchable)
            for at, size in enumerate(tensor.shape)
        ]
        sizes = [
            max(size, _OPEN_SIZE) if free else size
            for size, free in zip(array.shape, is_open, strict=False)
        ]
        larger[tensor.name] = np.resize(array, sizes)
    num_bytes = sum(array.nbytes for array in larger.values())
    is_same = all(larger[name].shape == array.shape for name, array in feeds.items())
    if is_same or num_bytes > _MAX_BYTES:
        return feeds
    try:
        run(larger)
    except (InvalidRequest, ModelError):  # its sizes depend on one another
        return feeds
    return larger
