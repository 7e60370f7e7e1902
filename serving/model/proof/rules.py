"""The rules of the proof of batching: how operators keep rows apart, and along which axis.

Most operators behave in one of five ways: element by element (`pointwise`), along axes (`along`),
over axes (`reduce`, `normalized`), as a sum of products (`contracted`), or for each sample of the
first axis by itself (`samples`). The others move axes or take parts.

A rule gets a node, and returns what is known of its outputs, or raises Mixes. Its docstring is the
reason why rows stay apart. Sizes that it can't know are unknowns (`Node.new_size`); the number of
axes is always known. Shapes are as ONNX's operator reference defines them
(https://onnx.ai/onnx/operators), and as ONNX Runtime computes them where that differs.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from serving.model.onnx_file import small_array
from serving.model.proof.elements import items_of
from serving.model.proof.sizes import ONE, Size, product
from serving.model.proof.values import (
    MAX_ITEMS,
    Mixes,
    Node,
    Value,
    computed,
    constant,
    sizes_of,
)

Rule = Callable[[Node], list[Value]]
Shape = tuple[Size, ...]

_ENDLESS = 1_000_000_000
"""More rows than any batch has: a slice up to there takes all."""


# Parts of rules.


def _at(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    if not -rank <= axis < rank:
        raise Mixes(f"it has no axis {axis}")
    return axis % rank


def _targets(node: Node, index: int) -> Shape:
    """Return the sizes that an input asks for."""
    sizes = tuple(items_of(node, index).reshape(-1))
    if any(each.varies and not each.fits() for each in sizes):
        raise Mixes("a size is computed from the number of rows, or may overflow")
    return sizes


def _size_in(node: Node, index: int) -> Size:
    """Return the one size that an input asks for."""
    vector = node.value(index).vector
    return vector[0] if vector and len(vector) == 1 else node.new_size()


def _replaced(shape: Shape, axis: int, size: Size) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _same(node: Node) -> Value:
    """Return an output of the first input's shape, with its rows in their places."""
    return Value(node.value(0).shape, node.value(0).axis)


def _require_alike(*values: Value) -> None:
    """Raise Mixes unless all hold the same rows along the same axis."""
    first = values[0]
    for other in values:
        if other.axis != first.axis or other.rank != first.rank:
            raise Mixes("rows meet others than their own")
        if first.is_rows and other.rows != first.rows:
            raise Mixes("rows meet parts of rows")


def _require_rows(node: Node, axes: dict[int, int]) -> Size | None:
    """Return how many rows inputs have, each along its axis; None if none of them holds rows.

    Raises:
        Mixes: an input has other rows, or the same ones along another axis.
    """
    found = {index: node.value(index) for index in axes if node.has(index)}
    holding = [index for index, each in found.items() if each.is_rows]
    if not holding:
        return None
    for index, value in found.items():
        if value.axis != axes[index]:
            place = "no rows" if value.axis is None else f"its rows along axis {value.axis}"
            raise Mixes(f"its input {index} has {place}, not along axis {axes[index]}")
    counts = {found[index].rows for index in holding}
    if len(counts) > 1:
        raise Mixes("rows meet parts of rows")
    return counts.pop()


def _met(node: Node, sizes: Iterable[Size]) -> Size:
    """Return the size of an axis where others meet, of which some may be 1."""
    others = {each for each in sizes if each != ONE}
    known = [each for each in others if each.number is not None]
    if len(others) <= 1:
        return others.pop() if others else ONE
    if len(known) > 1:
        raise Mixes("its sizes don't fit")
    return known[0] if known else node.new_size()


def _broadcast(node: Node, values: Sequence[Value]) -> Value:
    """Return the shape of values beside each other: rows must meet the same rows."""
    rank = max(each.rank for each in values)
    holding = [each for each in values if each.axis is not None]
    axes = {rank - each.rank + (each.axis or 0) for each in holding}
    if len(axes) > 1:
        raise Mixes("rows meet other rows")
    axis = axes.pop() if axes else None
    aligned = [(ONE,) * (rank - each.rank) + each.shape for each in values]
    sizes = [_met(node, (shape[at] for shape in aligned)) for at in range(rank)]
    if axis is None:
        return Value(tuple(sizes))
    counts = {each.rows for each in holding}
    if len(counts) > 1:
        raise Mixes("rows meet parts of rows")
    sizes[axis] = counts.pop()
    for shape, each in zip(aligned, values, strict=True):
        if each.axis is None and shape[axis] != ONE:
            raise Mixes("a constant has an element for each row")
    return Value(tuple(sizes), axis)


# Element by element.


def pointwise(node: Node) -> list[Value]:
    """Each element depends on those at its own place."""
    return node.outputs(_broadcast(node, node.given))


def onto_first(node: Node) -> list[Value]:
    """Each element depends on those at its own place, and the others are repeated for the first.

    ONNX Runtime replaces Shape by the first input's, whatever the others are.
    """
    result = _broadcast(node, node.given)
    if (result.shape, result.axis) != (node.value(0).shape, node.value(0).axis):
        raise Mixes("its first input would be repeated")
    return node.outputs(result)


def like_first(node: Node) -> list[Value]:
    """Each element depends on that of the first input, and on constants."""
    return node.outputs(_same(node))


def dropout(node: Node) -> list[Value]:
    """Outside of training it passes elements on; the mask is all true."""
    if node.has(2) and node.value(2).numbers != (0,):
        raise Mixes("it may be in training")
    return node.outputs(_same(node), _same(node))


def batch_normalization(node: Node) -> list[Value]:
    """Outside of training it scales each channel by constants."""
    if node.value(0).axis == 1:
        raise Mixes("its channels are rows")
    return node.outputs(_same(node))


def quantized(node: Node) -> list[Value]:
    """Scale and zero point are constants, of all elements or of each channel."""
    value, scale = node.value(0), node.value(1).shape
    if product(scale) != ONE and _at(node.number("axis", 1), value.rank) == value.axis:
        raise Mixes("each row has a scale of its own")
    return node.outputs(_same(node))


