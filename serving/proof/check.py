"""Compares what a proof says of each tensor of a graph with runs of that graph.

A proof is as right as its rules: a wrong size or rank makes a wrong proof. So the graph runs with
all its tensors as outputs and without optimizations, on drawn rows alone and in batches of several
sizes, and every tensor must be what the proof says: its rank, its sizes, its known elements, and

- a constant has the same elements in all runs;
- a size has the same elements in all runs of as many rows;
- row i of a batch, cut along the axis that the proof names, is what it is alone. Beside others, in
  a batch of as many rows, it is that bit for bit.

Batches of other sizes add numbers in another order. Where that makes a difference and later nodes
enlarge it, the node that shows it runs again, on its very inputs in the batch, cut to one row.

Bodies and functions run inside their nodes, of which the outputs are compared.
"""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from serving.proof import drawn_inputs
from serving.proof.arrays import Array, Feeds
from serving.proof.onnx_file import Message, ModelProto, operator_of
from serving.proof.sizes import ROWS, Size
from serving.proof.table import is_pointwise
from serving.proof.values import Mixes, Value
from serving.proof.walk import Proof

_N = ROWS.name or ""
REFERENCE = (0, 2, 3)
"""Rows of a draw: the batch that all other runs are compared with, and the last of them alone; the
middle one would stay where it is if rows were reversed."""
_PAIR = (0, 3)
"""The reference where there is not room for all tensors: a batch of two, of the same kind."""
_ALONE = (3,)
_OTHERS = (0, 5, 3), (0, 7, 3), (0, 6, 3), (3, 0), (1, 0, 4, 2, 3), (0,), (2,)
"""Further runs, of the likeliest contradictions first: others beside the same rows (5 is of 1e30, 7
of NaN, 6 has infinities), and other numbers of rows."""
_TOLERANCES = {2: 1e-2, 4: 1e-4, 8: 1e-6}
"""Largest difference of a row from itself alone, by the bytes of its floats. Sums are added in
another order; a float64 may be made of a float32, and then its node decides."""
_SHARE, _LEAST_S = 0.5, 0.1
"""Processor time for further runs: a share of what the session takes to build, or a little."""
_PIECES_S = 1.0
"""Processor time after which no further piece begins, if there is not room for all tensors."""
MAX_BYTES = 768 << 20
"""The most that the tensors take which are compared at a time: of ResNet50 all at once."""
_MAX_DRAWS = 4
"""Draws that are compared: of a size two, and two of others."""
_AXES = 16, 32, 8, 1, 64, 512
"""Sizes for all open axes. Of the first one with which a graph runs are two draws, two others are
of an own size for each name, if the graph takes that, or of the next one."""
_IR_VERSION = b"\x08\x0a"
"""ModelProto.ir_version, 10."""
_ELEM_TYPES = {
    "float32": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7,
    "object": 8, "bool": 9, "float16": 10, "float64": 11, "uint32": 12, "uint64": 13,
}  # fmt: skip
"""TensorProto.DataType by numpy's names."""
_ALIGNMENT = 64
"""Loops over numbers begin at such addresses, and may add in another order elsewhere."""


class Session(Protocol):
    """A graph that can be run: each node as the file has it, without optimizations."""

    @property
    def inputs(self) -> Sequence[drawn_inputs.Input]:
        """The graph's inputs, without those that have a default."""

    @property
    def dtypes(self) -> Mapping[str, np.dtype]:
        """Numpy's type of each output that has one, by name."""

    def run(self, names: Sequence[str], feeds: Feeds) -> Sequence[Array]:
        """Run the graph.

        Args:
            names: the outputs that are wanted.
            feeds: an array for each input.

        Returns:
            The outputs, in the order of their names.

        Raises:
            TimeoutError: the check was ended from outside; it passes through the check.
            Exception: the graph does not take these inputs.
        """


NewSession = Callable[[bytes], Session]
"""Builds a session of an ONNX file's bytes. It knows the files with weights that these name."""


@dataclass(frozen=True, slots=True)
class Graph:
    """A graph that was proved, as a file's bytes and as a message."""

    model: Message
    data: bytes
    samples: Feeds | None = None
    """At least 8 rows that the model takes, which go before those that are drawn."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """How much was compared."""

    num_tensors: int
    """Tensors that were compared at least in a batch and in a row alone."""
    num_omitted: int
    """Tensors that no type of numpy's holds, or that there was no room or no time for."""
    num_runs: int


