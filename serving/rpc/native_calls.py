"""Calls of the native transport as the batcher sees them: one by one, or many as a group."""

import time
from collections.abc import Hashable
from typing import TYPE_CHECKING, Any

from serving.errors import DigitsError
from serving.group import Group
from serving.requests import Answer, Request
from serving.rpc.turns import yield_core
from serving.rpc.unary import Question, UnaryMethod

if TYPE_CHECKING:
    from serving.rpc.native import NativeFront


class NativeCall(Request):
    """One call that was read."""

    __slots__ = ("_call_id", "_front", "_method", "_question", "method")

    def __init__(
        self,
        front: "NativeFront",
        method: UnaryMethod[Any],
        call_id: int,
        question: Question,
        caller: Hashable,
    ) -> None:
        super().__init__(question.pixels, caller=caller)
        self.method = method.name
        self._front = front
        self._method = method
        self._call_id = call_id
        self._question = question
        if question.timeout_s is not None:
            self.expire_in(question.timeout_s)

    def expire_in(self, seconds: float) -> None:
        """Set the deadline, unless it is sooner already."""
        self.deadline_s = min(self.deadline_s, time.monotonic() + seconds)

    def resolve(self, answer: Answer) -> None:
        """See `Request`."""
        response = self._method.write(self._question, self, answer)
        self._front.respond((self._call_id,), (response,))

    def reject(self, error: DigitsError) -> None:
        """See `Request`."""
        self._method.note_failure(self._question, error)
        self._front.fail(self._call_id, self._method, error)


class OneImageCalls(Group):
    """Calls of one method that need not be read: a known head, and an image."""

    __slots__ = ("_front", "_method", "method")

    def __init__(self, front: "NativeFront", method: UnaryMethod[Any], caller: Hashable) -> None:
        super().__init__(caller)
        self.method = method.name
        self._front = front
        self._method = method

    def resolve(self, answer: Answer) -> None:
        """See `Request`."""
        self._front.respond(self.keys[answer.first :], self._method.write_each(self, answer))
        if answer.num_calls == answer.batch.num_rows:  # the whole run: nothing else to send
            yield_core()

    def reject(self, error: DigitsError) -> None:
        """See `Request`."""
        for call_id in self.keys:
            if call_id in self._front.calls:  # neither answered nor gone
                self._method.note_failure(self._method.ask(b""), error)
                self._front.fail(call_id, self._method, error)

    def single(self, row: int) -> Request:
        """See `Group`."""
        call_id = self.keys[row]
        question = self._method.ask(self.images[row])
        single = NativeCall(self._front, self._method, call_id, question, self.caller)
        if call_id in self._front.calls:
            self._front.calls[call_id] = single
        return single
