"""Calls that are answered together, and their runs: the model's part of a batch."""

import logging
import math
from array import array
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from operator import attrgetter
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from serving.batching.layout import Layout
from serving.config import MOST_RESPONSE_BYTES
from serving.errors import (
    DeadlineExceeded,
    InvalidRequest,
    ModelError,
    ServingError,
    TooLarge,
    Unsupported,
)
from serving.proof.sizes import MOST_SIZE
from serving.tensors import (
    BYTE_CLASSES,
    Array,
    ClassNumbers,
    Feeds,
    Probabilities,
    Signature,
    TensorSignature,
)

_log = logging.getLogger(__name__)
_LOG_S = 1.0
"""The least time between two lines about calls of a version that can't be run."""

Run = Callable[[Feeds], list[Array]]
Ran = tuple[float, float, str, str, int]
"""A run: start and end in monotonic seconds, the model's name, its version, and rows."""
NUM_BYTES = attrgetter("nbytes")
"""Returns the bytes of an array of numbers, without a call of Python."""
_TEXT_SLICE = 1 << 18
"""Characters of a text that are encoded at a time."""
TEXT_BYTES = 4
"""Before each element of a BYTES tensor: its length."""
NEVER: Ran = (0.0, 0.0, "", "", 0)

FAILED = ModelError()


class AnswerTooLarge(TooLarge):
    """The outputs of a call have more bytes than `--max-response-bytes`."""

    is_answer = True


class Result:
    """The outputs of one run, for all calls that it answers."""

    __slots__ = ("classes", "finished_s", "num_rows", "outputs", "rows", "signature", "started_s",
                 "version")  # fmt: skip

    def __init__(
        self,
        outputs: Sequence[npt.NDArray[Any]],
        num_rows: int,
        version: str,
        signature: Signature | None,
        started_s: float,
        finished_s: float,
    ) -> None:
        self.outputs = outputs
        self.num_rows = num_rows
        self.version = version
        self.signature = signature
        self.started_s = started_s
        self.finished_s = finished_s
        self.rows = b""
        """The bytes of a classifier's probabilities: little-endian float32, row after row."""
        self.classes: ClassNumbers | None = None
        """A classifier's most probable class of each row."""
        if signature is not None:
            self.rows, self.classes = outputs[0].tobytes(), class_numbers(outputs[0])

    def cut(self, at: int, num_rows: int) -> Sequence[npt.NDArray[Any]]:
        """Return the outputs for some rows; all of them for a call that ran alone."""
        if num_rows == self.num_rows:
            return self.outputs
        return [output[at : at + num_rows] for output in self.outputs]


def class_numbers(probabilities: Probabilities) -> ClassNumbers:
    """Return the number of the most probable class of each row, fit for a response."""
    numbers = probabilities.argmax(axis=1).tolist()
    return bytes(numbers) if probabilities.shape[1] <= BYTE_CLASSES else array("I", numbers)


class Owner(Protocol):
    """The thread that reads from callers and answers them."""

    def clock(self) -> float:
        """Return monotonic seconds."""

    def post(self, task: Callable[[], None]) -> None:
        """Run a function on the owner's thread, from any thread."""

    def schedule(self, batcher: Any) -> None:
        """Have `batcher.turn` called soon."""

    def defer(self, task: Callable[[], None]) -> None:
        """Run a function soon, when the answers are on their way."""

    def forget_layouts(self) -> None:
        """Have all messages parsed again."""

    def watch(self, sock: Any, mask: int, watcher: Any) -> None:
        """Have `watcher.accept` called when a socket is ready.

        Args:
            sock: the socket.
            mask: of `selectors`: for which events; 0 for none any more.
            watcher: its method gets the time of the round, and that of the turns.
        """


class Caller(Protocol):
    """Who sends calls: a connection. Callers take turns."""

    @property
    def address(self) -> str:
        """Where it is, without its port."""

    @property
    def streams(self) -> Container[bytes]:
        """Its calls; one that has left, or was answered, is not in it."""

    @property
    def gave_up_s(self) -> float:
        """When it last cancelled a call, in monotonic seconds."""

    @property
    def queues(self) -> dict[Any, Any]:
        """Its waiting calls in each queue."""

    def metadata(self, stream: Any) -> Mapping[str, str]:
        """Return the headers of one of its calls."""


class Target(Protocol):
    """The receiver of calls: a model, or one version of it."""

    @property
    def label(self) -> tuple[str, str]:
        """The name and the version, as metrics have them."""

    def submit(self, group: "Group") -> int:
        """Queue calls; return how many were taken."""

    def add(self, group: "Group") -> None:
        """Queue messages of a stream, which had room."""

    def room_for_stream(self, num_rows: int) -> int:
        """Return how many messages of a stream there is room for."""