class NotRun(Exception):
    """No input that was drawn can be run, so that nothing was compared."""


class _Refused(Exception):
    """The graph does not take these inputs."""


@dataclass(frozen=True, slots=True, eq=False)
class _Run:
    rows: Sequence[int]
    """Rows of a draw."""
    feeds: Feeds
    sizes: dict[str, int]
    """What the unknowns of the proof stand for."""
    tensors: dict[str, Array]


class Check:
    """A graph that was proved, ready to run."""

    def __init__(
        self,
        graph: Graph,
        proof: Proof,
        new_session: NewSession,
        clock: Callable[[], float] = time.thread_time,
        max_bytes: int = MAX_BYTES,
    ) -> None:
        """Build the session; an error of `new_session` passes through.

        Args:
            graph: the graph.
            proof: what was proved of it.
            new_session: builds sessions: the graph's with all its tensors as outputs, and in a run
                those of single nodes.
            clock: processor time, in seconds.
            max_bytes: the most that the tensors take which are compared at a time; larger graphs
                are compared in pieces.
        """
        self._graph, self._proof, self._clock = graph, proof, clock
        self._new_session, self._max_bytes = new_session, max_bytes
        begin_s = clock()
        self._model = proof.model
        self._nodes = {name: each for each in self._model.graph.node for name in each.output}
        names = [name for name in proof.values if name in self._nodes]
        outputs = {each.name for each in self._model.graph.output}
        more = ModelProto()
        for name in names:
            if name not in outputs:
                more.graph.output.add().name = name
        # Of two messages one after the other protobuf makes one: no copy of the weights is parsed.
        is_same = self._model is graph.model
        data = graph.data if is_same else self._model.SerializeToString()
        self._session = new_session(data + more.SerializeToString())
        types = self._session.dtypes
        self._names = [name for name in names if name in types]
        self._num_omitted = len(names) - len(self._names)
        self._item_bytes = {name: types[name].itemsize for name in self._names}
        self._build_s = clock() - begin_s
        self._num_runs = 0

    def run(self) -> Comparison:
        """Run the graph, and compare.

        Returns:
            How much was compared.

        Raises:
            Mixes: a tensor is not what the proof says; the text names it.
            NotRun: the graph takes no drawn input.
            TimeoutError: a session's run raised it.
        """
        end_s = self._clock() + max(_LEAST_S, _SHARE * self._build_s)
        compared: set[str] = set()
        num_draws = 0
        for feeds in self._draws():
            if num_draws == _MAX_DRAWS or (num_draws and self._clock() > end_s):
                break
            found = self._compare_draw(feeds, end_s)
            num_draws += bool(found)
            compared |= found
        if not compared:
            raise NotRun
        num_left = len(self._names) - len(compared)
        return Comparison(len(compared), self._num_omitted + num_left, self._num_runs)

    def _draws(self) -> Iterator[Feeds]:
        """Yield inputs: samples, and some whose open axes are alike, unlike, and alike again."""
        if self._graph.samples is not None:
            yield self._graph.samples
        inputs = self._session.inputs
        names = {name for each in inputs for name in each.names[1:] if name}
        if all(-1 not in each.shape[1:] for each in inputs):
            yield from drawn_inputs.draws_of_size(inputs, drawn_inputs.NUM_ROWS, {}, 1)
            return
        first, *others = _AXES
        # A rule that takes one open axis for another is right where both are as long.
        unlike = {name: 32 * number for number, name in enumerate(sorted(names), 1)}
        # With several open axes, unlike ones come first: they show more.
        both = [({}, first), (unlike, 32)]
        if len(names) > 1:
            both.reverse()
        for sizes, size in *both, *(({}, each) for each in others):
            yield from drawn_inputs.draws_of_size(inputs, drawn_inputs.NUM_ROWS, sizes, size)

    def _compare_draw(self, feeds: Feeds, end_s: float) -> set[str]:
        """Compare runs on one draw until the time ends; return the tensors that were compared."""
        compared: set[str] = set()
        pieces_end_s = self._clock() + _PIECES_S
        known: dict[str, int] = {}  # unknown sizes that rows don't decide: the same in each run
        rows_of_reference: Sequence[int] = REFERENCE
        pieces = list(self._pieces(self._names, feeds, REFERENCE))
        if len(pieces) > 1:
            rows_of_reference = _PAIR
            pieces = list(self._pieces(self._in_order(), feeds, _PAIR))
        for names in pieces:
            if compared and self._clock() > pieces_end_s:
                break
            reference = self._try(names, feeds, rows_of_reference)
            if reference is None:
                continue
            self._require_sizes(reference, known)
            alone = self._try(names, feeds, _ALONE)
            if alone is None:
                raise Mixes("a row fails alone, and runs in a batch", is_located=True)
            self._require_sizes(alone, known)
            self._require_equal(reference, alone)
            compared.update(names)
            del alone
            held = sum(each.nbytes for each in reference.tensors.values())
            most = (self._max_bytes - held) * len(reference.rows) // max(1, held)
            for rows in _OTHERS:
                if len(rows) > most or self._clock() > end_s:
                    continue
                other = self._try(names, feeds, rows)
                if other is not None:
                    self._require_sizes(other, known)
                    self._require_equal(reference, other)
        return compared

    def _in_order(self) -> list[str]:
        """Return the tensors, those inside that are computed element by element last.

        Their rank and sizes are those of their inputs, and a row that they mix shows in what
        reads them.
        """
        outputs = {each.name for each in self._model.graph.output}

        def is_last(name: str) -> bool:
            return name not in outputs and is_pointwise(operator_of(self._nodes[name]))

        return sorted(self._names, key=is_last)

    def _pieces(
        self, names: Iterable[str], feeds: Feeds, rows: Sequence[int]
    ) -> Iterator[list[str]]:
        """Yield tensors in pieces that there is room for in a batch of these rows and a row."""
        sizes = self._sizes(drawn_inputs.take(feeds, _ALONE))
        piece: list[str] = []
        left = most = self._max_bytes // (len(rows) + len(_ALONE))
        for name in names:
            # What one row takes, as the proof says it; unknown sizes count as 1.
            axes = [each.at(sizes) or 1 for each in self._proof.values[name].shape]
            num_bytes = self._item_bytes[name] * math.prod(axes)
            if num_bytes > most:
                continue
            if num_bytes > left:
                yield piece
                piece, left = [], most
            piece.append(name)
            left -= num_bytes
        if piece:
            yield piece

    def _sizes(self, feeds: Feeds) -> dict[str, int]:
        places = self._proof.axes.items()
        return {unknown: feeds[name].shape[axis] for unknown, (name, axis) in places}

    def _try(self, names: Sequence[str], feeds: Feeds, rows: Sequence[int]) -> _Run | None:
        """Run some rows; return None if one of them fails alone, too."""
        try:
            return self._run(names, feeds, rows)
        except _Refused:
            for row in rows:
                try:
                    self._run([], feeds, [row])
                except _Refused:
                    return None
            text = f"a batch of {len(rows)} rows fails, and each of them runs alone"
            raise Mixes(text, is_located=True) from None

    def _run(self, names: Sequence[str], feeds: Feeds, rows: Sequence[int]) -> _Run:
        taken = {name: _aligned(each) for name, each in drawn_inputs.take(feeds, rows).items()}
        fetched = list(names) or self._names[-1:]
        self._num_runs += 1
        try:
            arrays = self._session.run(fetched, taken)
        except TimeoutError:
            raise
        except Exception as err:  # ONNX Runtime's own exceptions have no common base
            raise _Refused from err
        return _Run(rows, taken, self._sizes(taken), dict(zip(fetched, arrays, strict=True)))

    def _require_sizes(self, run: _Run, known: dict[str, int]) -> None:
        """Check ranks, sizes and known elements.

        Args:
            run: the run; the unknown sizes that it shows are added to its own.
            known: sizes that earlier runs have shown; this one's are added.
        """
        run.sizes.update(known)
        for name, array in run.tensors.items():
            text = _wrong_size(self._proof.values[name], array, run.sizes)
            if text is not None:
                raise self._contradiction(name, f"{text}, in a run of {len(run.rows)} rows")
        known |= {name: size for name, size in run.sizes.items() if name[0] == "?"}

    def _require_equal(self, reference: _Run, run: _Run) -> None:
        """Check that constants and sizes have equal elements, and rows those of the reference."""
        for name, array in run.tensors.items():
            if self._proof.values[name].is_rows:
                self._require_equal_rows(name, reference, run)
            elif not _is_same(reference.tensors[name], array):
                if not self._proof.values[name].is_size:
                    raise self._contradiction(name, "changes with the rows, expected a constant")
                if len(run.rows) == len(reference.rows):
                    raise self._contradiction(name, "changes with values, expected sizes alone")

    def _require_equal_rows(self, name: str, reference: _Run, run: _Run) -> None:
        pair = self._pair(name, reference, run)
        if pair is None:
            return
        wanted, found = pair
        num_rows = len(run.rows)
        if _is_same(wanted, found):
            return
        if num_rows == len(reference.rows):
            raise self._contradiction(name, "has a row that changes with the rows beside it")
        error = drawn_inputs.relative_error(wanted, found)
        if error > _tolerance(wanted) and not self._is_rounding(name, reference, run):
            raise self._contradiction(
                name,
                f"has a row that differs by {error:.1g} in batches of {len(reference.rows)} "
                f"and of {num_rows} rows",
            )

    def _pair(self, name: str, reference: _Run, run: _Run) -> tuple[Array, Array] | None:
        """Return the rows that two runs have in common; at the same places, if they are as large.

        None if the proof does not know where they are.
        """
        value = self._proof.values[name]
        wanted = _cut(value, reference.tensors[name], reference.sizes)
        found = _cut(value, run.tensors[name], run.sizes)
        if wanted is None or found is None:
            return None
        is_beside = len(run.rows) == len(reference.rows)
        known = list(reference.rows)
        places = [(known.index(row), at) for at, row in enumerate(run.rows) if row in known]
        places = [(first, at) for first, at in places if first == at or not is_beside]
        return wanted[[first for first, _ in places]], found[[at for _, at in places]]

    def _is_rounding(self, name: str, reference: _Run, run: _Run) -> bool:
        """Return whether a node by itself has equal rows, so that only earlier ones rounded.

        It runs on the inputs that it had in the reference, cut to the rows of the other run.
        """
        node, weights = self._nodes[name], self._model.graph.initializer
        names = [each for each in _names_read(node) if each in self._proof.values]
        used = [each for each in weights if each.name in names]
        names = [each for each in names if each not in {weight.name for weight in used}]
        inner = [each for each in names if each in self._nodes]
        first = {
            **reference.feeds,
            **self._run(inner, reference.feeds, range(len(reference.rows))).tensors,
        }
        other = {**run.feeds, **self._run(inner, run.feeds, range(len(run.rows))).tensors}
        feeds: dict[str, Array] = {}
        for each in names:
            value, feeds[each] = self._proof.values[each], other[each]
            if value.is_rows:
                wanted = _cut(value, first[each], reference.sizes)
                found = _cut(value, other[each], run.sizes)
                if wanted is None or found is None:
                    return False
                found = found.copy()
                for at, row in enumerate(run.rows):
                    if row in reference.rows:
                        found[at] = wanted[reference.rows.index(row)]
                feeds[each] = _joined(found, value.axis or 0, other[each].shape)
        try:
            array = self._run_node(node, name, used, feeds)
        except TimeoutError:
            raise
        except Exception:  # ONNX Runtime's own have no common base; then nothing excuses the node
            return False
        pair = self._pair(name, reference, replace(run, tensors={name: array}))
        return pair is not None and drawn_inputs.relative_error(*pair) <= _tolerance(array)

    def _run_node(
        self, node: Message, output: str, weights: Sequence[Message], feeds: Feeds
    ) -> Array:
        model = ModelProto()
        model.opset_import.extend(self._model.opset_import)
        model.graph.name = "node"
        model.graph.node.add().CopyFrom(node)
        model.graph.initializer.extend(weights)
        model.graph.output.add().name = output
        for name, array in feeds.items():
            model.graph.input.add().name = name
            kind = model.graph.input[-1].type.tensor_type
            kind.elem_type = _ELEM_TYPES[array.dtype.name]
        session = self._new_session(_IR_VERSION + model.SerializeToString())
        aligned = {name: _aligned(each) for name, each in feeds.items()}
        return session.run([output], aligned)[0]

    def _contradiction(self, name: str, text: str) -> Mixes:
        node = self._nodes[name]
        line = f"{node.name or name} ({operator_of(node)}): in a run, tensor {name} {text}"
        return Mixes("".join(each if each.isprintable() else "?" for each in line), is_located=True)


