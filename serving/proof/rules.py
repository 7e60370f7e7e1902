"""The rules of the proof of batching: how operators keep rows apart, and along which axis.

Most operators behave in one of five ways: element by element (`pointwise`), along axes (`along`),
over axes (`reduced`, `normalized`), as a sum of products (`einsum`), or for each sample of the
first axis by itself (samples.py). The others move axes or take parts (moves.py).

A rule gets a node, and returns what is known of its outputs, or raises Mixes. Its docstring is the
reason why rows stay apart. Sizes that it can't know are unknowns (`Node.new_size`); the number of
axes is always known. Shapes are as ONNX's operator reference defines them
(https://onnx.ai/onnx/operators), and as ONNX Runtime computes them where that differs.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import numpy as np

from serving.proof.shapes import (
    Rule,
    axis_at,
    broadcast,
    met,
    replaced,
    same,
    size_in,
    with_axes_in,
    without_axes,
)
from serving.proof.sizes import ONE, Size, product
from serving.proof.values import Mixes, Node, Value

# Element by element.

_FLOAT32 = 1
"""TensorProto's number of the type."""
_OUTER = "ABCDEFGHIJKLMNOPQRSTUVWXYZ"


def pointwise(node: Node) -> list[Value]:
    """Each element depends on those at its own place."""
    rank = max((each.rank for each in node.given if each.is_rows), default=0)
    if rank > 1 and max(each.rank for each in node.given) > rank:
        # ONNX Runtime's fusion of a normalization drops the axes that an epsilon adds.
        raise Mixes("a constant of more axes than rows: no rule")
    if rank != 1:  # a normalization of these would be over rows
        _require_axes(node)
    result = broadcast(node, node.given)
    _require_size(node, result)
    return node.outputs(result)


def _require_size(node: Node, result: Value) -> None:
    """Raise Mixes if a part of a normalization is repeated for another one.

    ONNX Runtime's fusion answers with the shape of what is normalized, whatever the shape of its
    exponent is, and keeps the axis of a mean that leaves it out.
    """
    if node.op == "Pow":
        base = node.value(0)
        if base.rank and base.data is None and result.shape != base.shape:
            raise Mixes("its exponent repeats the others: no rule")
    if any(each.is_mean for each in node.given) and result.shape not in {
        each.shape for each in node.given
    }:
        raise Mixes("a mean without its axis is repeated: no rule")


def _require_axes(node: Node) -> None:
    """Raise Mixes if one element adds axes to the others, be they rows or not.

    ONNX Runtime's fusion of a normalization leaves such axes of an epsilon or an exponent out.
    These may be computed from constants, and their sizes are then not followed.
    """
    for at, value in enumerate(node.given):
        rank = max((each.rank for other, each in enumerate(node.given) if other != at), default=0)
        is_float = "float" in value.dtype or not value.dtype
        is_one = product(value.shape) == ONE
        if node.op in ("Add", "Pow"):
            is_one = all(each == ONE or each.is_closed for each in value.shape)
        if is_float and value.rank > max(rank, 1) and is_one:
            raise Mixes("one element of more axes than the others: no rule")


def onto_first(node: Node) -> list[Value]:
    """Each element depends on those at its own place, and the others are repeated for the first.

    ONNX Runtime replaces Shape by the first input's, whatever the others are.
    """
    result = broadcast(node, node.given)
    if (result.shape, result.axis) != (node.value(0).shape, node.value(0).axis):
        raise Mixes("its first input would be repeated")
    return node.outputs(result)


def like_first(node: Node) -> list[Value]:
    """Each element depends on that of the first input, and on constants."""
    return node.outputs(same(node))


def cast(node: Node) -> list[Value]:
    """Each element depends on that of the input; floats of small constants are followed."""
    result, data = same(node), node.value(0).data
    if data is not None and data.dtype.kind == "f" and node.number("to", 0) == _FLOAT32:
        result = replace(result, data=data.astype(np.float32))
    return node.outputs(result)


def batch_normalization(node: Node) -> list[Value]:
    """Outside of training it scales each channel by constants; in training, constants alone."""
    value, channels = node.value(0), node.value(1)
    if node.number("training_mode", 0):
        if value.is_rows:
            raise Mixes("in training it normalizes over rows")
        return node.outputs(same(node), Value(channels.shape), Value(channels.shape))
    if value.axis == 1:
        raise Mixes("its channels are rows")
    return node.outputs(same(node))


