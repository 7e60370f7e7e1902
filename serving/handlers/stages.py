"""The stages of a handler's calls behind its entry; `joined.py` has the rules of all of them.

    [DecodeStage]  [MethodStage preprocess]  [RunStage]  [MethodStage postprocess]  AnswerStage
    [DecodeStage]  [MethodStage predict]                                  AnswerStage

Each is there only where the handler needs it.
"""

import logging
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from functools import partial
from typing import Any, Protocol

import numpy as np

from serving import errors
from serving.batching.batcher import Batcher
from serving.batching.run import Group, Result, Rows, answer_bytes, too_large_answer
from serving.errors import ModelError, ServingError
from serving.handlers.joined import Joined
from serving.handlers.pictures import decode
from serving.handlers.runners import ProcessRunners
from serving.tensors import Array

_log = logging.getLogger(__name__)


class PictureDecoder(Protocol):
    """Decodes pictures in processes of their own: `BoundedPool`."""

    def submit(self, owner: str, function: Callable[..., Any], *args: Any) -> "Future[Any]": ...


class HandlerFailure(Exception):
    """An error of a handler: its text is the traceback in the handler's process."""


class DecodeStage:
    """Makes pixels of files of pictures, in the pool for what strangers send."""

    def __init__(
        self,
        model: str,
        places: Sequence[int],
        pool: PictureDecoder,
        clock: Callable[[], float],
        post: Callable[[Callable[[], None]], None],
    ) -> None:
        """Prepare.

        Args:
            model: the name, for the log.
            places: of the inputs that are pictures.
            pool: decodes them.
            clock: returns monotonic seconds.
            post: has a function called on the owner's thread.
        """
        self._model, self._places, self._pool = model, places, pool
        self._clock, self._post = clock, post
        self.num_at_work = 0
        """Joined calls whose pictures are decoded now."""

    def enter(self, joined: Joined, arrays: Sequence[Array]) -> None:
        files = [arrays[at].tolist() for at in self._places]
        try:
            future = self._pool.submit(joined.calls[0].caller.address or "unix", decode, files)
        except ServingError as err:
            joined.failed(err)
            return
        self.num_at_work += 1
        joined.begin_work(self._clock())
        take = partial(self._take, joined, arrays)
        future.add_done_callback(lambda done: self._post(partial(take, done)))

    def _take(self, joined: Joined, arrays: Sequence[Array], future: "Future[Any]") -> None:
        self.num_at_work -= 1
        joined.begun_s = math.inf
        joined.line.schedule()
        if not joined.wanted(self._clock()):
            return
        if future.cancelled():  # the server ends
            joined.failed(errors.Unavailable("the server ends"))
            return
        if (error := future.exception()) is not None:
            known = error if isinstance(error, ServingError) else ModelError()
            if known is not error:
                _log.error("%s: a picture could not be decoded", self._model, exc_info=error)
            joined.failed(known)
            return
        found = list(arrays)
        for at, pixels in zip(self._places, future.result(), strict=True):
            column = np.empty(len(pixels), object)
            for row, each in enumerate(pixels):
                column[row] = each
            found[at] = column
        joined.go_on(found)


class MethodStage:
    """A method of the handler, in its processes."""

    def __init__(
        self,
        name: str,
        label: tuple[str, str],
        runners: ProcessRunners,
        max_bytes: int,
        answer: "AnswerStage",
        *,
        is_last: bool,
    ) -> None:
        """Prepare.

        Args:
            name: of the method.
            is_last: whether no other one comes behind it.
            label: the model's name and version, for the log.
            runners: the processes.
            max_bytes: the most of a call's outputs, or of a part of them.
            answer: takes parts of an answer.
        """
        self.name, self.is_last, self._answer = name, is_last, answer
        self._label, self._runners, self._max_bytes = label, runners, max_bytes

    def enter(self, joined: Joined, arrays: Sequence[Array]) -> None:
        self._runners.wait(joined, self, arrays)

    def job(self, joined: Joined) -> dict[str, Any]:
        """Return what a process is to do."""
        fields = {
            "kind": "next" if joined.num_parts else "job",
            "job": joined.number,
            "phase": self.name,
            "rows": joined.num_rows,
            "max_bytes": self._max_bytes,
            "max_s": self._runners.max_s,
        }
        if joined.num_parts:
            return fields
        return fields | {"options": joined.options} if joined.options else fields

    def take(self, joined: Joined, fields: Mapping[str, Any], arrays: Sequence[Array]) -> None:
        """Go on with an outcome that a process has sent."""
        kind = fields["kind"]
        if kind == "part":
            joined.num_parts += 1
            self._answer.take_part(joined, arrays)
            if not joined.is_over:
                self._runners.wait(joined, self, ())  # for a further one
        elif joined.num_parts and not joined.is_taken:
            joined.behind = joined.behind or partial(self.take, joined, fields, arrays)
        elif kind == "done" or kind == "end":
            joined.go_on(arrays)
        elif kind == "failed":
            joined.failed(self._logged(fields["text"]))
        elif kind == "too_large":
            joined.failed(too_large_answer(fields["output"], fields["bytes"], self._max_bytes))
        else:
            joined.failed(getattr(errors, fields["error"], ModelError)(fields["text"]))

    def resume(self, joined: Joined) -> None:
        """Give a reader the next part, and have a further one made."""
        if joined.ahead:
            self._answer.give(joined, joined.ahead.popleft())
        elif joined.behind is not None:
            end, joined.behind = joined.behind, None
            end()
        if not joined.is_over:
            self._runners.wait(joined, self, ())

    def _logged(self, text: str) -> ModelError:
        """Log why it failed, with an id that the caller gets, too."""
        identifier = secrets.token_hex(4)
        facts = *self._label, self.name, identifier
        _log.error("model %s version %s: %s failed, id %s", *facts, exc_info=HandlerFailure(text))
        return ModelError(f"the handler failed on this request: id {identifier}")