class ResponseEncoder:
    """The common part of calls of one layout, and the encoder of their answers."""

    layout: Layout | None = None
    """Where the inputs lie in the calls' messages, if these are bytes of several tensors."""
    in_parts = False
    """Whether the calls may be answered in parts: their sink is a `PartsSink`."""

    def __init__(
        self, target: Target, method: str | None, num_rows: int, timeout_s: float | None = None
    ) -> None:
        """Describe calls.

        Args:
            target: runs them.
            method: the name in the metrics; None if they are counted elsewhere.
            num_rows: the rows of each.
            timeout_s: the requests' own timeout; None if only the deadline of the call counts.
        """
        self.target = target
        self.method = method
        self.num_rows = num_rows
        self.timeout_s = timeout_s

    def encode(self, result: Result, at: int, number: int) -> Sequence[Any]:
        """Make the answers to calls of a run that succeeded, the first of row `at`."""
        raise NotImplementedError

    def end_of_parts(self, result: Result) -> Any:
        """Make what comes behind the last part of an answer; None for nothing."""
        return None


class Rows(ResponseEncoder):
    """Answers with the outputs for a call's rows: the arrays, and their result."""

    def encode(self, result: Result, at: int, number: int) -> Sequence[Any]:
        step = self.num_rows
        return [(result.cut(at + i * step, step), result) for i in range(number)]


def answers_in_parts(name: str) -> Unsupported:
    """Build the error of a call that takes one answer, of a model that has any number."""
    return Unsupported(
        f"model {name} answers in parts: call ModelStreamInfer, or `stream` of a client or a model"
    )


class Sink(Protocol):
    """The receiver of the outcome of calls, on the owner's thread."""

    def answer(self, group: "Group", responses: Sequence[Any], run: Ran) -> None:
        """Take the responses, one for each call, and the run that they are from."""

    def fail(self, group: "Group", error: ServingError) -> None:
        """Take the reason why there are none."""


class PartsSink(Sink, Protocol):
    """The receiver of the parts of an answer; `answer` or `fail` is the end behind them."""

    def take_part(self, group: "Group", response: Any, resume: Callable[[], None]) -> None:
        """Take a part of the answer to a call.

        Args:
            group: the call.
            response: the part.
            resume: has the next one made; called on the owner's thread, once there is room for it.

        Raises:
            Overloaded: there is no room for the part: the call ends with this error.
        """


class Group:
    """Calls of one caller that came together, or messages of one stream, with one encoder."""

    __slots__ = ("arrived_s", "caller", "deadline_s", "deadlines_s", "encoder", "messages",
                 "num_rows", "sink", "slots", "streams")  # fmt: skip

    def __init__(
        self,
        caller: Caller,
        streams: Sequence[bytes],
        messages: Sequence[Any],
        encoder: ResponseEncoder,
        sink: Sink,
        arrived_s: float,
        deadline_s: float,
        slots: Sequence[Any] | None = None,
        deadlines_s: Sequence[float] | None = None,
    ) -> None:
        """Describe calls that wait.

        Args:
            caller: who sent them.
            streams: the calls.
            messages: the rows of each: bytes of an input or of a layout, or arrays of all inputs.
            encoder: how each is answered.
            sink: takes the outcome.
            arrived_s: when they came, in monotonic seconds.
            deadline_s: when the first of them is late.
            slots: the sink's names for them, if not their streams.
            deadlines_s: when each is late, if not all at once.
        """
        self.caller = caller
        self.streams = streams
        self.messages = messages
        self.encoder = encoder
        self.sink = sink
        self.arrived_s = arrived_s
        self.deadline_s = deadline_s
        self.slots = slots
        self.deadlines_s = deadlines_s
        self.num_rows = len(streams) * encoder.num_rows
        """The rows of all of them."""

    def cut(self, begin: int, end: int) -> "Group":
        """Return some of the calls."""
        return self._pick(range(begin, end))

    def calls(self) -> "Sequence[Group]":
        """Return each of the calls by itself."""
        if len(self.streams) == 1:
            return (self,)
        return [self._pick((at,)) for at in range(len(self.streams))]

    def open_calls(self) -> "Group | None":
        """Return the calls whose callers have not left; None if all have."""
        streams = self.caller.streams
        if all(map(streams.__contains__, self.streams)):
            return self
        at = [i for i, stream in enumerate(self.streams) if stream in streams]
        return self._pick(at) if at else None

    def open_answers(self, responses: Sequence[Any]) -> "tuple[Group, Sequence[Any]]":
        """Return the calls whose callers have not left, perhaps none, and their responses."""
        streams = self.caller.streams
        at = [i for i, stream in enumerate(self.streams) if stream in streams]
        if len(at) == len(self.streams):
            return self, responses
        return self._pick(at), [responses[i] for i in at]

    def _pick(self, at: Sequence[int]) -> "Group":
        slots = self.slots and [self.slots[i] for i in at]
        deadline_s, deadlines_s = self.deadline_s, self.deadlines_s
        if deadlines_s is not None:
            deadlines_s = [deadlines_s[i] for i in at]
            deadline_s = min(deadlines_s, default=deadline_s)
        streams, messages = [self.streams[i] for i in at], [self.messages[i] for i in at]
        times = self.arrived_s, deadline_s
        return Group(
            self.caller, streams, messages, self.encoder, self.sink, *times, slots, deadlines_s
        )

    def divide(self, now_s: float) -> "tuple[Group | None, Group | None]":
        """Return the calls that are in time, and those that are late."""
        if now_s < self.deadline_s:
            return self, None
        if self.deadlines_s is None:
            return None, self
        numbers = range(len(self.streams))
        in_time = [i for i in numbers if now_s < self.deadlines_s[i]]
        late = [i for i in numbers if self.deadlines_s[i] <= now_s]
        return self._pick(in_time) if in_time else None, self._pick(late) if late else None