def _wrong_size(value: Value, array: Array, sizes: dict[str, int]) -> str | None:
    """Say how an array differs from the rank, the sizes and the elements that a proof knows.

    Args:
        value: what the proof knows.
        array: the tensor in a run.
        sizes: of unknowns; those that this tensor shows are added.
    """
    if value.dtype not in ("", array.dtype.name) and array.dtype.kind != "O":
        return f"is of {array.dtype.name}, expected {value.dtype}"
    if value.rank != array.ndim:
        return f"has {array.ndim} axes, expected {value.rank}"
    for axis, (size, found) in enumerate(zip(value.shape, array.shape, strict=True)):
        expected = _expected(size, found, sizes)
        if expected != found:
            return f"has size {found} along axis {axis}, expected {expected}"
    if value.items is not None:
        if value.items.shape != array.shape:
            return f"has shape {list(array.shape)}, expected {list(value.items.shape)}"
        for size, element in zip(value.items.flat, array.flat, strict=True):
            expected = _expected(size, int(element), sizes)
            if expected != element:
                return f"has element {element}, expected {expected}"
    if value.data is not None and not _is_same(np.asarray(value.data, array.dtype), array):
        return "has other elements than the proof knows"
    if value.axis is not None and value.outer is not None:
        outer, found = value.outer.at(sizes), array.shape[value.axis]
        if outer is not None and found % max(1, outer * sizes[_N]):
            return f"has size {found} along axis {value.axis}, expected {outer} times all rows"
    return None