def quantized(node: Node) -> list[Value]:
    """Scale and zero point are constants, of all elements or of each channel."""
    value, scale = node.value(0), node.value(1).shape
    if node.number("block_size", 0):  # of weights, which are constants
        if any(each.is_rows for each in node.given):
            raise Mixes("blocks of rows have no rule")
        return node.outputs(same(node))
    if product(scale) != ONE and axis_at(node.number("axis", 1), value.rank) == value.axis:
        raise Mixes("each row has a scale of its own")
    return node.outputs(same(node))


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
        if value.axis in {axis_at(each, value.rank) for each in axes(node, value.rank)}:
            raise Mixes("it looks over rows")
        return node.outputs(same(node))

    return rule


def softmax_axes(node: Node, rank: int) -> Iterable[int]:
    """Return the axis; in old sets all axes from this one on are one."""
    if node.version < 13:
        return range(axis_at(node.number("axis", 1), rank), rank)
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


def sorted_by_size(node: Node) -> list[Value]:
    """It sorts along one axis, which must not be that of rows."""
    value = node.value(0)
    axis = axis_at(node.number("axis", -1), value.rank)
    if axis == value.axis:
        raise Mixes("it sorts rows")
    most = size_in(node, 1) if node.version >= 10 else Size.of(node.number("k", 0))
    result = Value(replaced(value.shape, axis, most), value.axis)
    return node.outputs(result, result)


def reduced(node: Node) -> list[Value]:
    """It joins elements along axes, of which none may be that of rows."""
    value = node.value(0)
    is_argument = node.op.startswith("Arg")
    axes = (node.number("axis", 0),) if is_argument else node.numbers("axes", 1)
    if not axes:
        if node.number("noop_with_empty_axes", 0):
            return node.outputs(same(node))
        axes = tuple(range(value.rank))
    dropped = {axis_at(each, value.rank) for each in axes}
    if value.axis in dropped:
        raise Mixes("over rows")
    if not node.number("keepdims", 1):
        is_mean = node.op == "ReduceMean" and not value.is_rows
        return node.outputs(replace(without_axes(value, dropped), is_mean=is_mean))
    shape = tuple(ONE if at in dropped else size for at, size in enumerate(value.shape))
    return node.outputs(Value(shape, value.axis))


def normalized(node: Node) -> list[Value]:
    """It normalizes the last axes, each row by itself; scales are constants of these axes."""
    value = node.value(0)
    axis = axis_at(node.number("axis", -1), value.rank)
    if value.axis is not None and value.axis >= axis:
        raise Mixes("it normalizes over rows")
    if any(each.rank > value.rank - axis for each in node.given[1:]):
        broadcast(node, [same(node), *node.given[1:]])  # a scale may be one for each row
    statistics = Value((*value.shape[:axis], *[ONE] * (value.rank - axis)), value.axis)
    return node.outputs(same(node), statistics, statistics)


def skip_normalized(node: Node) -> list[Value]:
    """It adds two tensors and normalizes the last axis, each row by itself."""
    both = broadcast(node, [node.value(0), node.value(1)])
    if both.axis == both.rank - 1:
        raise Mixes("it normalizes over rows")
    if both.axis != node.value(0).axis or both.shape != node.value(0).shape:
        raise Mixes("only the second tensor may be repeated")
    # ONNX Runtime repeats it for tensors of three axes alone.
    if both.rank != 3 and node.value(1).shape != both.shape:
        raise Mixes("its second tensor may not be repeated")
    if any(node.is_used[1:3]):
        raise Mixes("its mean has no rule")
    broadcast(node, [both, *node.given[2:]])
    return node.outputs(both, both, both, both)


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
            sizes[letter] = met(node, [sizes.get(letter, ONE), size])
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


def product_of_few_bits(node: Node) -> list[Value]:
    """As MatMul, with constant weights of some bits; each row is rounded by itself."""
    value = node.value(0)
    if value.rank < 2 or value.axis == value.rank - 1:
        raise Mixes("it adds up over rows")
    return node.outputs(Value((*value.shape[:-1], Size.of(node.number("N", 0))), value.axis))


def _turned(value: Value, is_turned: int) -> Value:
    if value.rank != 2:
        raise Mixes("it multiplies no matrices")
    return with_axes_in(value, (1, 0)) if is_turned else value


def general_product(node: Node) -> list[Value]:
    """Rows of the left matrix, or columns of the right one, stay apart."""
    first = _turned(node.value(0), node.number("transA", 0))
    result = _multiplied(node, first, _turned(node.value(1), node.number("transB", 0)))
    if node.has(2):
        added = broadcast(node, [result, node.value(2)])
        if added.axis != result.axis or added.rank != 2:
            raise Mixes("rows meet others than their own")
    return node.outputs(result)


# Functions of constants.


def of_constants(rank: Callable[[Node], int]) -> Rule:
    """A function of constants alone is a constant; its sizes are not followed."""

    def rule(node: Node) -> list[Value]:
        value = Value(tuple(node.new_size() for _ in range(rank(node))))
        return [value for _ in node.is_used]

    return rule