def open_calls(groups: Sequence[Group]) -> list[Group]:
    """Return the calls whose callers have not left."""
    found = (group.open_calls() for group in groups)
    return [group for group in found if group is not None]


def divide(groups: Iterable[Group], now_s: float) -> tuple[list[Group], list[Group]]:
    """Return the calls that are in time, and those that are late."""
    pairs = [group.divide(now_s) for group in groups]
    return [found for found, _ in pairs if found], [late for _, late in pairs if late]


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

    def stoppable(self, *, is_alone: bool = False) -> tuple[Run, Callable[[], None]]:
        """Return `run` for one call of it, and a function that ends it, from any thread.

        Args:
            is_alone: whether no other run needs the cores.
        """


class Executor:
    """Runs calls of one version of a model."""

    def __init__(
        self,
        model: RunnableModel,
        guard: Callable[[Run], Run],
        max_response_bytes: int = MOST_RESPONSE_BYTES,
    ) -> None:
        """Prepare.

        Args:
            model: the version.
            guard: wraps each function that runs it; see `Host.guard`.
            max_response_bytes: the most bytes of a call's outputs.
        """
        self._max_response_bytes = max_response_bytes
        self._has_texts = any(each.dtype == object for each in model.tensors.outputs)
        self.model = model
        self._guard = guard
        self.run_feeds = guard(model.run)
        """Runs inputs by name; returns the outputs in order."""
        self._version, self._signature = model.version, model.signature
        self._tensors = tensors = model.tensors
        self.is_batchable = tensors.is_batchable
        """Whether rows of several calls can run together; False once that was found to be wrong."""
        self._are_rows = bool(tensors.row_bytes)
        self._logged_s = -math.inf
        self._num_unlogged = 0
        if self._are_rows:
            only = tensors.inputs[0]
            self._name, self._dtype, self._shape = only.name, only.dtype, (-1, *only.shape[1:])

    def stoppable(self, *, is_alone: bool) -> tuple[Run, Callable[[], None]]:
        """Return a function that runs the model once, and one that ends that run.

        Args:
            is_alone: whether no other run needs the cores.
        """
        run, end = self.model.stoppable(is_alone=is_alone)
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
        is_one = self._are_rows and self.is_batchable
        todo = [groups] if is_one else _alike(groups, is_batchable=self.is_batchable)
        while todo:
            calls = todo.pop()
            started_s = clock()
            try:
                run = begin(calls) if begin else self.run_feeds
                feeds, num_rows = self.feeds(calls)
                outputs = run(feeds)
                # Else its outputs may have any shape.
                if self._signature or len(calls) > 1 or len(calls[0].streams) > 1:
                    for output in outputs:
                        if len(output) != num_rows:
                            raise ValueError(f"{num_rows} rows were answered with {len(output)}")
                # Before the first copy of them.
                if self._has_texts or sum(map(NUM_BYTES, outputs)) > self._max_response_bytes:
                    within, refused = self._divide_by_size(calls, outputs, num_rows)
                    outcomes += refused
                    if refused:
                        todo += [within] if within else []
                        continue
                facts = self._version, self._signature, started_s, clock()
                result = Result(outputs, num_rows, *facts)
            except DeadlineExceeded as err:
                outcomes.append((open_calls(calls), err))
            except BaseException as err:  # any error ends these calls and never the thread
                alive = open_calls(calls)
                if _num_calls(alive) < _num_calls(calls):  # it was given up, or failed by those
                    todo += [alive] if alive else []
                elif halves := _halves(calls):
                    todo += halves
                elif isinstance(err, InvalidRequest):
                    outcomes.append((calls, err))
                else:
                    self._log_failure(calls[0].encoder.num_rows, err, clock())
                    outcomes.append((calls, FAILED))
            else:
                outcomes.append((calls, result))
        return outcomes

    def _divide_by_size(
        self, groups: list[Group], outputs: Sequence[Array], num_rows: int
    ) -> tuple[list[Group], list[Outcome]]:
        """Return the calls whose outputs may be sent, and the outcomes of the others."""
        within: list[Group] = []
        refused: list[Outcome] = []
        at, tensors = 0, self._tensors.outputs
        for group in groups:
            step, fitting = group.encoder.num_rows, []
            for number in range(len(group.streams)):
                own = outputs
                if step != num_rows:
                    own = [each[at : at + step] for each in outputs]
                at += step
                sizes = [*map(answer_bytes, own)]
                if sum(sizes) <= self._max_response_bytes:
                    fitting.append(number)
                    continue
                largest = max(range(len(sizes)), key=sizes.__getitem__)
                error = too_large_answer(
                    tensors[largest].name, sizes[largest], self._max_response_bytes
                )
                refused.append(([group.cut(number, number + 1)], error))
            if len(fitting) == len(group.streams):
                within.append(group)
            else:
                within += [group.cut(number, number + 1) for number in fitting]
        return within, refused

    def _log_failure(self, num_rows: int, error: BaseException, now_s: float) -> None:
        """Log a call that can't be run; of many in a second only the first."""
        if now_s - self._logged_s < _LOG_S:
            self._num_unlogged += 1
            return
        more = f", and {self._num_unlogged} more before" if self._num_unlogged else ""
        _log.error("a batch of %d rows failed%s", num_rows, more, exc_info=error)
        self._logged_s, self._num_unlogged = now_s, 0

    def feeds(self, groups: list[Group]) -> tuple[Feeds, int]:
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
        columns: list[Sequence[Array]] = list(zip(*_inputs_of(groups), strict=True))
        feeds = {
            tensor.name: arrays[0] if len(arrays) == 1 else np.concatenate(arrays)
            for tensor, arrays in zip(self._tensors.inputs, columns, strict=True)
        }
        return feeds, sum(group.num_rows for group in groups)