class RunStage:
    """The model between the handler's methods: rows of all joined calls share its batches."""

    def __init__(self, network: Batcher) -> None:
        self._network = network

    def enter(self, joined: Joined, arrays: Sequence[Array]) -> None:
        network, tensors = self._network, self._network.tensors
        num_rows = len(arrays[0]) if tensors.is_batchable and arrays else 1
        if not num_rows:  # a page without a crop
            joined.go_on([each.no_rows() for each in tensors.outputs])
            return
        message = arrays[0].tobytes() if tensors.row_bytes else tuple(arrays)
        now_s = network.owner.clock()
        if not joined.started_s:
            joined.started_s = now_s
        encoder = Rows(network, None, num_rows)
        network.add(Group(joined, [b""], [message], encoder, joined, now_s, joined.deadline_s))


class AnswerStage:
    """Gives each call its rows of the outputs; calls are counted here."""

    def __init__(
        self,
        label: tuple[str, str],
        clock: Callable[[], float],
        fail: Callable[[Group, ServingError], None],
        answered: Callable[[Result, list[Group]], None],
        note_part: Callable[[float, bool], None],
        *,
        in_parts: bool = False,
    ) -> None:
        """Prepare.

        Args:
            label: the model's name and version.
            clock: returns monotonic seconds.
            fail: ends a call with an error.
            answered: called with calls that have their answers.
            note_part: called with each part: the seconds since the call's arrival or the last part,
                and whether it is the first.
            in_parts: whether answers have come in parts, and only their end is left.
        """
        self._in_parts, self._note_part = in_parts, note_part
        self._label, self._clock, self._fail, self._answered = label, clock, fail, answered

    def take_part(self, joined: Joined, arrays: Sequence[Array]) -> None:
        """Take a part of a call's answer, for its reader once he has taken those before."""
        now_s = self._clock()
        before_s = joined.part_s or joined.calls[0].arrived_s
        self._note_part(now_s - before_s, joined.num_parts == 1)
        joined.part_s, joined.part_bytes = now_s, sum(map(answer_bytes, arrays))
        if joined.is_taken:
            self.give(joined, arrays)
        else:
            joined.ahead.append(arrays)

    def give(self, joined: Joined, arrays: Sequence[Array]) -> None:
        """Give a call a part of its answer; its sink resumes it once the reader has taken that."""
        label = self._label
        result = Result(arrays, joined.num_rows, label[1], None, joined.started_s, joined.part_s)
        joined.is_taken = False
        for group in joined.calls:  # one: calls that are answered in parts are not joined
            try:
                (response,) = group.encoder.encode(result, 0, 1)
                group.sink.take_part(group, response, joined.resume)  # type: ignore[attr-defined]
            except ServingError as err:
                joined.ahead.clear()
                joined.failed(err)
            except Exception:  # as below
                _log.exception("a call could not be answered")
                joined.ahead.clear()
                joined.failed(ModelError())

    def enter(self, joined: Joined, arrays: Sequence[Array]) -> None:
        now_s, label = self._clock(), self._label
        result = Result(arrays, joined.num_rows, label[1], None, joined.started_s, now_s)
        run = HandlerRun((joined.started_s, now_s, *label, joined.num_rows))
        run.steps = joined.times
        calls, at = joined.calls, 0
        stays = None if calls is joined.members else {id(group) for group in calls}
        for group in joined.members:
            first, at = at, at + group.num_rows
            if stays is not None and id(group) not in stays:
                continue
            try:
                if self._in_parts:
                    responses: Sequence[Any] = [group.encoder.end_of_parts(result)]
                else:
                    responses = group.encoder.encode(result, first, len(group.streams))
            except Exception:  # a bug of ours: it ends this call, and never the owner
                _log.exception("a call could not be answered")
                self._fail(group, ModelError())
                continue
            group.sink.answer(group, responses, run)
        self._answered(result, calls)
        joined.line.end(joined)


class HandlerRun(tuple):  # type: ignore[type-arg]
    """A `Ran` of a version with a handler, with its steps: name, start and end of each."""

    steps: Sequence[tuple[str, float, float]] = ()
