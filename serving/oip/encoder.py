"""The rows of a run's outputs that are one call's, as its answer."""

from collections.abc import Sequence
from itertools import chain
from typing import Any, Protocol

from serving.batching.run import NUM_BYTES, ResponseEncoder, Result, Target
from serving.oip.long_values import LONG_BYTES
from serving.oip.request import InferAnswer, InferRequest
from serving.oip.values import to_raw


class Writer(Protocol):
    """Writes answers in one form."""

    def write(self, answer: InferAnswer) -> Any:
        """Write an answer: bytes, or `Pieces` of a long one."""

    def before(self, num_bytes: int) -> bytes:
        """Return the bytes before each raw output but the first, by its length."""


class Values:
    """Leaves an answer as values, for a coroutine that writes it."""

    def write(self, answer: InferAnswer) -> InferAnswer:
        """Return the answer."""
        return answer

    def before(self, num_bytes: int) -> bytes:
        """Return nothing: there are no bytes."""
        return b""


VALUES = Values()


class InferEncoder(ResponseEncoder):
    """Puts a call's rows of a run into its answer.

    Answers to calls that repeat one another differ in the values of their tensors only. Where these
    are the last bytes, the others are kept:

        all else | output | bytes before | output | ...
    """

    def __init__(
        self,
        target: Target,
        method: str | None,
        request: InferRequest,
        writer: Writer,
        identifier: str = "",
        *,
        is_repeated: bool = False,
        in_parts: bool = False,
        is_stream: bool = False,
    ) -> None:
        """Describe calls.

        Args:
            target: runs them.
            method: the name in the metrics; None if they are counted elsewhere.
            request: what is asked.
            writer: writes the answers.
            identifier: the call's, if it has one.
            is_repeated: whether many calls will have this encoder, and their outputs are bytes.
            in_parts: whether their sink takes parts, and the model answers in parts.
            is_stream: whether answers say if they are the last one, where that is asked for.
        """
        super().__init__(target, method, request.num_rows, request.timeout_s)
        self.request = request
        self.parameters = request.parameters
        self._writer, self._id, self.in_parts = writer, identifier, in_parts
        self._is_end = False if in_parts else True if request.is_end_wanted and is_stream else None
        """Whether an answer is the last one; None to leave that out."""
        self._is_repeated = is_repeated and all(
            each.datatype != "BYTES" for each in request.tensors
        )
        self._known: tuple[str, list[tuple[int, ...]]] | None = None
        """The version and the shapes that the constant parts are of."""
        self._constants: Sequence[bytes] = ()
        """The bytes before each tensor."""
        self._start, self._version = b"", ""
        """The bytes before the tensor of a classifier, and the version that they name."""

    def encode(self, result: Result, at: int, number: int) -> list[Any]:
        step, end = self.num_rows, at + number * self.num_rows
        rows = result.rows  # of a classifier, the bytes of its only output
        if rows and result.version == self._version:
            start, size = self._start, len(rows) // result.num_rows
            parts = range(at * size, end * size, step * size)
            step *= size
            return [start + rows[i : i + step] for i in parts]
        found = self._repeated(result, at, number) if self._is_repeated else None
        if found is None:
            return [self._written(result, at + i * step) for i in range(number)]
        return found

    def _repeated(self, result: Result, at: int, number: int) -> list[bytes] | None:
        """Make answers of the constant parts and the outputs' bytes; None if they are no such."""
        step, end = self.num_rows, at + number * self.num_rows
        outputs = [result.outputs[each] for each in self.request.outputs]
        if sum(map(NUM_BYTES, outputs)) * step >= LONG_BYTES * result.num_rows:
            return None
        is_all = step == result.num_rows  # then the outputs may have any shape
        shapes = [each.shape if is_all else (step, *each.shape[1:]) for each in outputs]
        if (result.version, shapes) != self._known and not self._prepare(result, at, shapes):
            return None
        if result.rows:
            self._start, self._version = self._constants[0], result.version
        data = ((each if is_all else each[at:end]).tobytes() for each in outputs)
        columns = zip(*(_cut(each, number) for each in data), strict=True)
        return [b"".join(chain(*zip(self._constants, parts, strict=True))) for parts in columns]

    def _written(self, result: Result, at: int) -> Any:
        """Write the answer whose first row is this one."""
        outputs = result.cut(at, self.num_rows)
        arrays = [outputs[each] for each in self.request.outputs]
        answer = InferAnswer(self.request, arrays, result.version, self._id, self._is_end)
        return self._writer.write(answer)

    def end_of_parts(self, result: Result) -> Any:
        if not self.request.is_end_wanted:
            return None
        request = self.request._replace(outputs=(), tensors=(), as_bytes=())
        return self._writer.write(InferAnswer(request, [], result.version, self._id, is_end=True))

    def _prepare(self, result: Result, at: int, shapes: list[tuple[int, ...]]) -> bool:
        """Keep the constant parts of an answer; return whether there are any."""
        parts = result.cut(at, self.num_rows)
        answer = self._written(result, at)
        constants: list[bytes] = []
        for number in reversed(self.request.outputs):
            data = to_raw(parts[number])
            if not answer.endswith(data):
                return False
            answer, before = answer[: len(answer) - len(data)], self._writer.before(len(data))
            if not answer.endswith(before):
                return False
            answer = answer.removesuffix(before)
            constants.append(before)
        constants[-1] = answer + constants[-1]
        self._constants, self._known = constants[::-1], (result.version, shapes)
        return True


def _cut(data: bytes, number: int) -> list[bytes]:
    size = len(data) // number
    if not size:
        return [b""] * number
    return [data[i : i + size] for i in range(0, len(data), size)]
