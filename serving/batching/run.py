"""One run of a model: the calls of a batch, and the one that makes it fail."""

import logging
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np

from serving.batching.group import Group, open_parts
from serving.batching.result import Result
from serving.config import MOST_SIZE
from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, ServingError
from serving.tensors import Array, Feeds, Signature, TensorSignature

_log = logging.getLogger(__name__)
_LOG_S = 1.0
"""The least time between two lines about calls of a version that can't be run."""
Run = Callable[[Feeds], list[Array]]
FAILED = ModelError()
Outcome = tuple[list[Group], Result | ServingError]


class RunnableModel(Protocol):
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
    def inline_rows(self) -> int:
        """The most rows of a batch that runs inline, on the thread that reads from callers."""

    @property
    def enough_rows(self) -> int:
        """Rows that are worth their own run on another core."""

    def run(self, feeds: Feeds) -> list[Array]:
        """Run inputs by name; returns the outputs in order."""

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        """Return `run` for one call of it, and a function that ends it, from any thread."""


class Executor:
    """Runs calls of one version of a model."""

    def __init__(self, model: RunnableModel, guard: Callable[[Run], Run]) -> None:
        """Prepare.

        Args:
            model: the version.
            guard: wraps each function that runs it; see `Host.guard`.
        """
        self.model = model
        self._guard = guard
        self._run = guard(model.run)
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

    def stoppable(self) -> tuple[Run, Callable[[], None]]:
        """Return a function that runs the model once, and one that ends that run."""
        run, end = self.model.stoppable()
        return self._guard(run), end

    def run(
        self,
        groups: list[Group],
        clock: Callable[[], float],
        begin: Callable[[list[Group]], Run] | None = None,
    ) -> list[Outcome]:
        """Run calls: all at once where that can be.

        If a run fails, its halves are run, until the call is known that makes runs fail. A run that
        was ended is not repeated.

        Args:
            groups: in the order of their rows.
            clock: monotonic, in seconds.
            begin: takes calls that are about to run; returns how, if not by `model.run`.

        Returns:
            Calls that ran together, and their result; or calls that can't be run, and why.
        """
        outcomes: list[Outcome] = []
        todo = [groups] if self._are_rows else _alike(groups, is_batchable=self.is_batchable)
        while todo:
            part = todo.pop()
            started_s = clock()
            try:
                run = begin(part) if begin else self._run
                feeds, num_rows = self._feeds(part)
                outputs = run(feeds)
                # Else its outputs may have any shape.
                if self._signature or len(part) > 1 or len(part[0].streams) > 1:
                    for output in outputs:
                        if len(output) != num_rows:
                            raise ValueError(f"{num_rows} rows were answered with {len(output)}")
                facts = self._version, self._signature, started_s, clock()
                result = Result(outputs, num_rows, *facts)
            except DeadlineExceeded as err:
                outcomes.append((open_parts(part), err))
            except BaseException as err:  # any error ends these calls and never the thread
                alive = open_parts(part)
                if _num_calls(alive) < _num_calls(part):  # it was given up, or failed by the others
                    todo += [alive] if alive else []
                elif halves := _halves(part):
                    todo += halves
                elif isinstance(err, InvalidRequest):
                    outcomes.append((part, err))
                else:
                    self._log_failure(part[0].encoder.num_rows, err, clock())
                    outcomes.append((part, FAILED))
            else:
                outcomes.append((part, result))
        return outcomes

    def _log_failure(self, num_rows: int, error: BaseException, now_s: float) -> None:
        """Log a call that can't be run; of many in a second only the first."""
        if now_s - self._logged_s < _LOG_S:
            self._num_unlogged += 1
            return
        more = f", and {self._num_unlogged} more before" if self._num_unlogged else ""
        _log.error("a batch of %d rows failed%s", num_rows, more, exc_info=error)
        self._logged_s, self._num_unlogged = now_s, 0

    def _feeds(self, groups: list[Group]) -> tuple[Feeds, int]:
        """Join the inputs of calls; returns them, and their number of rows."""
        if self._are_rows:
            messages: Sequence[Any]
            if len(groups) == 1:
                messages = groups[0].messages
            else:
                messages = [message for group in groups for message in group.messages]
            data = messages[0] if len(messages) == 1 else b"".join(messages)
            array = np.frombuffer(data, self._dtype)
            if self._dtype.itemsize > 1 and not array.flags.aligned:
                array = array.copy()
            array = array.reshape(self._shape)
            return {self._name: array}, len(array)
        columns: list[Sequence[Array]] = list(zip(*_parts(groups), strict=True))
        feeds = {
            tensor.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for tensor, arrays in zip(self._tensors.inputs, columns, strict=True)
        }
        return feeds, sum(group.num_rows for group in groups)


def _parts(groups: list[Group]) -> Iterator[Sequence[Array]]:
    """Yield the inputs of one call after the other, or of many with one layout."""
    at = 0
    while at < len(groups):
        layout, messages = groups[at].encoder.layout, list(groups[at].messages)
        at += 1
        if layout is None:
            yield from messages
            continue
        while at < len(groups) and groups[at].encoder.layout is layout:
            messages += groups[at].messages
            at += 1
        yield layout.arrays(messages)


def _alike(groups: list[Group], *, is_batchable: bool) -> list[list[Group]]:
    """Divide calls into those that can run together, the last first."""
    if not is_batchable:
        calls = [group.cut(i, i + 1) for group in groups for i in range(len(group.streams))]
        return [[call] for call in reversed(calls)]
    alike: dict[object, list[Group]] = {}
    for group in groups:
        if (layout := group.encoder.layout) is not None:
            shapes = tuple(piece.shape[1:] for piece in layout.pieces)
            if _may_share(shapes):
                alike.setdefault(shapes, []).append(group)
            else:
                calls = [group.cut(at, at + 1) for at in range(len(group.messages))]
                alike |= {object(): [call] for call in calls}
            continue
        for at, arrays in enumerate(group.messages):
            shapes = tuple(array.shape[1:] for array in arrays)
            key = shapes if _may_share(shapes) else object()
            alike.setdefault(key, []).append(group.cut(at, at + 1))
    return list(reversed(alike.values()))


def _may_share(shapes: Iterable[Sequence[int]]) -> bool:
    """Return whether rows of these shapes are among those that the proof of batching is about."""
    return all(0 < size <= MOST_SIZE for shape in shapes for size in shape)


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