def _expected(size: Size, found: int, sizes: dict[str, int]) -> int:
    """Return what a size has to be; an unknown that is shown first is what was found."""
    expected = size.at(sizes)
    if expected is not None:
        return expected
    if size.name is not None:
        sizes[size.name] = found
    return found


def _cut(value: Value, array: Array, sizes: Mapping[str, int]) -> Array | None:
    """Return the rows of a tensor along the first axis; None if it is unknown how it is cut."""
    outer = None if value.outer is None else value.outer.at(sizes)
    num_rows, axis = sizes[_N], value.axis or 0
    if not outer:
        return None
    inner = array.shape[axis] // (outer * num_rows)
    shape = (*array.shape[:axis], outer, num_rows, inner, *array.shape[axis + 1 :])
    return np.moveaxis(array.reshape(shape), axis + 1, 0)


def _joined(rows: Array, axis: int, shape: tuple[int, ...]) -> Array:
    """Return rows that `_cut` has cut as one tensor."""
    return np.moveaxis(rows, 0, axis + 1).reshape(shape)


def _is_same(first: Array, second: Array) -> bool:
    """Return whether two arrays are equal, NaN being equal to itself."""
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    if np.array_equal(first, second):
        return True
    return first.dtype.kind == "f" and np.array_equal(first, second, equal_nan=True)


def _tolerance(array: Array) -> float:
    return _TOLERANCES[array.dtype.itemsize] if array.dtype.kind == "f" else 0.0


def _aligned(array: Array) -> Array:
    """Return a copy whose elements begin where ONNX Runtime's own do."""
    if array.dtype.kind == "O":
        return array
    memory = np.empty(array.nbytes + _ALIGNMENT, np.uint8)
    begin = -memory.ctypes.data % _ALIGNMENT
    copy = memory[begin : begin + array.nbytes].view(array.dtype).reshape(array.shape)
    copy[...] = array
    return copy


def _names_read(node: Message) -> set[str]:
    """Return the names that a node reads, and those in its bodies."""
    names = {*node.input} - {""}
    for attribute in node.attribute:
        for body in (attribute.g, *attribute.graphs):
            names |= {each.name for each in body.output}
            names = names.union(*map(_names_read, body.node))
    return names