def scaled_by_all(node: Node) -> list[Value]:
    """It scales all elements by the largest of them."""
    if any(each.is_rows for each in node.given):
        raise Mixes("it gives a row its neighbours' scale")
    raise Mixes("its scale is not followed")


def random(node: Node) -> list[Value]:
    """Two runs differ, so no answer is that of its row."""
    raise Mixes("it draws random numbers")


# Along axes, and over axes.


def along(axes: Callable[[Node, int], Iterable[int]]) -> Rule:
    """It looks along some axes, of which none may be that of rows."""

    def rule(node: Node) -> list[Value]:
        value = node.value(0)
        if value.axis in {_at(each, value.rank) for each in axes(node, value.rank)}:
            raise Mixes("it looks over rows")
        return node.outputs(_same(node))

    return rule


def softmax_axes(node: Node, rank: int) -> Iterable[int]:
    """Return the axis; in old sets all axes from this one on are one."""
    if node.version < 13:
        return range(_at(node.number("axis", 1), rank), rank)
    return [node.number("axis", -1)]


def running_axes(node: Node, rank: int) -> Iterable[int]:
    """Return the axis of a running sum."""
    axes = node.value(1).numbers
    if axes is None:
        raise Mixes("its axis is computed")
    return axes


def all_but_first(node: Node, rank: int) -> Iterable[int]:
    """Return the axes of one sample."""
    return range(1, rank)


def last_two(node: Node, rank: int) -> Iterable[int]:
    """Return the axes of a matrix."""
    return -2, -1


def axis_of(default: int) -> Callable[[Node, int], Iterable[int]]:
    """Return the attribute `axis`."""
    return lambda node, rank: [node.number("axis", default)]


def normalized_axes(node: Node, rank: int) -> Iterable[int]:
    """Return the axes of MeanVarianceNormalization."""
    axes = node.numbers("axes")
    return (0, 2, 3) if axes is None else axes


def sorted_by_size(node: Node) -> list[Value]:
    """It sorts along one axis, which must not be that of rows."""
    value = node.value(0)
    axis = _at(node.number("axis", -1), value.rank)
    if axis == value.axis:
        raise Mixes("it sorts rows")
    most = _size_in(node, 1) if node.version >= 10 else Size.of(node.number("k", 0))
    result = Value(_replaced(value.shape, axis, most), value.axis)
    return node.outputs(result, result)


def reduced(node: Node) -> list[Value]:
    """It joins elements along axes, of which none may be that of rows."""
    value = node.value(0)
    is_argument = node.op.startswith("Arg")
    axes = (node.number("axis", 0),) if is_argument else node.numbers("axes", 1)
    if not axes:
        if node.number("noop_with_empty_axes", 0):
            return node.outputs(_same(node))
        axes = tuple(range(value.rank))
    dropped = {_at(each, value.rank) for each in axes}
    if value.axis in dropped:
        raise Mixes("over rows")
    if not node.number("keepdims", 1):
        return node.outputs(_without(value, dropped))
    shape = tuple(ONE if at in dropped else size for at, size in enumerate(value.shape))
    return node.outputs(Value(shape, value.axis))


def _without(value: Value, axes: set[int]) -> Value:
    """Return a value without some axes, none of which is that of rows."""
    shape = tuple(size for at, size in enumerate(value.shape) if at not in axes)
    axis = value.axis
    return Value(shape, axis if axis is None else axis - sum(at < axis for at in axes))


def normalized(node: Node) -> list[Value]:
    """It normalizes the last axes, each row by itself; scales are constants of these axes."""
    value = node.value(0)
    axis = _at(node.number("axis", -1), value.rank)
    if value.axis is not None and value.axis >= axis:
        raise Mixes("it normalizes over rows")
    if any(each.rank > value.rank - axis for each in node.given[1:]):
        _broadcast(node, [_same(node), *node.given[1:]])  # a scale may be one for each row
    statistics = Value((*value.shape[:axis], *[ONE] * (value.rank - axis)), value.axis)
    return node.outputs(_same(node), statistics, statistics)


def skip_normalized(node: Node) -> list[Value]:
    """It adds two tensors and normalizes the last axis, each row by itself."""
    both = _broadcast(node, [node.value(0), node.value(1)])
    if both.axis == both.rank - 1:
        raise Mixes("it normalizes over rows")
    if both.axis != node.value(0).axis or both.shape != node.value(0).shape:
        raise Mixes("only the second tensor may be repeated")
    if any(node.is_used[1:3]):
        raise Mixes("its mean has no rule")
    _broadcast(node, [both, *node.given[2:]])
    return node.outputs(both, both, both, both)


def determinants(node: Node) -> list[Value]:
    """It looks at the last two axes."""
    value = node.value(0)
    if value.axis is not None and value.axis >= value.rank - 2:
        raise Mixes("it looks over rows")
    return node.outputs(Value(value.shape[:-2], value.axis))


# Sums of products.


def _contracted(node: Node, terms: Sequence[str], result: str, values: Sequence[Value]) -> Value:
    """Return an Einsum's output: one letter for each axis of each value, and of the result.

    The letter of the batch stays in the result, and only rows have it.
    """
    sizes: dict[str, Size] = {}
    letters: set[str] = set()
    for term, value in zip(terms, values, strict=True):
        if value.rank != len(term) or len(set(term)) != len(term):
            raise Mixes("its axes have no rule")
        for letter, size in zip(term, value.shape, strict=True):
            sizes[letter] = _met(node, [sizes.get(letter, ONE), size])
        if value.axis is not None:
            letters.add(term[value.axis])
    if not letters:
        return Value(tuple(sizes[each] for each in result))
    if len(letters) > 1:
        raise Mixes("rows meet other rows")
    (batch,) = letters
    if batch not in result:
        raise Mixes("it adds up over rows")
    meeting = [each for term, each in zip(terms, values, strict=True) if batch in term]
    counts = {each.rows for each in meeting}  # a constant has none
    if len(counts) > 1:
        raise Mixes("rows meet parts of rows")
    sizes[batch] = counts.pop()
    return Value(tuple(sizes[each] for each in result), result.index(batch))


