"""Calls that a handler makes of another model, while it works on a call of its own."""

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from serving.batching.run import Group, Ran, Rows
from serving.errors import DeadlineExceeded, InvalidRequest, ModelError, Overloaded, ServingError
from serving.handlers.cascades import MAX_DEPTH
from serving.handlers.joined import Joined
from serving.tensors import Array, TensorSignature, as_feeds

_log = logging.getLogger(__name__)

UNWANTED = DeadlineExceeded("nobody waits for the answer to this call any more")
"""The reply to a handler whose callers have left or are late."""

Find = Callable[[str], tuple[Any, TensorSignature]]
"""Returns the receiver of calls for another model, and its inputs and outputs."""


class _NestedRows(Rows):
    """Those of another model, which may have a handler."""

    depth = 0
    """How many handlers have called one another for it."""
    parameters: Mapping[str, Any] = {}


class Nested:
    """A handler's call of another model: its caller, and the taker of its outcome."""

    address = ""
    gave_up_s = -math.inf

    def __init__(
        self,
        asked: "dict[int, Nested]",
        send: Callable[[dict[str, Any], Sequence[Array]], None],
        joined: Joined,
        number: int,
    ) -> None:
        """Prepare.

        Args:
            asked: all calls of the process, of which a thread waits for the reply, by number.
            send: sends it a reply.
            joined: the calls that it works on.
            number: the request's.
        """
        self.joined = joined
        """The calls that it works on."""
        self._asked, self._send, self._number = asked, send, number
        self.queues: dict[Any, Any] = {}
        self._names: list[str] = []
        self._resume: Callable[[], None] | None = None
        """Has the next part made, of an answer in parts."""

    def begin(
        self, find: Find, fields: Mapping[str, Any], arrays: Sequence[Array], now_s: float
    ) -> None:
        """Have the other model run, within the deadline of the calls that the process works on.

        Args:
            find: finds the model.
            fields: the process's message: the model's name, and those of the inputs.
            arrays: the inputs.
            now_s: the time.
        """
        joined = self.joined
        self._asked[self._number] = self
        if not joined.calls:
            self.fail(None, UNWANTED)
            return
        try:
            if joined.depth >= MAX_DEPTH:
                raise InvalidRequest(f"more than {MAX_DEPTH} models call one another")
            target, tensors = find(str(fields["name"]))
            given: Any = dict(zip(fields["names"], arrays, strict=True))
            feeds = as_feeds(tensors, given[""] if [*given] == [""] else given)
            only = next(iter(feeds.values()))
            encoder = _NestedRows(target, None, len(only) if tensors.is_batchable else 1)
            encoder.in_parts = fields["kind"] == "stream"
            encoder.depth, self._names = joined.depth + 1, [each.name for each in tensors.outputs]
            message = only.tobytes() if tensors.row_bytes else tuple(feeds.values())
            group = Group(self, [b""], [message], encoder, self, now_s, joined.deadline_s)
            if not target.submit(group):
                raise Overloaded()
        except ServingError as err:
            self.fail(None, err)
        except Exception as err:  # of a process that says something else than ours do
            _log.error("a handler's call of a model failed", exc_info=err)
            self.fail(None, ModelError())

    @property
    def streams(self) -> "Nested":
        """Its only call, which is there until it is answered, or nobody waits for it."""
        return self

    def __contains__(self, stream: object) -> bool:
        return self._asked.get(self._number) is self and stream in self.joined

    def metadata(self, stream: object) -> Mapping[str, str]:
        """Return no metadata."""
        return {}

    def answer(self, group: Group, responses: Sequence[Any], run: Ran) -> None:
        """Send the process the outputs."""
        if not responses:
            return
        if responses[0] is None:
            self._reply({"is_end": True})
            return
        outputs, result = responses[0]
        self._reply({"names": self._names, "version": result.version}, outputs)

    def take_part(self, group: Group, response: Any, resume: Callable[[], None]) -> None:
        """Send the process a part; the next is made once it asks for it."""
        if self._asked.get(self._number) is self:
            self._resume = resume
            outputs, result = response
            facts = {"names": self._names, "version": result.version, "is_part": True}
            self._send(self._head | facts, outputs)

    def go_on(self, *, is_left: bool) -> None:
        """Have the next part made; or none any more, as the process has left the answer."""
        if is_left:
            self._asked.pop(self._number, None)
        resume, self._resume = self._resume, None
        if resume is not None:
            resume()

    def fail(self, group: Group | None, error: ServingError) -> None:
        """Send the process the reason why there are none."""
        self._reply({"error": type(error).__name__, "text": str(error)})

    def _reply(self, fields: dict[str, Any], arrays: Sequence[Array] = ()) -> None:
        if self._asked.pop(self._number, None) is self:
            self._send(self._head | fields, arrays)

    @property
    def _head(self) -> dict[str, Any]:
        return {"kind": "reply", "job": self.joined.number, "request": self._number}