def answer_bytes(output: Array) -> int:
    """Return how many bytes an output has in an answer, without a copy of it."""
    if output.dtype != object:
        return output.nbytes
    texts: list[str | bytes] = output.ravel().tolist()
    return TEXT_BYTES * len(texts) + sum(
        # A text in ASCII, as most are, has a byte for each character.
        text_bytes(each) if isinstance(each, str) and not each.isascii() else len(each)
        for each in texts
    )


def text_bytes(text: str | bytes) -> int:
    """Return the bytes of a text; a long one is not encoded at once, which takes long."""
    if not isinstance(text, str) or text.isascii():
        return len(text)
    starts = range(0, len(text), _TEXT_SLICE)
    return sum(len(text[at : at + _TEXT_SLICE].encode()) for at in starts)


def too_large_answer(output: str, num_bytes: int, limit: int) -> AnswerTooLarge:
    """Build the error of an answer that is over the limit.

    Args:
        output: the name of its largest output.
        num_bytes: that output's.
        limit: the most of all outputs of a call.
    """
    return AnswerTooLarge(
        f"the answer is too large: {output} has {num_bytes} bytes, and the outputs of a call may "
        f"have {limit} (--max-response-bytes)"
    )


def _inputs_of(groups: list[Group]) -> Iterator[Sequence[Array]]:
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


def arrays_of(group: Group, tensors: TensorSignature) -> Sequence[Array]:
    """Return the inputs of one call, in the order of its model's; or of several that are bytes.

    Raises:
        InvalidRequest: see `Layout.arrays`.
    """
    if group.encoder.layout is not None:
        return group.encoder.layout.arrays(group.messages)
    if not tensors.row_bytes:
        arrays: Sequence[Array]
        (arrays,) = group.messages
        return arrays
    only = tensors.inputs[0]
    data = group.messages[0] if len(group.messages) == 1 else b"".join(group.messages)
    return [np.frombuffer(data, only.dtype).reshape(-1, *only.shape[1:])]


def _alike(groups: list[Group], *, is_batchable: bool) -> list[list[Group]]:
    """Divide calls into those that can run together, the last first."""
    if not is_batchable:
        calls = [call for group in groups for call in group.calls()]
        return [[call] for call in reversed(calls)]
    alike: dict[object, list[Group]] = {}
    for group in groups:
        if (layout := group.encoder.layout) is not None:
            shapes = tuple(piece.shape[1:] for piece in layout.pieces)
            if _may_share(shapes):
                alike.setdefault(shapes, []).append(group)
            else:
                alike |= {object(): [call] for call in group.calls()}
            continue
        for call in group.calls():
            shapes = tuple(array.shape[1:] for array in call.messages[0])
            key = shapes if _may_share(shapes) else object()
            alike.setdefault(key, []).append(call)
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