def einsum(node: Node) -> list[Value]:
    """The letter of the batch stays in the result, and only rows have it."""
    equation = node.text("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or len(terms) != len(node.given):
        raise Mixes("its equation has no rule")
    if not set(result) <= set(left) or len(set(result)) != len(result):
        raise Mixes("its equation has no rule")
    return node.outputs(_contracted(node, terms, result, node.given))


def matrix_product(node: Node) -> list[Value]:
    """Rows of the left matrix, columns of the right one, and the axes before stay apart."""
    return node.outputs(_multiplied(node, node.value(0), node.value(1)))


def quantized_product(first: int, second: int, of_all: Sequence[int], of_columns: int) -> Rule:
    """As MatMul; scales and zero points are constants, of all or of each column."""

    def rule(node: Node) -> list[Value]:
        right = node.value(second)
        for index in range(len(node.inputs)):
            if index in (first, second) or not node.has(index):
                continue
            shape = node.value(index).shape
            is_column = index >= of_columns and index not in of_all
            if product(shape) != ONE and (not is_column or right.is_rows or len(shape) > 1):
                raise Mixes("each row has a scale of its own")
        return node.outputs(_multiplied(node, node.value(first), right))

    return rule


_OUTER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def _multiplied(node: Node, first: Value, second: Value) -> Value:
    """Return the product of matrices; the axes before them are broadcast."""
    if not first.rank or not second.rank:
        raise Mixes("a scalar can't be multiplied so")
    left = "k" if first.rank == 1 else "mk"
    right = "k" if second.rank == 1 else "kn"
    rank = max(first.rank - len(left), second.rank - len(right))
    outer = _OUTER[:rank]
    if len(outer) < rank:
        raise Mixes("it has too many axes")
    terms, values = [], []
    for value, matrix in ((first, left), (second, right)):
        letters = outer[rank - (value.rank - len(matrix)) :] + matrix
        # A constant is repeated along an outer axis where its size is 1.
        kept = [
            at
            for at, (letter, size) in enumerate(zip(letters, value.shape, strict=True))
            if value.is_rows or letter in matrix or size != ONE
        ]
        terms.append("".join(letters[at] for at in kept))
        values.append(replace(value, shape=tuple(value.shape[at] for at in kept)))
    # Rows may be repeated along other axes, not these along rows.
    alone = [each for each in outer if not any(each in term for term in terms)]
    terms.append("".join(alone))
    values.append(Value((ONE,) * len(alone)))
    return _contracted(node, terms, outer + left[:-1] + right[1:], values)


def _turned(value: Value, is_turned: int) -> Value:
    if value.rank != 2:
        raise Mixes("it multiplies no matrices")
    return _transposed(value, (1, 0)) if is_turned else value


def general_product(node: Node) -> list[Value]:
    """Rows of the left matrix, or columns of the right one, stay apart."""
    first = _turned(node.value(0), node.number("transA", 0))
    result = _multiplied(node, first, _turned(node.value(1), node.number("transB", 0)))
    if node.has(2):
        added = _broadcast(node, [result, node.value(2)])
        if added.axis != result.axis or added.rank != 2:
            raise Mixes("rows meet others than their own")
    return node.outputs(result)


# Each sample by itself: convolutions, pools, recurrent layers, attention, tables.


def samples(shape: Callable[[Node], Sequence[Size]], others: Sequence[int] = ()) -> Rule:
    """Each sample of the first axis is computed by itself, with constants.

    Args:
        shape: the sizes of an output's other axes.
        others: inputs that have one element for each sample, too.
    """

    def rule(node: Node) -> list[Value]:
        value = node.value(0)
        _require_rows(node, dict.fromkeys((0, *others), 0))
        if not value.rank:
            raise Mixes("it has no sample")
        return node.outputs(Value((value.shape[0], *shape(node)), value.axis))

    return rule


def same_rank(node: Node) -> Shape:
    """Return unknown sizes, as many as the input has."""
    return tuple(node.new_size() for _ in node.value(0).shape[1:])


def convolved(weights_at: int) -> Callable[[Node], Shape]:
    """Return the shape of a convolution: a channel for each of the weights, and windows."""

    def shape(node: Node) -> Shape:
        weights = node.value(weights_at).shape
        if len(weights) != node.value(0).rank:
            raise Mixes("its weights have another number of axes")
        return weights[0], *_windows(node, [each.number for each in weights[2:]], least=1)

    return shape


def widened(node: Node) -> Shape:
    """Return the shape of a transposed convolution."""
    sizes, weights = node.value(0).shape[2:], node.value(1).shape
    if len(weights) != len(sizes) + 2:
        raise Mixes("its weights have another number of axes")
    channels = weights[1] * Size.of(node.number("group", 1))
    rank = len(sizes)
    if node.text("auto_pad") not in ("", "NOTSET") or node.numbers("output_shape") is not None:
        return channels, *(node.new_size("*") for _ in sizes)
    strides, dilations = (node.numbers(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.numbers("pads") or (0,) * 2 * rank
    extra = node.numbers("output_padding") or (0,) * rank
    spatial = []
    for at, (size, window) in enumerate(zip(sizes, weights[2:], strict=True)):
        more = extra[at] + 1 - strides[at] - pads[at] - pads[at + rank]
        new = size * Size.of(strides[at]) + Size.of(more)
        new += (window - ONE) * Size.of(dilations[at])
        # ONNX Runtime refuses a size of less than 1.
        spatial.append(new if new.is_positive else node.new_size("*"))
    return channels, *spatial


def pooled(node: Node) -> Shape:
    """Return the shape of a pool. Indices, its second output, would count over all samples."""
    kernel = node.numbers("kernel_shape")
    if kernel is None:
        raise Mixes("it has no kernel_shape")
    return node.value(0).shape[1], *_windows(node, kernel, least=0)


def _windows(node: Node, kernel: Sequence[int | None], *, least: int) -> list[Size]:
    """Return how many times a window fits along each axis.

    Args:
        node: a convolution or a pool.
        kernel: the size of the window along each axis; None where it is unknown.
        least: the smallest number that ONNX Runtime answers; it refuses what has less.
    """
    sizes = node.value(0).shape[2:]
    rank = len(sizes)
    strides, dilations = (node.numbers(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.numbers("pads") or (0,) * 2 * rank
    padding = node.text("auto_pad") or "NOTSET"
    if not len(kernel) == len(strides) == len(dilations) == len(pads) // 2 == rank:
        raise Mixes("its windows have another number of axes")
    if min((*strides, *dilations), default=1) < 1:
        raise Mixes("its windows are malformed")
    result = []
    for at, (size, window) in enumerate(zip(sizes, kernel, strict=True)):
        is_same = padding.startswith("SAME")
        if is_same and size.number is not None and dilations[at] == 1:
            result.append(Size.of(-(-size.number // strides[at])))
            continue
        if is_same or window is None:  # in a pool, ONNX Runtime dilates windows, not their padding
            is_positive = least or (dilations[at] == 1 and size.is_positive)
            result.append(node.new_size("*" if is_positive else "?"))
            continue
        extra = 0 if padding == "VALID" else pads[at] + pads[at + rank]
        more = extra - dilations[at] * (window - 1) - 1
        result.append(_fitting(node, size, more, strides[at], least=least))
    return result


def _fitting(node: Node, size: Size, more: int, stride: int, *, least: int) -> Size:
    """Return (size + more) / stride + 1, which C rounds to 0 where it is negative."""
    number, is_up = size.number, bool(node.number("ceil_mode", 0))
    if number is not None and number + more >= 0 and not (is_up and (number + more) % stride):
        return Size.of((number + more) // stride + 1)
    exact = size + Size.of(more + 1)
    if stride == 1 and exact.is_positive:
        return exact
    # For a size of 1 it is at least 1 if this holds, and it grows with the size.
    is_positive = least or (size.is_positive and 1 + more > -stride)
    is_smaller = (size.name or "")[:1] == "+" and more < 0
    mark = "?" if not is_positive else "+" if is_smaller else "*"
    return node.unknowns.of(("windows", more, stride, is_up, least), size, mark=mark)


def one_each(node: Node) -> Shape:
    """Return the shape of a pool over all of a picture."""
    shape = node.value(0).shape
    return (*shape[1:2], *[ONE] * (len(shape) - 2))


def sampled(node: Node) -> Shape:
    """Return the shape of pictures that are sampled at the places of grids."""
    return (node.value(0).shape[1], *node.value(1).shape[1:-1])


def depth_to_space(node: Node) -> Shape:
    """Return the shape of pictures whose channels become pixels."""
    channels, *sizes = node.value(0).shape[1:]
    block = Size.of(node.number("blocksize", 1))
    fewer = channels.divided(block * block) or node.new_size()
    return fewer, *(each * block for each in sizes)


def space_to_depth(node: Node) -> Shape:
    """Return the shape of pictures whose pixels become channels."""
    channels, *sizes = node.value(0).shape[1:]
    block = Size.of(node.number("blocksize", 1))
    return channels * block * block, *(each.divided(block) or node.new_size() for each in sizes)


def recurrent(node: Node) -> list[Value]:
    """Sequences of the batch are run beside each other, with constant weights."""
    value = node.value(0)
    if value.rank != 3:
        raise Mixes("it has no batch")
    is_first = bool(node.number("layout", 0))
    batch = 0 if is_first else 1
    _require_rows(node, {0: batch, 4: 0, 5: batch, 6: batch})
    directions = Size.of(2 if node.text("direction") == "bidirectional" else 1)
    hidden = node.number("hidden_size", 0)
    units = Size.of(hidden) if hidden else node.value(2).shape[2]
    rows, is_rows = value.shape[batch], value.is_rows
    if is_first:
        all_turns = Value((rows, value.shape[1], directions, units), 0 if is_rows else None)
        last = Value((rows, directions, units), 0 if is_rows else None)
    else:
        all_turns = Value((value.shape[0], directions, rows, units), 2 if is_rows else None)
        last = Value((directions, rows, units), 1 if is_rows else None)
    return node.outputs(all_turns, last, *[last] * (node.op == "LSTM"))


def self_attention(node: Node) -> list[Value]:
    """Each sequence of the first axis attends to itself, with constant weights."""
    value = node.value(0)
    if value.axis != 0 or value.rank != 3 or node.has(4):
        raise Mixes("it has no rule for these inputs")
    if node.has(3) and node.value(3).shape[:1] != (value.rows,):
        raise Mixes("its mask has no rule")
    _require_rows(node, {0: 0, 3: 0})
    return node.outputs(Value((*value.shape[:2], node.new_size()), 0))


def attention(node: Node) -> list[Value]:
    """Queries of the first axis attend to keys and values of their own row."""
    query, key, value = (node.value(index) for index in range(3))
    _require_rows(node, {0: 0, 1: 0, 2: 0})
    if any(node.has(index) for index in (4, 5, 6)) or not query.rank == key.rank == value.rank:
        raise Mixes("it has no rule for these inputs")
    if node.has(3):
        mask = node.value(3)
        if mask.rank < 4 and mask.is_rows:
            raise Mixes("its mask has no rule")
        _broadcast(node, [Value((query.shape[0], ONE, ONE, ONE), query.axis), mask])
    if query.rank == 4:
        return node.outputs(Value((*query.shape[:3], value.shape[3]), query.axis))
    return node.outputs(Value((*query.shape[:2], node.new_size()), query.axis))


def reversed_sequences(node: Node) -> list[Value]:
    """Each row is reversed in time, by its own length."""
    batch, time = node.number("batch_axis", 1), node.number("time_axis", 0)
    if time == batch:
        raise Mixes("its axes are one")
    _require_rows(node, {0: batch, 1: 0})
    return node.outputs(_same(node))


def fourier(node: Node) -> list[Value]:
    """It transforms along another axis than that of rows."""
    value = node.value(0)
    axis = node.number("axis", 1) if node.version < 20 else -2
    if node.has(2):
        numbers = node.value(2).numbers
        if numbers is None:
            raise Mixes("its axis is unknown")
        axis = numbers[0]
    at = _at(axis, value.rank)
    if value.axis in (at, value.rank - 1):
        raise Mixes("it transforms over rows")
    # How many numbers there are depends on `inverse` and `onesided`, in another way in each set.
    shape = _replaced(_replaced(value.shape, at, node.new_size()), value.rank - 1, node.new_size())
    return node.outputs(Value(shape, value.axis))


def short_fourier(node: Node) -> Shape:
    """Return the shape of a signal's spectra."""
    return node.new_size(), node.new_size(), Size.of(2)


# Classical models (ai.onnx.ml): tables of rows.


def _table(node: Node, index: int = 0) -> Value:
    value = node.value(index)
    if value.rank != 2 or value.axis not in (None, 0):
        raise Mixes("it is no table of rows")  # of one axis, all is one row
    return value


def columns(node: Node) -> list[Value]:
    """Each row of a table is scaled or filled by constants."""
    _table(node)
    return node.outputs(_same(node))


def classified(count: Callable[[Node], int | None]) -> Rule:
    """Each row of a table gets a label, and scores; `count` says how many, if that is known."""

    def rule(node: Node) -> list[Value]:
        value, number = _table(node), count(node)
        if node.text("post_transform") == "PROBIT":
            raise Mixes("with PROBIT, ONNX Runtime leaves scores as the memory was")
        size = node.new_size("*") if number is None else Size.of(number)
        rows = value.shape[0]
        return node.outputs(Value((rows,), value.axis), Value((rows, size), value.axis))

    return rule


def unknown_classes(node: Node) -> None:
    """Return no number: a score may be one for each class, or for each pair of classes."""


def classes_of_trees(node: Node) -> int | None:
    """Return the number of classes, if there are several."""
    number = _num_labels(node, "classlabels_int64s")
    return number if number > 1 else None


def classes_of_lines(node: Node) -> int | None:
    """Return the number of classes, if each has an intercept, or one decides between two."""
    number = _num_labels(node, "classlabels_ints")
    intercepts = node.attributes.get("intercepts")
    num_lines = 0 if intercepts is None else len(intercepts.floats)
    return number if number > 1 and num_lines == (1 if number == 2 else number) else None


def _num_labels(node: Node, name: str) -> int:
    labels = [node.attributes.get(each) for each in (name, "classlabels_strings")]
    return sum(len(each.ints) + len(each.strings) for each in labels if each is not None)


def scored(attribute: str, default: int) -> Rule:
    """Each row of a table gets its numbers."""

    def rule(node: Node) -> list[Value]:
        value, number = _table(node), node.number(attribute, default)
        size = Size.of(number) if number else node.new_size("*")
        return node.outputs(Value((value.shape[0], size), value.axis))

    return rule


def features(node: Node) -> list[Value]:
    """Tables are joined column by column."""
    values = [_table(node, index) for index in range(len(node.inputs))]
    _require_alike(*values)
    return node.outputs(Value((values[0].shape[0], node.new_size()), values[0].axis))


def one_hot_encoded(node: Node) -> list[Value]:
    """It adds an axis to each element, with a column for each category."""
    value = node.value(0)
    categories = [node.attributes.get(name) for name in ("cats_int64s", "cats_strings")]
    number = sum(len(each.ints) + len(each.strings) for each in categories if each)
    return node.outputs(Value((*value.shape, Size.of(number)), value.axis))


def extracted(node: Node) -> list[Value]:
    """It takes columns by number, or each row takes an element of a constant."""
    value, indices = node.value(0), node.value(1)
    shape, number = value.shape[:-1] or (ONE,), product(indices.shape)
    if indices.is_rows:
        if value.is_rows or indices.axis != 0:
            raise Mixes("rows take from all rows")
        return node.outputs(Value((*shape, number), len(shape)))
    if value.is_rows and (value.rank < 2 or value.axis == value.rank - 1):
        raise Mixes("it takes rows by number")
    return node.outputs(Value((*shape, number), value.axis))


def texts(node: Node) -> list[Value]:
    """Without words to leave out it changes each text by itself."""
    if node.value(0).rank != 1:
        raise Mixes("it is no list of texts")
    return node.outputs(_same(node))


# Shapes: where the batch axis goes.


def shape_of(node: Node) -> list[Value]:
    """Sizes of axes: what depends on them depends on the number of rows, if they do."""
    shape = node.value(0).shape
    start, end = node.number("start", 0), node.number("end", len(shape))
    return node.outputs(computed(sizes_of(shape[slice(start, end)])))


def size_of(node: Node) -> list[Value]:
    """The number of elements."""
    return node.outputs(computed(sizes_of([product(node.value(0).shape)]).reshape(())))


def written(node: Node) -> list[Value]:
    """A constant of the graph."""
    ((name, attribute),) = node.attributes.items()
    if name == "value":
        return node.outputs(constant(small_array(attribute.t), tuple(attribute.t.dims)))
    if name in ("value_int", "value_ints"):
        numbers = attribute.ints if name == "value_ints" else attribute.i
        data = np.array(numbers, np.int64)
        return node.outputs(constant(data, data.shape))
    if name in ("value_floats", "value_strings"):
        number = len(attribute.floats) + len(attribute.strings)
        return node.outputs(Value((Size.of(number),)))
    return node.outputs(Value(()))


def reshaped(node: Node) -> list[Value]:
    """Each element stays where it is in memory, so the batch axis is found there again."""
    value, target = node.value(0), list(_targets(node, 1))
    for at, size in enumerate(target):
        if size.number == 0 and not node.number("allowzero", 0):
            target[at] = value.shape[at]
    sizes = [_asked_for(node, size, at) for at, size in enumerate(target)]
    inferred = [at for at, size in enumerate(sizes) if size.number == -1]
    if len(inferred) > 1:
        raise Mixes("two sizes are left open")
    if inferred:
        sizes[inferred[0]] = _inferred(node, product(value.shape), sizes, inferred[0])
    elif node.value(1).data is None and product(target) != product(value.shape):
        # ONNX Runtime may leave a computed size open (its fusion of Reshape), whatever it is.
        if value.is_rows:
            raise Mixes("its sizes are not proved to fit")
        sizes = [node.new_size() for _ in sizes]
    return node.outputs(_refolded(value, sizes))


def _asked_for(node: Node, size: Size, at: int) -> Size:
    """Return a size that Reshape asks for; an unknown one if it may be 0 or -1.

    0 copies the input's size, and -1 leaves it open. Neither must be about the batch.
    """
    if size.number is not None or size.is_positive:
        return size
    shape = node.value(0).shape
    if size.varies or (at < len(shape) and shape[at].varies):
        raise Mixes("a size may be 0")
    return node.new_size()


def _inferred(node: Node, total: Size, sizes: Sequence[Size], at: int) -> Size:
    """Return the size that is left open: that of a part of rows, or of all of them."""
    rest = product(size for other, size in enumerate(sizes) if other != at)
    if rest.varies or not total.varies:
        return total.divided(rest) or node.new_size()
    # The batch axis itself. It must be a whole number of times the rows for every size.
    if not all(size.is_positive for other, size in enumerate(sizes) if other != at):
        raise Mixes("a size may be 0")
    quotient = total.divided(rest)
    if quotient is None or quotient.per_row is None:
        raise Mixes("it may join several rows to one")
    return quotient


def _refolded(value: Value, sizes: Sequence[Size]) -> Value:
    """Return a value with its elements in another shape, and the batch axis where it is there."""
    if value.axis is None:
        return Value(tuple(sizes))
    axes = [at for at, size in enumerate(sizes) if size.varies]
    if len(axes) != 1:
        raise Mixes("its batch axis is lost")
    axis = axes[0]
    before = sizes[:axis]
    if not all(size.is_positive for size in before):
        raise Mixes("a size may be 0")
    # In order of memory, rows stand this often one after another; part of it is in axes of its own.
    times = product(value.shape[: value.axis]) * (value.outer or ONE)
    outer, share = times.divided(product(before)), sizes[axis].per_row
    if outer is None or share is None or share.divided(outer) is None:
        raise Mixes("the batch axis is moved across another one")
    return Value(tuple(sizes), axis, outer)


def flattened(node: Node) -> list[Value]:
    """As Reshape to two axes."""
    value, axis = node.value(0), node.number("axis", 1)
    axis = axis + value.rank if axis < 0 else axis
    if not 0 <= axis <= value.rank:
        raise Mixes(f"it has no axis {axis}")
    sizes = product(value.shape[:axis]), product(value.shape[axis:])
    return node.outputs(_refolded(value, sizes))


def transposed(node: Node) -> list[Value]:
    """The batch axis is moved as a whole."""
    value, order = node.value(0), node.numbers("perm")
    return node.outputs(
        _transposed(value, tuple(reversed(range(value.rank))) if order is None else order)
    )


def _transposed(value: Value, order: Sequence[int]) -> Value:
    if sorted(order) != list(range(value.rank)):
        raise Mixes("its order of axes is malformed")
    axis = None if value.axis is None else list(order).index(value.axis)
    return Value(tuple(value.shape[at] for at in order), axis)


def squeezed(node: Node) -> list[Value]:
    """It drops axes of size 1 by number; without numbers it would drop a batch of one row."""
    value = node.value(0)
    axes = node.numbers("axes", 1)
    if not axes:  # ONNX Runtime drops all axes of size 1 for an empty list, too
        if value.is_rows:
            raise Mixes("it would drop the batch axis of one row")
        if any(each.number is None for each in value.shape):
            raise Mixes("the number of its axes is unknown")
        axes = tuple(at for at, size in enumerate(value.shape) if size == ONE)
    dropped = {_at(each, value.rank) for each in axes}
    if value.axis in dropped:
        raise Mixes("it drops the batch axis")
    return node.outputs(_without(value, dropped))


def unsqueezed(node: Node) -> list[Value]:
    """It adds axes of size 1."""
    value = node.value(0)
    axes = node.numbers("axes", 1) or ()
    rank = value.rank + len(axes)
    added = {_at(each, rank) for each in axes}
    if len(added) < len(axes):
        raise Mixes("its axes are malformed")
    sizes = iter(value.shape)
    shape = tuple(ONE if at in added else next(sizes) for at in range(rank))
    kept = [at for at in range(rank) if at not in added]
    return node.outputs(Value(shape, None if value.axis is None else kept[value.axis]))


def expanded(node: Node) -> list[Value]:
    """Rows are repeated along other axes; a constant repeated for each row counts as rows."""
    value, target = node.value(0), _targets(node, 1)
    rank = max(value.rank, len(target))
    mine = (*[ONE] * (rank - value.rank), *value.shape)
    others = (*[ONE] * (rank - len(target)), *target)
    axis = None if value.axis is None else value.axis + rank - value.rank
    sizes = []
    for at, (size, other) in enumerate(zip(mine, others, strict=True)):
        if at == axis:
            if other not in (ONE, size):
                raise Mixes("rows are repeated along the batch axis")
        elif other.varies:
            if axis is not None or size != ONE:
                raise Mixes("a row is repeated as often as there are rows")
            size, axis = other, at
        else:
            size = _met(node, [size, other])
        sizes.append(size)
    return node.outputs(Value(tuple(sizes), axis))


def filled(node: Node) -> list[Value]:
    """A tensor of one constant, repeated for each row, counts as rows."""
    target = _targets(node, 0)
    varying = [at for at, size in enumerate(target) if size.varies]
    if len(varying) > 1:
        raise Mixes("two of its axes are as long as there are rows")
    numbers, value = node.value(0).numbers, node.attributes.get("value")
    if value is not None and numbers is not None and math.prod(numbers) <= MAX_ITEMS:
        element = constant(small_array(value.t), (1,))
        if element.items is not None:
            items = np.full(numbers, element.items.reshape(-1)[0], object)
            return node.outputs(computed(items, is_narrow=element.is_narrow))
    return node.outputs(Value(target, varying[0] if varying else None))


def counted(node: Node) -> list[Value]:
    """A range whose length does not depend on the number of rows is a constant."""
    numbers = [node.value(index).numbers for index in range(3)]
    if all(each and len(each) == 1 for each in numbers):
        start, limit, step = (each[0] for each in numbers if each)
        if step and (limit - start) / step <= MAX_ITEMS:
            items = sizes_of(map(Size.of, range(start, limit, step)))
            return node.outputs(computed(items, is_narrow=node.value(0).is_narrow))
    size = node.new_size()
    vectors = [each.vector for each in node.given]
    if numbers[0] == (0,) and numbers[2] == (1,) and vectors[1] and vectors[1][0].is_positive:
        (size,) = vectors[1]
    return node.outputs(Value((size,), varies=size.varies))


def tiled(node: Node) -> list[Value]:
    """It repeats along other axes."""
    value, repeats = node.value(0), _targets(node, 1)
    if len(repeats) != value.rank or any(each.varies for each in repeats):
        raise Mixes("its repeats are unknown, or depend on the number of rows")
    if value.axis is not None and repeats[value.axis] != ONE:
        raise Mixes("it repeats the batch")
    sizes = (size * times for size, times in zip(value.shape, repeats, strict=True))
    return node.outputs(Value(tuple(sizes), value.axis))


def joined(node: Node) -> list[Value]:
    """It joins along another axis than that of rows; or all rows stand one after another there."""
    first = node.value(0)
    axis = _at(node.number("axis", 1), first.rank)
    _require_alike(*node.given)
    shape = []
    for at in range(first.rank):
        sizes = [each.shape[at] for each in node.given]
        if at == axis:
            shape.append(sum(sizes, Size.of(0)))
        elif len({*sizes}) == 1:
            shape.append(sizes[0])
        elif not all(size.is_positive for each in node.given for size in each.shape):
            # ONNX Runtime leaves tensors without elements out, whatever their other sizes are, and
            # the memory in their place as it was.
            raise Mixes("a size may be 0")
        else:
            shape.append(_met(node, sizes))
    outer = None if first.axis != axis else (first.outer or ONE) * Size.of(len(node.given))
    return node.outputs(Value(tuple(shape), first.axis, outer))


def split(node: Node) -> list[Value]:
    """It cuts along another axis than that of rows."""
    value, number = node.value(0), len(node.is_used)
    axis = _at(node.number("axis", 0), value.rank)
    if axis == value.axis:
        raise Mixes("it divides the batch")
    if node.has(1) and node.value(1).is_size:
        raise Mixes("a size depends on the number of rows")
    size, parts = value.shape[axis], None
    if (attribute := node.numbers("split")) is not None:
        parts = [*map(Size.of, attribute)]
    elif node.has(1):
        parts = [*(node.value(1).vector or ())]
    elif whole := size.divided(Size.of(number)):
        parts = [whole] * number
    if not parts or len(parts) != number:
        parts = [node.new_size() for _ in range(number)]
    return [Value(_replaced(value.shape, axis, part), value.axis) for part in parts]


def sliced(node: Node) -> list[Value]:
    """It cuts along other axes; along that of rows it must take all."""
    value, (starts, ends, axes, steps) = node.value(0), _bounds(node)
    shape = list(value.shape)
    for number, axis in enumerate(axes):
        at = _at(axis, len(shape))
        start = starts[number] if starts is not None else None
        end = ends[number] if ends is not None else None
        step = steps[number] if steps else 1
        if at == value.axis:
            first, last = start.number if start else None, end.number if end else None
            is_all = end == shape[at] or (last is not None and last >= _ENDLESS)
            if first != 0 or step != 1 or not is_all:
                raise Mixes("it takes some of the rows")
            continue
        if value.is_rows and any(each and each.varies for each in (start, end)):
            raise Mixes("it cuts by the number of rows")
        shape[at] = _cut(node, shape[at], start, end, step)
    return node.outputs(Value(tuple(shape), value.axis))


_Bounds = tuple[Shape | None, Shape | None, Sequence[int], Sequence[int] | None]


def _bounds(node: Node) -> _Bounds:
    """Return starts, ends, axes and steps of a slice; None where they are not known."""
    starts: Shape | None
    ends: Shape | None
    if node.version < 10:
        starts, ends = (
            tuple(map(Size.of, node.numbers(name) or ())) for name in ("starts", "ends")
        )
        axes, steps = node.numbers("axes"), None
    else:
        starts, ends = node.value(1).vector, node.value(2).vector
        axes, steps = node.numbers("axes", 3), node.numbers("steps", 4)
    if axes is None:
        if starts is None:
            raise Mixes("its axes are unknown")
        axes = tuple(range(len(starts)))
    counts = {len(each) for each in (starts, ends, axes, steps) if each is not None}
    if len(counts) > 1 or len({*axes}) < len(axes):
        raise Mixes("its axes are malformed")
    return starts, ends, axes, steps


def _cut(node: Node, size: Size, start: Size | None, end: Size | None, step: int) -> Size:
    """Return the size of a part from start to end."""
    length, first, last = (each.number if each else None for each in (size, start, end))
    if length is not None and first is not None and last is not None and step:
        return Size.of(len(range(length)[slice(first, last, step)]))
    if first == 0 and step == 1 and last is not None and last >= _ENDLESS:
        return size
    if first == 0 and step == 1 and end is not None and end == size:
        return size
    return node.new_size()


def padded(node: Node) -> list[Value]:
    """It adds a border along other axes than that of rows."""
    value = node.value(0)
    shape = list(value.shape)
    if node.version < 11:
        pads: Shape = tuple(map(Size.of, node.numbers("pads") or ()))
    else:
        pads = _targets(node, 1)
    given = node.numbers("axes", 3)
    axes = [_at(each, value.rank) for each in (range(value.rank) if given is None else given)]
    if len(pads) != 2 * len(axes) or any(each.varies for each in pads):
        raise Mixes("its border is unknown, or depends on the number of rows")
    if len({*axes}) < len(axes):
        raise Mixes("its axes are malformed")
    for number, at in enumerate(axes):
        before, after = pads[number], pads[number + len(axes)]
        if at == value.axis and (before.number, after.number) != (0, 0):
            raise Mixes("it pads the batch")
        shape[at] = shape[at] + before + after
    return node.outputs(Value(tuple(shape), value.axis))


def resized(node: Node) -> list[Value]:
    """Each picture is resized by itself, where the scale of the batch axis is 1."""
    value = node.value(0)
    shape = value.shape
    if node.text("coordinate_transformation_mode").startswith("tf_crop"):
        raise Mixes("its mode has no rule")
    is_weighed = node.text("mode", "nearest") != "nearest"
    if is_weighed and (value.axis not in (None, 0) or value.rank not in (4, 5)):
        raise Mixes("it weighs a row with its neighbours, if only by 0")  # 0 times NaN is NaN
    given = node.numbers("axes") or range(value.rank)
    axes = [_at(each, value.rank) for each in given]
    scales = _scales(node)
    if scales is not None and len(scales) != len(axes):
        raise Mixes("its scales are malformed")
    sizes = node.value(3).vector if node.has(3) else None
    if value.axis is not None and value.axis in axes:
        at = axes.index(value.axis)
        if scales is not None and scales[at] != 1.0:
            raise Mixes("it resizes the batch")
        if scales is None and (
            sizes is None or len(sizes) != len(axes) or sizes[at] != shape[axes[at]]
        ):
            raise Mixes("the scale of the batch axis is unknown")
    new = list(shape)
    for number, at in enumerate(axes):
        if at != value.axis:
            new[at] = _resized_size(node, shape[at], number, (scales, sizes))
    if any(each.varies for at, each in enumerate(new) if at != value.axis):
        raise Mixes("it resizes by the number of rows")
    return node.outputs(Value(tuple(new), value.axis))


def _resized_size(
    node: Node, size: Size, number: int, given: tuple[Sequence[float] | None, Shape | None]
) -> Size:
    """Return the size of a resized axis, the one of this number that the node names."""
    scales, sizes = given
    if scales is None:
        is_exact = sizes and number < len(sizes) and sizes[number].is_positive
        return sizes[number] if sizes and is_exact else node.new_size()
    new = size * Size.of(int(scales[number]))
    # ONNX Runtime multiplies in float32, which rounds larger numbers.
    is_exact = scales[number].is_integer() and new.fits(1 << 24)
    return new if is_exact else node.new_size()


def _scales(node: Node) -> list[float] | None:
    """Return the factors of all axes; None if they are computed, or sizes are given."""
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return [float(each) for each in attribute.floats]
    index = 1 if node.op == "Upsample" or node.version < 11 else 2
    data = node.value(index).data if node.has(index) else None
    return [float(each) for each in data.reshape(-1)] if data is not None and data.size else None


def one_hot(node: Node) -> list[Value]:
    """It adds an axis to each element."""
    value = node.value(0)
    at = _at(node.number("axis", -1), value.rank + 1)
    if node.value(1).is_size:
        raise Mixes("a size depends on the number of rows")
    shape = list(value.shape)
    shape.insert(at, _size_in(node, 1))
    axis = None if value.axis is None else value.axis + (at <= value.axis)
    return node.outputs(Value(tuple(shape), axis))


# Taking elements by number.


def gathered(node: Node) -> list[Value]:
    """Rows take from a constant, or all rows are taken from at the same places."""
    data, indices = node.value(0), node.value(1)
    axis = _at(node.number("axis", 0), data.rank)
    if data.is_rows and indices.is_rows:
        raise Mixes("rows take from all rows")
    if data.axis == axis:
        raise Mixes("it takes rows by number")
    if data.axis is not None and data.axis > axis and node.has_texts:
        # ONNX Runtime 1.32 copies strings of the first row, and leaves the others empty.
        raise Mixes("it may take strings of several rows")
    batch = None
    if data.axis is not None:
        batch = data.axis if data.axis < axis else data.axis + indices.rank - 1
    if indices.axis is not None:
        batch = axis + indices.axis
    return node.outputs(Value((*data.shape[:axis], *indices.shape, *data.shape[axis + 1 :]), batch))


def by_element(node: Node) -> list[Value]:
    """Each row takes from its own elements, or changes them, along another axis."""
    data, indices = node.value(0), node.value(1)
    if data.axis == _at(node.number("axis", 0), data.rank):
        raise Mixes("it takes from other rows")
    _require_alike(*node.given)
    return node.outputs(
        Value(indices.shape if node.op == "GatherElements" else data.shape, data.axis)
    )


def compressed(node: Node) -> list[Value]:
    """It takes the same places of all rows, along another axis."""
    value = node.value(0)
    if "axis" not in node.attributes:
        raise Mixes("it takes some of all elements")
    axis = _at(node.number("axis", 0), value.rank)
    if axis == value.axis:
        raise Mixes("it takes some of the rows")
    return node.outputs(Value(_replaced(value.shape, axis, node.new_size()), value.axis))


def gathered_many(node: Node) -> list[Value]:
    """Rows take from a constant, or each row from its own elements."""
    data, indices = node.value(0), node.value(1)
    shared = node.number("batch_dims", 0)
    if not indices.rank or shared < 0:
        raise Mixes("its indices have no axis")
    depth = indices.shape[-1].number
    if depth is None or shared + depth > data.rank or depth < 1:
        raise Mixes("its depth is unknown")
    if data.is_rows:
        if data.axis is None or data.axis >= shared or indices.axis != data.axis:
            raise Mixes("it takes rows by number")
        if data.rows != indices.rows:
            raise Mixes("rows meet parts of rows")
    elif indices.axis is not None and (shared or indices.axis == indices.rank - 1):
        raise Mixes("its rows have no rule")
    return node.outputs(Value((*indices.shape[:-1], *data.shape[shared + depth :]), indices.axis))


# Functions of constants.


def of_constants(rank: Callable[[Node], int]) -> Rule:
    """A function of constants alone is a constant; its sizes are not followed."""

    def rule(node: Node) -> list[Value]:
        value = Value(tuple(node.new_size() for _ in range(rank(node))))
        return [value for _ in node.is_used]

    return rule
