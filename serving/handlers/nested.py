"""Calls that a handler makes of another model, while it works on a call of its own."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.batching.run import Group, Ran, Rows
from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, Overloaded, ServingError
from serving.handlers.cascades import MAX_DEPTH
from serving.handlers.trip import Slot, Trip
from serving.tensors import Array, TensorSignature, as_feeds

_log = logging.getLogger(__name__)

UNWANTED = DeadlineExceeded("nobody waits for the answer to this call any more")
"""The reply to a handler whose callers have left or are late."""

Find = Callable[[str], tuple[Any, TensorSignature]]
"""Returns the receiver of calls for another model, and its inputs and outputs."""


def infer(
    slot: Slot, find: Find, fields: Mapping[str, Any], arrays: Sequence[Array], now_s: float
) -> None:
    """Have another model run for a process, within the deadline of the call that it works on.

    Args:
        slot: the process, of which a thread waits for the reply.
        find: finds the model.
        fields: the process's message: the request's number, the model's name, and those of the
            inputs.
        arrays: the inputs.
        now_s: the time.
    """
    trip = slot.trip
    assert trip is not None
    nested = _Nested(slot, trip, fields["request"])
    slot.asked[nested.number] = nested
    if not trip.calls:
        nested.fail(None, UNWANTED)
        return
    try:
        if trip.depth >= MAX_DEPTH:
            raise InvalidRequest(f"more than {MAX_DEPTH} models call one another")
        target, tensors = find(str(fields["name"]))
        given: Any = dict(zip(fields["names"], arrays, strict=True))
        feeds = as_feeds(tensors, given[""] if [*given] == [""] else given)
        only = next(iter(feeds.values()))
        encoder = _NestedRows(target, None, len(only) if tensors.is_batchable else 1)
        encoder.depth, nested.names = trip.depth + 1, [each.name for each in tensors.outputs]
        message = only.tobytes() if tensors.row_bytes else tuple(feeds.values())
        group = Group(nested, [b""], [message], encoder, nested, now_s, trip.deadline_s)
        if not target.submit(group):
            raise Overloaded()
    except ServingError as err:
        nested.fail(None, err)
    except Exception as err:  # of a process that says something else than ours do
        _log.error("a handler's call of a model failed", exc_info=err)
        nested.fail(None, ModelError())


class _NestedRows(Rows):
    """Those of another model, which may have a handler."""

    depth = 0
    """How many handlers have called one another for it."""
    parameters: Mapping[str, Any] = {}


class _Nested:
    """A handler's call of another model: its caller, and the taker of its outcome."""

    address = ""
    gave_up_s = -math.inf

    def __init__(self, slot: Slot, trip: Trip, number: int) -> None:
        self._slot, self._trip, self.number = slot, trip, number
        self.queues: dict[Any, Any] = {}
        self.names: list[str] = []

    @property
    def streams(self) -> "_Nested":
        return self

    def __contains__(self, stream: object) -> bool:
        return self._slot.asked.get(self.number) is self and stream in self._trip

    def metadata(self, stream: object) -> Mapping[str, str]:
        return {}

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        if responses:
            outputs, result = responses[0]
            self._reply({"names": self.names, "version": result.version}, outputs)

    def fail(self, group: Group | None, error: ServingError) -> None:
        self._reply({"error": type(error).__name__, "text": str(error)})

    def _reply(self, fields: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
        if self._slot.asked.pop(self.number, None) is self:
            fields = {"kind": "reply", "job": self._trip.number, "request": self.number, **fields}
            self._slot.process.send(fields, arrays)
