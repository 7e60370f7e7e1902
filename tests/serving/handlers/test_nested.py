"""What a handler asks of another model: its call there, and each reply, compared whole."""

import math
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serving.batching.run import Result
from serving.errors import ModelNotFound, Overloaded
from serving.handlers.nested import UNWANTED, Nested
from serving.tensors import Tensor, TensorSignature

X, Y = Tensor("x", "INT64", (-1,)), Tensor("y", "INT64", (-1,))
ROWS = TensorSignature((X,), (Y,), is_batchable=True)
ALONE = TensorSignature((X,), (Y,), is_batchable=False)
TWO = TensorSignature((X, Y), (Y,), is_batchable=True)
VALUES, MORE = np.array([1, 2, 3]), np.array([4, 5, 6])
HEAD = {"kind": "reply", "job": 7, "request": 5}


class Joined:
    """Calls that a process works on."""

    number, deadline_s = 7, 9.0

    def __init__(self, depth=0, calls=("a call",)):
        self.depth, self.calls = depth, calls

    def __contains__(self, stream):
        return bool(self.calls)


class Asked:
    """One request of a process, and the other model."""

    def __init__(self, joined=None, tensors=ROWS, has_room=True):
        self.asked: dict[int, Nested] = {}
        self.sent: list[Any] = []
        self.groups: list[Any] = []
        self.target: Any = SimpleNamespace(submit=self._submit)
        self._tensors, self._has_room = tensors, has_room
        own: Any = joined or Joined()
        self.nested = Nested(self.asked, self._send, own, 5)

    def _send(self, fields, arrays):
        self.sent.append((fields, [each.tolist() for each in arrays]))

    def _submit(self, group):
        self.groups.append(group)
        return int(self._has_room)

    def begin(self, kind="infer", names=("x",), arrays=(VALUES,), name="other"):
        def find(found):
            if found != "other":
                raise ModelNotFound(f"no model {found}")
            return self.target, self._tensors

        fields = {"kind": kind, "name": name, "names": [*names]}
        self.nested.begin(find, fields, arrays, 2.0)
        return self.groups[-1] if self.groups else None

    def refused(self, error, text):
        """Check that the process was sent an error, and waits no more."""
        assert self.sent == [({**HEAD, "error": error, "text": text}, [])]
        assert self.asked == {}


@pytest.mark.parametrize(
    ("tensors", "names", "arrays", "num_rows", "message"),
    [
        (ROWS, ("x",), (VALUES,), 3, VALUES.tobytes()),
        (ROWS, ("",), (VALUES,), 3, VALUES.tobytes()),
        (TWO, ("y", "x"), (MORE, VALUES), 3, ([1, 2, 3], [4, 5, 6])),
        (ALONE, ("x",), (VALUES,), 1, ([1, 2, 3],)),
    ],
    ids=["rows", "the only input", "two inputs", "no batch"],
)
@pytest.mark.parametrize("kind", ["infer", "stream"])
def test_call_of_another_model_has_what_the_handler_gave(
    kind, tensors, names, arrays, num_rows, message
):
    asked = Asked(Joined(depth=3), tensors)
    group = asked.begin(kind, names, arrays)
    assert asked.asked == {5: asked.nested}
    assert (group.caller, group.sink) == (asked.nested, asked.nested)
    assert (group.arrived_s, group.deadline_s) == (2.0, 9.0)
    encoder = group.encoder
    assert (encoder.target, encoder.method, encoder.num_rows) == (asked.target, None, num_rows)
    assert (encoder.in_parts, encoder.depth, encoder.parameters) == (kind == "stream", 4, {})
    (found,) = group.messages
    shown = found if isinstance(found, bytes) else tuple(each.tolist() for each in found)
    assert shown == message
    assert group.open_calls() is group
    assert asked.sent == []


def test_caller_has_no_address_and_no_metadata():
    nested = Asked().nested
    facts = nested.address, nested.gave_up_s, nested.queues, nested.metadata(b"")
    assert facts == ("", -math.inf, {}, {})


def result():
    return Result([MORE], 3, "8", None, 0.0, 0.0)


def test_answer_is_one_reply():
    asked = Asked()
    group = asked.begin()
    asked.nested.answer(group, [], (0.0, 0.0, "", "", 0))
    assert (asked.sent, [*asked.asked]) == ([], [5]), "nobody was there"
    asked.nested.answer(group, [([MORE], result())], (0.0, 0.0, "other", "8", 3))
    assert asked.sent == [({**HEAD, "names": ["y"], "version": "8"}, [[4, 5, 6]])]
    assert group.open_calls() is None
    asked.nested.fail(group, Overloaded())
    assert len(asked.sent) == 1


def test_parts_come_one_by_one_as_they_are_asked_for():
    asked, made = Asked(), []
    group = asked.begin("stream")
    part = {**HEAD, "names": ["y"], "version": "8", "is_part": True}, [[4, 5, 6]]
    for number in (1, 2):
        asked.nested.take_part(group, ([MORE], result()), lambda: made.append(len(made)))
        assert asked.sent == [part] * number
        assert len(made) == number - 1
        asked.nested.go_on(is_left=False)
        asked.nested.go_on(is_left=False)
        assert len(made) == number, "once for each part"
    asked.nested.answer(group, [None], (0.0, 0.0, "other", "8", 3))
    assert asked.sent[2:] == [({**HEAD, "is_end": True}, [])]
    assert asked.asked == {}
    asked.nested.take_part(group, ([MORE], result()), lambda: made.append(9))
    asked.nested.go_on(is_left=False)
    assert (len(asked.sent), len(made)) == (3, 2)


def test_answer_that_the_process_has_left_is_over_and_its_end_is_not_sent():
    asked, made = Asked(), []
    group = asked.begin("stream")
    asked.nested.take_part(group, ([MORE], result()), lambda: made.append(1))
    asked.nested.go_on(is_left=True)
    assert made == [1], "it looks whether anybody waits"
    assert group.open_calls() is None
    asked.nested.answer(group, [None], (0.0, 0.0, "other", "8", 3))
    assert len(asked.sent) == 1


def test_request_for_nobody_is_not_begun():
    asked = Asked(Joined(calls=()))
    assert asked.begin() is None
    asked.refused("DeadlineExceeded", str(UNWANTED))
    assert str(UNWANTED) == "nobody waits for the answer to this call any more"


@pytest.mark.parametrize(
    ("options", "words", "error", "text"),
    [
        ({"joined": Joined(depth=4)}, {}, "InvalidRequest", "more than 4 models call one another"),
        ({}, {"name": "nothing"}, "ModelNotFound", "no model nothing"),
        ({}, {"names": ("z",)}, "InvalidRequest", "expected the inputs x, got z"),
        ({"has_room": False}, {}, "Overloaded", "the queue is full"),
        ({}, {"names": ("x", "y")}, "ModelError", "the model failed on this request"),
    ],
)
def test_request_that_can_not_be_is_refused_once(options, words, error, text):
    asked = Asked(**options)
    asked.begin(**words)
    asked.refused(error, text)


def test_call_ends_with_those_that_the_process_works_on():
    joined = Joined()
    asked = Asked(joined)
    group = asked.begin()
    joined.calls = ()
    assert group.open_calls() is None
