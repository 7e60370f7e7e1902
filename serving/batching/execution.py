"""Runs calls of a model together, and finds the poison request if that fails."""

import logging
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from serving.batching.group import Group, open_parts
from serving.batching.result import Result
from serving.signature import Signature
from serving.tensors import Array, Feeds, TensorSignature

_log = logging.getLogger(__name__)
_LOG_S = 1.0
"""The least time between two lines about calls of a version that can't be run."""

Run = Callable[[Feeds], list[Array]]


class Model(Protocol):
    """A model as its runs see it."""

    @property
    def version(self) -> str:
        """The version named in every answer."""

    @property
    def tensors(self) -> TensorSignature:
        """Its inputs and outputs."""

    @property
    def signature(self) -> Signature | None:
        """The signature of a classifier of images."""

    @property
    def quick_rows(self) -> int:
        """The most rows of a run that is quick enough for the thread that reads from callers."""

    @property
    def enough_rows(self) -> int:
        """Rows that are worth their own run on another core."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run inputs by name; returns the outputs in order."""


class Executor:
    """Runs calls of one version of a model."""

    def __init__(self, model: Model) -> None:
        """Prepare to run `model`."""
        self.model = model
        self._run = model.run
        self._version, self._signature = model.version, model.signature
        self._tensors = tensors = model.tensors
        self.is_batchable = tensors.is_batchable
        """Whether rows of several calls can run together."""
        self._are_rows = bool(tensors.row_bytes)
        self._logged_s = -math.inf
        self._num_unlogged = 0
        if self._are_rows:
            only = tensors.inputs[0]
            self._name, self._dtype, self._shape = only.name, only.dtype, (-1, *only.shape[1:])

    def run(
        self, groups: list[Group], clock: Callable[[], float], run: Run | None = None
    ) -> Iterator[tuple[list[Group], Result | None]]:
        """Run calls: all at once where that can be.

        If a run fails, its halves are run, until the call is known that makes runs fail.

        Args:
            groups: in the order of their rows.
            clock: monotonic, in seconds.
            run: how to run rows, if not by `model.run`.

        Yields:
            Calls that ran together, and their result; a call that can't be run, and None.
        """
        run = run or self._run
        todo = [groups] if self._are_rows else _alike(groups, is_batchable=self.is_batchable)
        while todo:
            part = todo.pop()
            started_s = clock()
            try:
                feeds, num_rows = self._feeds(part)
                outputs = run(feeds)
                # Else its outputs may have any shape.
                if self._signature or len(part) > 1 or len(part[0].streams) > 1:
                    for output in outputs:
                        if len(output) != num_rows:
                            raise ValueError(f"{num_rows} rows were answered with {len(output)}")
                facts = self._version, self._signature, started_s, clock()
                result = Result(outputs, num_rows, *facts)
            except BaseException as err:  # any error ends these calls and never the thread
                alive = open_parts(part)
                if _num_calls(alive) < _num_calls(part):  # it was given up, or failed by the others
                    todo += [alive] if alive else []
                elif halves := _halves(part):
                    todo += halves
                else:
                    self._log_failure(part[0].encoder.num_rows, err, clock())
                    yield part, None
            else:
                yield part, result

    def _log_failure(self, num_rows: int, error: BaseException, now_s: float) -> None:
        """Log a call that can't be run; of many in a second only the first."""
        if now_s - self._logged_s < _LOG_S:
            self._num_unlogged += 1
            return
        more = f", and {self._num_unlogged} more before" if self._num_unlogged else ""
        _log.error("a run of %d rows failed%s", num_rows, more, exc_info=error)
        self._logged_s, self._num_unlogged = now_s, 0

    def _feeds(self, groups: list[Group]) -> tuple[Feeds, int]:
        """Join the inputs of calls; returns them, and their number of rows."""
        messages: Sequence[Any]
        if len(groups) == 1:
            messages = groups[0].messages
        else:
            messages = [message for group in groups for message in group.messages]
        if self._are_rows:
            data = messages[0] if len(messages) == 1 else b"".join(messages)
            array = np.frombuffer(data, self._dtype)
            if self._dtype.itemsize > 1 and not array.flags.aligned:
                array = array.copy()
            array = array.reshape(self._shape)
            return {self._name: array}, len(array)
        columns: list[Sequence[Array]] = list(zip(*messages, strict=True))
        feeds = {
            tensor.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for tensor, arrays in zip(self._tensors.inputs, columns, strict=True)
        }
        return feeds, sum(group.num_rows for group in groups)


def _alike(groups: list[Group], *, is_batchable: bool) -> list[list[Group]]:
    """Divide calls into those that can run together, the last first."""
    calls = [group.cut(i, i + 1) for group in groups for i in range(len(group.streams))]
    if not is_batchable:
        return [[call] for call in reversed(calls)]
    alike: dict[object, list[Group]] = {}
    for call in calls:
        shapes = tuple(array.shape[1:] for array in call.messages[0])
        # Rows are proved independent for axes of one or more.
        alike.setdefault(shapes if all(map(all, shapes)) else object(), []).append(call)
    return list(reversed(alike.values()))


def _num_calls(groups: list[Group]) -> int:
    return sum(len(group.streams) for group in groups)


def _halves(groups: list[Group]) -> list[list[Group]]:
    """Divide calls, the last half first; none if it is one call."""
    if len(groups) > 1:
        middle = len(groups) // 2
        return [groups[middle:], groups[:middle]]
    group, number = groups[0], len(groups[0].streams)
    if number == 1:
        return []
    return [[group.cut(number // 2, number)], [group.cut(0, number // 2)]]
