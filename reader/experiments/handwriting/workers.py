"""Work on many pages on all cores: each process has the digits and the pretrained model."""

import multiprocessing
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import TypeVar

from digit_classifier import Classifier
from training.data.mnist import Examples

_Task = TypeVar("_Task")
_Result = TypeVar("_Result")

_CHUNK = 4
"""Tasks that a process takes at a time."""


def on_all_cores(
    work: Callable[[Examples, Classifier, _Task], _Result],
    digits: Examples,
    tasks: Iterable[_Task],
) -> Iterator[_Result]:
    """Do each task in some process, and yield the results in the order of the tasks."""
    with multiprocessing.Pool(initializer=_start, initargs=(digits,)) as pool:
        yield from pool.imap(partial(_do, work), tasks, _CHUNK)


_shared: list[tuple[Examples, Classifier]] = []


def _start(digits: Examples) -> None:
    _shared[:] = [(digits, Classifier.pretrained(device="cpu"))]


def _do(work: Callable[[Examples, Classifier, _Task], _Result], task: _Task) -> _Result:
    return work(*_shared[0], task)
