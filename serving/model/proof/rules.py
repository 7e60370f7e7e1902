"""The rules of the proof of batching: which operators keep rows apart, and along which axis.

Each row of RULES names operators, the function that is their rule, the inputs that may hold rows,
and those that hold sizes, such as Reshape's second. The function's docstring is the reason why rows
stay apart. It gets a node and returns its outputs' values, or raises Mixes. Shapes are as ONNX's
operator reference defines them (https://onnx.ai/onnx/operators).
"""

import math
import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import reduce

import numpy as np

from serving.model.onnx_file import small_array
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
from serving.tensors import Array

Rule = Callable[[Node], list[Value]]
Shape = tuple[Size, ...]

_ALL = range(64)
_ENDLESS = 1_000_000_000
"""More rows than any batch has: a slice up to there takes all."""

RANDOM = {"Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform",
          "RandomUniformLike"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class _Row:
    rule: Rule
    rows: Sequence[int]
    """The inputs that may hold rows."""
    sizes: Sequence[int]
    """The inputs that hold sizes."""


def outputs_of(node: Node) -> list[Value]:
    """Return the values of a node's outputs.

    Raises:
        Mixes: rows meet, or it can't be excluded.
    """
    if node.op in RANDOM:
        raise Mixes("it draws random numbers")
    arithmetic = _arithmetic(node)
    if arithmetic is not None:
        return arithmetic
    row = RULES.get(node.op)
    inputs = [each for each in node.inputs if each is not None]
    if not any(each.is_rows for each in inputs):
        return _without_rows(node, row)
    if row is None:
        raise Mixes("this operator has no rule")
    for index, value in enumerate(node.inputs):
        if value is None:
            continue
        if value.is_rows and index not in row.rows:
            raise Mixes(f"its input {index} depends on rows")
        if value.is_size and index not in row.sizes:
            raise Mixes("the number of rows meets values")
    return row.rule(node)


def _without_rows(node: Node, row: _Row | None) -> list[Value]:
    """Return the outputs of a node none of whose inputs holds rows."""
    varies = any(each.is_size for each in node.inputs if each)
    unknown = [Value(varies=varies)] * node.num_outputs
    if row is None or (varies and not row.sizes):
        return unknown
    if any(
        each and each.is_size and index not in row.sizes for index, each in enumerate(node.inputs)
    ):
        return unknown
    try:
        return row.rule(node)
    except (Mixes, ArithmeticError, LookupError, TypeError, ValueError):
        return unknown


# Sizes: what a graph computes of shapes.


def _arithmetic(node: Node) -> list[Value] | None:
    """Return the elements that shapes and constants decide; None if they don't."""
    if node.op in ("Shape", "Size", "Constant"):
        return [{"Shape": _shape_of, "Size": _size_of, "Constant": _constant}[node.op](node)]
    inputs = [each for each in node.inputs if each is not None]
    if node.op not in _ITEMS or not inputs or any(each.items is None for each in inputs):
        return None
    try:
        items = np.asarray(_ITEMS[node.op](node), object)
    except (Mixes, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    if items.size > MAX_ITEMS:
        return None
    is_narrow = any(each.is_narrow for each in inputs)
    if node.op == "Cast":
        is_narrow = node.number("to", 0) == _INT32
    if is_narrow:
        items = sizes_of(map(node.unknowns.narrow, items.reshape(-1))).reshape(items.shape)
    return [computed(items, is_narrow=is_narrow)]


def _shape_of(node: Node) -> Value:
    shape = node.value(0).shape
    if shape is None:
        return Value(varies=node.value(0).varies)
    return computed(sizes_of(shape[slice(node.number("start", 0), node.number("end", len(shape)))]))


def _size_of(node: Node) -> Value:
    shape = node.value(0).shape
    if shape is None:
        return Value((), varies=node.value(0).varies)
    return computed(sizes_of([product(shape)]).reshape(()))


def _constant(node: Node) -> Value:
    for name, attribute in node.attributes.items():
        if name == "value":
            return constant(small_array(attribute.t), tuple(attribute.t.dims))
        if name in ("value_int", "value_ints"):
            data = np.array(attribute.ints if name == "value_ints" else attribute.i, np.int64)
            return constant(data, data.shape)
        if name in ("value_float", "value_string"):
            return Value(())
        if name in ("value_floats", "value_strings"):
            return Value((Size.of(len(attribute.floats) + len(attribute.strings)),))
    return Value()


def _items(node: Node, index: int = 0) -> Array:
    """Return the elements of an input."""
    items = node.value(index).items
    if items is None:
        raise Mixes("its sizes are computed from values")
    return items


def _sizes(node: Node, index: int) -> Shape:
    """Return the elements of an input, in order."""
    return tuple(_items(node, index).reshape(-1))


def _binary(node: Node) -> Array:
    pair = np.frompyfunc(lambda a, b: _pair(node, a, b), 2, 1)
    return np.asarray(reduce(pair, (_items(node, index) for index in range(len(node.inputs)))))


def _pair(node: Node, a: Size, b: Size) -> Size:
    if node.op in _COMPARED:
        return _compared(node, a, b)
    if node.op in ("Min", "Max") and a == b:
        return a
    if node.op == "Div" and b.number and a.fits():
        quotient = a.divided(b)
        if quotient is not None:
            return quotient
    if a.number is not None and b.number is not None:
        if node.op in ("Div", "Mod") and (a.number < 0 or b.number <= 0):
            raise Mixes("it divides by no positive number")
        return Size.of(_FOLDED[node.op](a.number, b.number))
    return node.unknowns.of(f"{node.op} {node.number('fmod', 0)}", a, b)


_FOLDED: dict[str, Callable[[int, int], int]] = {
    "Div": operator.floordiv, "Mod": operator.mod, "Min": min, "Max": max,
}  # fmt: skip
_COMPARED: dict[str, Callable[[int, int], bool]] = {
    "Equal": operator.eq, "Greater": operator.gt, "Less": operator.lt,
    "GreaterOrEqual": operator.ge, "LessOrEqual": operator.le,
}  # fmt: skip


def _compared(node: Node, a: Size, b: Size) -> Size:
    """Return 1 or 0 where that is certain, as for a size of at least 1 beside -1."""
    difference = (a - b).number
    if difference is None and a.is_positive and b.number is not None and b.number <= 0:
        difference = 1
    # Only equality holds even where both have overflowed.
    if difference is None or not (node.op == "Equal" or _are_exact(a, b)):
        return node.unknowns.of(node.op, a, b)
    return Size.of(int(_COMPARED[node.op](difference, 0)))


def _are_exact(*sizes: Size) -> bool:
    return all(each.number is not None or each.fits() for each in sizes)


def _chosen(node: Node) -> Array:
    def choose(condition: Size, yes: Size, no: Size) -> Size:
        if condition.number is None:
            return node.unknowns.of("Where", condition, yes, no)
        return yes if condition.number else no

    three = np.frompyfunc(choose, 3, 1)
    return np.asarray(three(*(_items(node, index) for index in range(3))), object)


def _cast(node: Node) -> Array:
    """A cast between the types of shapes keeps the numbers; others overflow or round."""
    if node.number("to", 0) not in (_INT32, _INT64):
        raise Mixes("it casts to another type than shapes have")
    return _items(node)


_INT32, _INT64 = 6, 7
"""TensorProto's numbers of types."""


def _reshaped_items(node: Node) -> Array:
    target = node.value(1).numbers
    if target is None or 0 in target:
        raise Mixes("its shape is computed")
    return _items(node).reshape(target)


def _gathered_items(node: Node) -> Array:
    indices = node.value(1)
    numbers = indices.numbers
    if numbers is None:
        raise Mixes("it takes a computed element")
    shape = () if indices.items is None else indices.items.shape
    return _items(node).take(np.array(numbers, int).reshape(shape), node.number("axis", 0))


def _sliced_items(node: Node) -> Array:
    items = _items(node)
    starts, ends = node.numbers("starts", 1) or (), node.numbers("ends", 2) or ()
    axes = node.numbers("axes", 3) or range(len(starts))
    steps = node.numbers("steps", 4) or (1,) * len(starts)
    cut = [slice(None)] * items.ndim
    for axis, *bounds in zip(axes, starts, ends, steps, strict=True):
        cut[axis] = slice(*bounds)
    return items[tuple(cut)]


def _multiplied_items(node: Node) -> Array:
    items = _items(node)
    axes, is_kept = node.numbers("axes", 1), bool(node.number("keepdims", 1))
    is_noop = axes is None and node.number("noop_with_empty_axes", 0)
    if items.ndim != 1 or axes not in (None, (0,), (-1,)) or is_noop:
        raise Mixes("its axes have no rule")
    return sizes_of([product(items)]).reshape((1,) if is_kept else ())


_ITEMS: dict[str, Callable[[Node], Array]] = {
    "Add": lambda node: _items(node, 0) + _items(node, 1),
    "Sub": lambda node: _items(node, 0) - _items(node, 1),
    "Mul": lambda node: _items(node, 0) * _items(node, 1),
    **dict.fromkeys([*_FOLDED, *_COMPARED], _binary),
    "Where": _chosen, "Cast": _cast, "Identity": _items, "Reshape": _reshaped_items,
    "Gather": _gathered_items, "Slice": _sliced_items, "ReduceProd": _multiplied_items,
    "Concat": lambda node: np.concatenate(
        [_items(node, index) for index in range(len(node.inputs))], node.number("axis", 0)
    ),
    "Unsqueeze": lambda node: np.expand_dims(_items(node), node.numbers("axes", 1) or ()),
    "Squeeze": lambda node: np.squeeze(_items(node), node.numbers("axes", 1)),
    "Transpose": lambda node: _items(node).transpose(node.numbers("perm")),
    "Expand": lambda node: np.broadcast_to(
        _items(node), np.broadcast_shapes(_items(node).shape, node.value(1).numbers or ())
    ),
}  # fmt: skip


# Shapes of outputs.


def _at(axis: int, rank: int) -> int:
    """Return an axis counted from the front."""
    if not -rank <= axis < rank:
        raise Mixes(f"it has no axis {axis}")
    return axis % rank


def _broadcast(node: Node, values: Sequence[Value]) -> Value:
    """Return the shape of values beside each other: rows must meet the same rows."""
    shapes = [each.known_shape for each in values]
    rank = max(map(len, shapes))
    axes = {rank - len(each.known_shape) + each.axis for each in values if each.axis is not None}
    if len(axes) > 1:
        raise Mixes("rows meet other rows")
    axis = axes.pop() if axes else None
    sizes = []
    for at in range(rank):
        met = [shape[at - rank + len(shape)] for shape in shapes if at - rank + len(shape) >= 0]
        if at == axis:
            sizes.append(_batch_size(values, rank, at))
            continue
        sizes.append(_met(node, met))
    return Value(tuple(sizes), axis)


def _met(node: Node, sizes: Sequence[Size]) -> Size:
    """Return the size of an axis where others meet, of which some may be 1."""
    others = {each for each in sizes if each != ONE}
    known = [each for each in others if each.number is not None]
    if len(others) <= 1:
        return others.pop() if others else ONE
    return known[0] if known else node.new_size()


def _batch_size(values: Sequence[Value], rank: int, at: int) -> Size:
    """Return the size of the batch axis where values meet, of which others have 1 there."""
    sizes = set()
    for each in values:
        shape = each.known_shape
        index = at - rank + len(shape)
        if each.axis is not None:
            sizes.add(shape[index])
        elif index >= 0 and shape[index] != ONE:
            raise Mixes("a constant has an element for each row")
    if len(sizes) > 1:
        raise Mixes("rows meet parts of rows")
    return sizes.pop()


def _outputs(node: Node, *values: Value) -> list[Value]:
    """Return the outputs that have a rule; others must not be used."""
    if any(node.is_used[len(values) :]):
        raise Mixes(f"its output {len(values)} has no rule")
    return list(values)


def _kept(node: Node) -> list[Value]:
    """Return an output of the first input's shape, with its rows in their places."""
    return _outputs(node, Value(node.value(0).known_shape, node.value(0).axis))


def _require_axis(value: Value, axis: int) -> None:
    if value.axis is not None and value.axis != axis:
        raise Mixes(f"its rows are along axis {value.axis}, not {axis}")


# Element by element, and along other axes.


def _elementwise(node: Node) -> list[Value]:
    """Each element depends on those at its own place."""
    if node.version < 8 and node.has(1) and "." not in node.op:
        raise Mixes("an old operator may count axes from the front")
    return _outputs(node, _broadcast(node, [each for each in node.inputs if each]))


def _cast_like(node: Node) -> list[Value]:
    """It takes elements from the first input, and the type of the second."""
    return _kept(node)


def _dropout(node: Node) -> list[Value]:
    """Outside of training it passes elements on."""
    training = node.value(2).numbers if node.has(2) else (0,)
    if node.version < 7 or training != (0,):
        raise Mixes("it may be in training")
    return _kept(node)


def _batch_normalization(node: Node) -> list[Value]:
    """Outside of training it scales each channel by constants."""
    value = node.value(0)
    if node.number("training_mode", 0) or (node.version < 7 and not node.number("is_test", 0)):
        raise Mixes("it normalizes by the batch")
    if value.axis == 1:
        raise Mixes("its channels are rows")
    return _kept(node)


def _quantized(node: Node) -> list[Value]:
    """Scale and zero point are constants, of all elements or of each channel."""
    value, scale = node.value(0), node.value(1).known_shape
    if node.number("block_size", 0):
        raise Mixes("blocks have no rule")
    if product(scale) != ONE and _at(node.number("axis", 1), len(value.known_shape)) == value.axis:
        raise Mixes("each row has a scale of its own")
    return _kept(node)


def _scaled_by_all(node: Node) -> list[Value]:
    """It scales all elements by the largest of them."""
    raise Mixes("it gives a row its neighbours' scale")


def _along(axes: Callable[[Node, int], Iterable[int]]) -> Rule:
    """It looks along some axes, of which none may be that of rows."""

    def rule(node: Node) -> list[Value]:
        value = node.value(0)
        rank = len(value.known_shape)
        if value.axis in {_at(each, rank) for each in axes(node, rank)}:
            raise Mixes("it looks over rows")
        return _kept(node)

    return rule


def _softmax_axes(node: Node, rank: int) -> Iterable[int]:
    if node.version < 13:  # all axes from this one on are one
        return range(_at(node.number("axis", 1), rank), rank)
    return [node.number("axis", -1)]


def _summed_axes(node: Node, rank: int) -> Iterable[int]:
    axes = node.value(1).numbers
    if axes is None:
        raise Mixes("its axis is computed")
    return axes


def _top(node: Node) -> list[Value]:
    """It sorts along one axis, which must not be that of rows."""
    value = node.value(0)
    axis = _at(node.number("axis", -1), len(value.known_shape))
    if axis == value.axis:
        raise Mixes("it sorts rows")
    most = _constant_size(node, 1) if node.has(1) else Size.of(node.number("k", 1))
    shape = _replaced(value.known_shape, axis, most)
    return _outputs(node, *[Value(shape, value.axis)] * 2)


def _constant_size(node: Node, index: int) -> Size:
    """Return a size that does not depend on the number of rows."""
    value = node.value(index)
    if value.is_size:
        raise Mixes("a size depends on the number of rows")
    return value.vector[0] if value.vector and len(value.vector) == 1 else node.new_size()


def _replaced(shape: Shape, axis: int, size: Size) -> Shape:
    return (*shape[:axis], size, *shape[axis + 1 :])


def _reduced(node: Node) -> list[Value]:
    """It joins elements along axes, of which none may be that of rows."""
    value = node.value(0)
    rank = len(value.known_shape)
    is_argument = node.op.startswith("Arg")
    axes = (node.number("axis", 0),) if is_argument else node.numbers("axes", 1)
    if not axes:
        if node.number("noop_with_empty_axes", 0):
            return _kept(node)
        axes = tuple(range(rank))
    reduced = {_at(each, rank) for each in axes}
    if value.axis in reduced:
        raise Mixes("over rows")
    if node.number("keepdims", 1):
        shape = tuple(ONE if at in reduced else size for at, size in enumerate(value.known_shape))
        return _outputs(node, Value(shape, value.axis))
    return _outputs(node, _dropped(value, reduced))


def _dropped(value: Value, axes: set[int]) -> Value:
    """Return a value without some axes, none of which is that of rows."""
    shape = tuple(size for at, size in enumerate(value.known_shape) if at not in axes)
    axis = value.axis
    return Value(shape, axis if axis is None else axis - sum(at < axis for at in axes))


def _layer_normalization(node: Node) -> list[Value]:
    """It normalizes the last axes, each row by itself; scales are constants of these axes."""
    value = node.value(0)
    rank = len(value.known_shape)
    axis = _at(node.number("axis", -1), rank)
    if value.axis is not None and value.axis >= axis:
        raise Mixes("it normalizes over rows")
    scales = [each for each in node.inputs[1:] if each]
    _broadcast(node, [Value(value.known_shape, value.axis), *scales])
    whole = Value(value.known_shape, value.axis)
    shape = (*whole.known_shape[:axis], *[ONE] * (rank - axis))
    return _outputs(node, whole, *[Value(shape, value.axis)] * 2)


def _skip_normalization(node: Node) -> list[Value]:
    """It adds two tensors and normalizes the last axis, each row by itself."""
    both = _broadcast(node, [node.value(0), node.value(1)])
    if both.axis == len(both.known_shape) - 1:
        raise Mixes("it normalizes over rows")
    if both.axis != node.value(0).axis or both.known_shape != node.value(0).known_shape:
        raise Mixes("only the second tensor may be repeated")
    if any(node.is_used[1:3]):
        raise Mixes("its mean has no rule")
    _broadcast(node, [both, *(each for each in node.inputs[2:] if each)])
    return _outputs(node, both, both, both, both)


def _determinants(node: Node) -> list[Value]:
    """It looks at the last two axes."""
    value = node.value(0)
    if value.axis is not None and value.axis >= len(value.known_shape) - 2:
        raise Mixes("it looks over rows")
    return _outputs(node, Value(value.known_shape[:-2], value.axis))


# Products.


def _matrix_product(node: Node) -> list[Value]:
    """Rows of the left matrix, columns of the right one, and the axes before stay apart."""
    return _outputs(node, _multiplied(node, node.value(0), node.value(1)))


def _quantized_product(node: Node) -> list[Value]:
    """As MatMul; scales and zero points are constants, of all or of each column."""
    is_integer = node.op == "MatMulInteger"
    first, second = node.value(0), node.value(1 if is_integer else 3)
    of_all, of_columns = ((2,), (3,)) if is_integer else ((1, 2, 6, 7), (4, 5))
    for index in (*of_all, *of_columns):
        shape = node.value(index).known_shape if node.has(index) else ()
        if product(shape) != ONE and (index in of_all or second.is_rows or len(shape) > 1):
            raise Mixes("each row has a scale of its own")
    return _outputs(node, _multiplied(node, first, second))


def _multiplied(node: Node, first: Value, second: Value) -> Value:
    left, right = first.known_shape, second.known_shape
    if not left or not right:
        raise Mixes("a scalar can't be multiplied so")
    if first.axis == len(left) - 1 or second.axis == max(len(right) - 2, 0):
        raise Mixes("it adds up over rows")
    is_left_row = first.axis is not None and first.axis == len(left) - 2
    is_right_column = second.axis is not None and len(right) > 1 and second.axis == len(right) - 1
    if (is_left_row and second.is_rows) or (is_right_column and first.is_rows):
        raise Mixes("rows meet other rows")
    # The axes before the matrices are broadcast.
    outer = _broadcast(node, [
        Value(left[:-2], None if is_left_row else first.axis),
        Value(right[:-2], None if is_right_column else second.axis),
    ])  # fmt: skip
    shape, axis = outer.known_shape, outer.axis
    if is_left_row:
        axis = len(shape)
    if len(left) > 1:
        shape = (*shape, left[-2])
    if len(right) > 1:
        if is_right_column:
            axis = len(shape)
        shape = (*shape, right[-1])
    return Value(shape, axis)


def _gemm(node: Node) -> list[Value]:
    """Rows of the left matrix, or columns of the right one, stay apart."""
    first, second = node.value(0), node.value(1)
    if node.number("transA", 0):
        first = _transposed(first, (1, 0))
    if node.number("transB", 0):
        second = _transposed(second, (1, 0))
    if len(first.known_shape) != 2 or len(second.known_shape) != 2:
        raise Mixes("it multiplies no matrices")
    result = _multiplied(node, first, second)
    if node.has(2):
        added = _broadcast(node, [result, node.value(2)])
        if added.axis != result.axis or len(added.known_shape) != 2:
            raise Mixes("rows meet others than their own")
    return _outputs(node, result)


def _einsum(node: Node) -> list[Value]:
    """The letter of the batch stays in the result, and no constant has it."""
    equation = node.text("equation").replace(" ", "")
    left, arrow, result = equation.partition("->")
    terms = left.split(",")
    if not arrow or "." in equation or len(terms) != len(node.inputs):
        raise Mixes("its equation has no rule")
    letters: set[str] = set()
    sizes: dict[str, Size] = {}
    for term, value in zip(terms, node.inputs, strict=True):
        if value is None or len(value.known_shape) != len(term) or len(set(term)) != len(term):
            raise Mixes("its equation has no rule")
        for each, size in zip(term, value.known_shape, strict=True):
            sizes[each] = _met(node, [sizes.get(each, ONE), size])
        if value.axis is not None:
            letters.add(term[value.axis])
    if len(letters) != 1:
        raise Mixes("rows meet other rows")
    letter = letters.pop()
    shares = set()
    for term, value in zip(terms, node.inputs, strict=True):
        if value is None or (letter in term and (value.axis is None or term[value.axis] != letter)):
            raise Mixes("a constant has an element for each row")
        if value.axis is not None:
            shares.add(value.known_shape[value.axis])
    if letter not in result:
        raise Mixes("it adds up over rows")
    if len(shares) != 1:
        raise Mixes("rows meet parts of rows")
    sizes[letter] = shares.pop()
    return _outputs(node, Value(tuple(sizes[each] for each in result), result.index(letter)))


# Convolutions, pools, recurrent layers.


def _convolution(node: Node) -> list[Value]:
    """Each picture of the first axis is convolved by itself, with constant weights."""
    value = node.value(0)
    _require_axis(value, 0)
    shape = value.known_shape
    weights = node.value(3 if node.op == "QLinearConv" else 1).shape
    if weights is None or len(weights) != len(shape):
        raise Mixes("the shape of its weights is unknown")
    if node.op == "ConvTranspose":
        channels = weights[1] * Size.of(node.number("group", 1))
        spatial = _widened_sizes(node, shape[2:], [each.number for each in weights[2:]])
    else:
        channels = weights[0]
        spatial = _window_sizes(node, shape[2:], [each.number for each in weights[2:]])
    return _outputs(node, Value((shape[0], channels, *spatial), value.axis))


def _pool(node: Node) -> list[Value]:
    """Each picture of the first axis is pooled by itself. Indices would count over all of them."""
    value = node.value(0)
    _require_axis(value, 0)
    shape = value.known_shape
    kernel: Sequence[int | None] = node.numbers("kernel_shape") or [None] * len(shape[2:])
    return _outputs(node, Value((*shape[:2], *_window_sizes(node, shape[2:], kernel)), value.axis))


def _window_sizes(node: Node, sizes: Shape, kernel: Sequence[int | None]) -> list[Size]:
    """Return how many times a window fits along each axis."""
    rank = len(sizes)
    strides = node.numbers("strides") or (1,) * rank
    dilations = node.numbers("dilations") or (1,) * rank
    pads = node.numbers("pads") or (0,) * 2 * rank
    padding = node.text("auto_pad") or "NOTSET"
    result = []
    for at, (size, window) in enumerate(zip(sizes, kernel, strict=True)):
        number = size.number
        if number is None or window is None or strides[at] < 1:
            result.append(node.new_size())
            continue
        if padding.startswith("SAME"):
            result.append(Size.of(-(-number // strides[at])))
            continue
        extra = 0 if padding == "VALID" else pads[at] + pads[at + rank]
        room = number + extra - dilations[at] * (window - 1) - 1
        if node.number("ceil_mode", 0) and room % strides[at]:
            result.append(node.new_size())  # whether the last window counts depends on the padding
            continue
        result.append(Size.of(room // strides[at] + 1))
    return result


def _widened_sizes(node: Node, sizes: Shape, kernel: Sequence[int | None]) -> list[Size]:
    """Return the sizes after a transposed convolution."""
    rank = len(sizes)
    strides, dilations = (node.numbers(name) or (1,) * rank for name in ("strides", "dilations"))
    pads = node.numbers("pads") or (0,) * 2 * rank
    extra = node.numbers("output_padding") or (0,) * rank
    if node.text("auto_pad") not in ("", "NOTSET") or "output_shape" in node.attributes:
        return [node.new_size() for _ in sizes]
    return [
        node.new_size() if size.number is None or window is None
        else Size.of(strides[at] * (size.number - 1) + extra[at] + dilations[at] * (window - 1) + 1
                     - pads[at] - pads[at + rank])
        for at, (size, window) in enumerate(zip(sizes, kernel, strict=True))
    ]  # fmt: skip


def _global_pool(node: Node) -> list[Value]:
    """Each picture, and each channel, is pooled by itself."""
    value = node.value(0)
    if value.axis is not None and value.axis > 1:
        raise Mixes("over rows")
    shape = value.known_shape
    return _outputs(node, Value((*shape[:2], *[ONE] * (len(shape) - 2)), value.axis))


def _first_axis(node: Node) -> list[Value]:
    """Each picture of the first axis is changed by itself, in its channels and its size."""
    value = node.value(0)
    _require_axis(value, 0)
    shape = (value.known_shape[0], *(node.new_size() for _ in value.known_shape[1:]))
    return _outputs(node, Value(shape, value.axis))


def _sampled(node: Node) -> list[Value]:
    """Each picture is sampled at the places of its own grid."""
    picture, grid = node.value(0), node.value(1)
    if picture.axis != 0 or grid.axis != 0 or picture.known_shape[0] != grid.known_shape[0]:
        raise Mixes("pictures and grids are no rows of one batch")
    sizes = grid.known_shape[1:-1]
    return _outputs(node, Value((*picture.known_shape[:2], *sizes), 0))


def _recurrent(node: Node) -> list[Value]:
    """Sequences of the batch are run beside each other, with constant weights."""
    value = node.value(0)
    is_first = bool(node.number("layout", 0))
    batch = 0 if is_first else 1
    shape = value.known_shape
    if len(shape) != 3:
        raise Mixes("it has no batch")
    _require_axis(value, batch)
    if not value.is_rows and any(node.value(each).is_rows for each in (4, 5, 6) if node.has(each)):
        raise Mixes("rows meet others than their own")
    if value.is_rows and node.has(4):
        lengths = node.value(4)
        if lengths.axis != 0 or lengths.known_shape != (shape[batch],):
            raise Mixes("its lengths are not those of its rows")
    for index in (5, 6):
        if node.has(index):
            state = node.value(index)
            if value.is_rows and (state.axis != batch or state.known_shape[batch] != shape[batch]):
                raise Mixes("its first state is not that of its rows")
    directions = Size.of(2 if node.text("direction") == "bidirectional" else 1)
    hidden = node.number("hidden_size", 0)
    units = Size.of(hidden) if hidden else node.new_size()
    rows = shape[batch]
    axis = None if not value.is_rows else batch
    if is_first:
        all_turns = Value((rows, shape[1], directions, units), axis)
        last = Value((rows, directions, units), axis)
    else:
        all_turns = Value((shape[0], directions, rows, units), axis and 2)
        last = Value((directions, rows, units), axis)
    return _outputs(node, all_turns, last, *[last] * (node.op == "LSTM"))


# Shapes: where the batch axis goes.


def _reshape(node: Node) -> list[Value]:
    """Each element stays where it is in memory, so the batch axis is found there again."""
    return _outputs(node, _reshaped(node, node.value(0), _sizes(node, 1)))


def _reshaped(node: Node, value: Value, target: Shape) -> Value:
    shape = value.known_shape
    sizes = list(target)
    for at, size in enumerate(target):
        # An element of 0 copies the input's size, one of -1 is left open: where it may be one of
        # these, the size is unknown, and it must not be about the batch.
        if size.number == 0 and not node.number("allowzero", 0):
            sizes[at] = shape[at]
        elif size.number is None and not size.is_positive:
            if size.varies or (at < len(shape) and shape[at].varies):
                raise Mixes("a size may be 0")
            sizes[at] = node.new_size()
    inferred = [at for at, size in enumerate(sizes) if size.number == -1]
    if len(inferred) > 1:
        raise Mixes("two sizes are left open")
    if inferred:
        rest = product(size for at, size in enumerate(sizes) if at != inferred[0])
        sizes[inferred[0]] = _inferred(node, product(shape), rest, sizes, inferred[0])
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
    times = product(shape[: value.axis]) * (value.outer or ONE)
    outer, share = times.divided(product(before)), sizes[axis].per_row
    if outer is None or share is None or share.divided(outer) is None:
        raise Mixes("the batch axis is moved across another one")
    return Value(tuple(sizes), axis, outer)


def _inferred(node: Node, total: Size, rest: Size, sizes: Sequence[Size], at: int) -> Size:
    """Return the size that is left open: that of a part of rows, or of all of them."""
    if rest.varies or not total.varies:
        return total.divided(rest) or node.new_size()
    # The batch axis itself. It must be a whole number of times the rows for every size.
    if not all(size.is_positive for other, size in enumerate(sizes) if other != at):
        raise Mixes("a size may be 0")
    quotient = total.divided(rest)
    if quotient is None or quotient.per_row is None:
        raise Mixes("it may join several rows to one")
    return quotient


def _flatten(node: Node) -> list[Value]:
    """As Reshape."""
    value = node.value(0)
    shape = value.known_shape
    axis = node.number("axis", 1)
    axis = axis + len(shape) if axis < 0 else axis
    return _outputs(node, _reshaped(node, value, (product(shape[:axis]), product(shape[axis:]))))


def _transpose(node: Node) -> list[Value]:
    """The batch axis is moved as a whole."""
    value = node.value(0)
    order = node.numbers("perm") or tuple(reversed(range(len(value.known_shape))))
    return _outputs(node, _transposed(value, order))


def _transposed(value: Value, order: Sequence[int]) -> Value:
    shape = value.known_shape
    if sorted(order) != list(range(len(shape))):
        raise Mixes("its order of axes is malformed")
    axis = None if value.axis is None else list(order).index(value.axis)
    return Value(tuple(shape[at] for at in order), axis)


def _squeeze(node: Node) -> list[Value]:
    """It drops axes of size 1 by number; without numbers it would drop a batch of one row."""
    value = node.value(0)
    axes = node.numbers("axes", 1)
    if axes is None:
        raise Mixes("it would drop the batch axis of one row")
    dropped = {_at(each, len(value.known_shape)) for each in axes}
    if value.axis in dropped:
        raise Mixes("it drops the batch axis")
    return _outputs(node, _dropped(value, dropped))


def _unsqueeze(node: Node) -> list[Value]:
    """It adds axes of size 1."""
    value = node.value(0)
    axes = node.numbers("axes", 1) or ()
    rank = len(value.known_shape) + len(axes)
    added = {_at(each, rank) for each in axes}
    sizes = iter(value.known_shape)
    shape = tuple(ONE if at in added else next(sizes) for at in range(rank))
    kept = [at for at in range(rank) if at not in added]
    return _outputs(node, Value(shape, None if value.axis is None else kept[value.axis]))


def _expand(node: Node) -> list[Value]:
    """Rows are repeated along other axes; a constant repeated for each row counts as rows."""
    value, target = node.value(0), _sizes(node, 1)
    shape = value.known_shape
    rank = max(len(shape), len(target))
    mine = (*[ONE] * (rank - len(shape)), *shape)
    others = (*[ONE] * (rank - len(target)), *target)
    axis = None if value.axis is None else value.axis + rank - len(shape)
    sizes = []
    for at, (size, other) in enumerate(zip(mine, others, strict=True)):
        if at == axis:
            if other not in (ONE, size):
                raise Mixes("rows are repeated along the batch axis")
        elif other.varies:
            if axis is not None or size != ONE:
                raise Mixes("a row is repeated as often as there are rows")
            size, axis = other, at
        elif size in (ONE, other):
            size = other
        elif other != ONE:
            size = size if size.number is not None else node.new_size()
        sizes.append(size)
    return _outputs(node, Value(tuple(sizes), axis))


def _filled(node: Node) -> list[Value]:
    """A tensor of one constant, repeated for each row, counts as rows."""
    target = _sizes(node, 0)
    varying = [at for at, size in enumerate(target) if size.varies]
    if len(varying) > 1:
        raise Mixes("two of its axes are as long as there are rows")
    numbers = node.value(0).numbers
    if "value" in node.attributes and numbers is not None and math.prod(numbers) <= MAX_ITEMS:
        element = constant(small_array(node.attributes["value"].t), (1,))
        if element.items is not None:
            items = np.full(numbers, element.items.reshape(-1)[0], object)
            return _outputs(node, computed(items, is_narrow=element.is_narrow))
    return _outputs(node, Value(target, varying[0] if varying else None))


def _range(node: Node) -> list[Value]:
    """A range whose length does not depend on the number of rows is a constant."""
    if any(node.value(index).is_size for index in range(3)):
        return [Value((node.unknowns.new("N?"),), varies=True)]
    numbers = [node.value(index).numbers for index in range(3)]
    if all(each and len(each) == 1 for each in numbers):
        start, limit, step = (each[0] for each in numbers if each)
        if step and (limit - start) / step <= 64:
            items = sizes_of(map(Size.of, range(start, limit, step)))
            return [computed(items, is_narrow=node.value(0).is_narrow)]
    return [Value((node.new_size(),))]


def _tile(node: Node) -> list[Value]:
    """It repeats along other axes."""
    value, repeats = node.value(0), _sizes(node, 1)
    shape = value.known_shape
    if len(repeats) != len(shape) or any(each.varies for each in repeats):
        raise Mixes("its repeats are unknown, or depend on the number of rows")
    if value.axis is not None and repeats[value.axis] != ONE:
        raise Mixes("it repeats the batch")
    sizes = (size * times for size, times in zip(shape, repeats, strict=True))
    return _outputs(node, Value(tuple(sizes), value.axis))


def _concat(node: Node) -> list[Value]:
    """It joins along another axis than that of rows, and rows with their own."""
    values = [each for each in node.inputs if each]
    first = values[0]
    axis = _at(node.number("axis", 1), len(first.known_shape))
    if first.axis == axis:
        raise Mixes("it joins batches")
    _require_alike(*values)
    total = sum((each.known_shape[axis] for each in values), Size.of(0))
    return _outputs(node, Value(_replaced(first.known_shape, axis, total), first.axis))


def _split(node: Node) -> list[Value]:
    """It cuts along another axis than that of rows."""
    value = node.value(0)
    axis = _at(node.number("axis", 0), len(value.known_shape))
    if axis == value.axis:
        raise Mixes("it divides the batch")
    if node.has(1) and node.value(1).is_size:
        raise Mixes("a size depends on the number of rows")
    size, number = value.known_shape[axis], node.num_outputs
    parts: Sequence[Size] | None = None
    if "split" in node.attributes:
        parts = [Size.of(each) for each in node.attributes["split"].ints]
    elif node.has(1):
        parts = node.value(1).vector
    elif whole := size.divided(Size.of(number)):
        parts = [whole] * number
    if parts is None or len(parts) != number:
        parts = [node.new_size() for _ in range(number)]
    return [Value(_replaced(value.known_shape, axis, part), value.axis) for part in parts]


def _slice(node: Node) -> list[Value]:
    """It cuts along other axes; along that of rows it must take all."""
    value = node.value(0)
    shape = list(value.known_shape)
    if node.version < 10:
        bounds = [tuple(map(Size.of, node.numbers(name) or ())) for name in ("starts", "ends")]
        starts: Shape | None = bounds[0]
        ends: Shape | None = bounds[1]
        axes, steps = node.numbers("axes"), None
    else:
        starts, ends = node.value(1).vector, node.value(2).vector
        axes, steps = node.numbers("axes", 3), node.numbers("steps", 4)
    if axes is None:
        if starts is None:
            raise Mixes("its axes are unknown")
        axes = tuple(range(len(starts)))
    for number, axis in enumerate(axes):
        at = _at(axis, len(shape))
        start = starts[number] if starts is not None else None
        end = ends[number] if ends is not None else None
        step = steps[number] if steps else 1
        if at == value.axis:
            is_all = start is not None and end is not None and start.number == 0 and step == 1 and (
                end == shape[at] or (end.number is not None and end.number >= _ENDLESS)
            )  # fmt: skip
            if not is_all:
                raise Mixes("it takes some of the rows")
            continue
        if any(node.value(index).is_size for index in (1, 2) if node.has(index)) and (
            start is None or end is None or start.varies or end.varies
        ):
            raise Mixes("it cuts by the number of rows")
        shape[at] = _cut(node, shape[at], start, end, step)
    return _outputs(node, Value(tuple(shape), value.axis))


def _cut(node: Node, size: Size, start: Size | None, end: Size | None, step: int) -> Size:
    """Return the size of a part from start to end."""
    length, first, last = (each.number if each else None for each in (size, start, end))
    if length is not None and first is not None and last is not None:
        return Size.of(len(range(length)[slice(first, last, step)]))
    if first == 0 and step == 1 and last is not None and last >= _ENDLESS:
        return size
    return node.new_size()


def _pad(node: Node) -> list[Value]:
    """It adds a border along other axes than that of rows."""
    value = node.value(0)
    shape = list(value.known_shape)
    rank = len(shape)
    if node.version < 11:
        pads: Shape = tuple(map(Size.of, node.numbers("pads") or node.numbers("paddings") or ()))
    else:
        pads = _sizes(node, 1)
    axes = [_at(each, rank) for each in (node.numbers("axes", 3) or range(rank))]
    if len(pads) != 2 * len(axes) or any(each.varies for each in pads):
        raise Mixes("its border is unknown, or depends on the number of rows")
    for number, at in enumerate(axes):
        before, after = pads[number], pads[number + len(axes)]
        if at == value.axis and (before.number, after.number) != (0, 0):
            raise Mixes("it pads the batch")
        shape[at] = shape[at] + before + after
    return _outputs(node, Value(tuple(shape), value.axis))


def _resize(node: Node) -> list[Value]:
    """Each picture is resized by itself, where the scale of the batch axis is 1."""
    value = node.value(0)
    shape = value.known_shape
    rank = len(shape)
    if node.text("keep_aspect_ratio_policy", "stretch") != "stretch" or node.text(
        "coordinate_transformation_mode"
    ).startswith("tf_crop"):
        raise Mixes("its mode has no rule")
    if node.text("mode", "nearest") != "nearest" and (value.axis not in (None, 0) or rank < 4):
        raise Mixes("it weighs a row with its neighbours, if only by 0")  # 0 times NaN is NaN
    axes = [_at(each, rank) for each in (node.numbers("axes") or range(rank))]
    index = 1 if node.op == "Upsample" or node.version < 11 else 2
    scales = node.value(index).data if node.has(index) else None
    if value.axis is not None and value.axis in axes:
        at = axes.index(value.axis)
        sizes = node.value(3).vector if node.has(3) else None
        if scales is not None and scales.size == len(axes):
            if float(scales.reshape(-1)[at]) != 1.0:
                raise Mixes("it resizes the batch")
        elif sizes is None or len(sizes) != len(axes) or sizes[at] != shape[value.axis]:
            raise Mixes("the scale of the batch axis is unknown")
        if sizes is not None and any(
            each.varies for number, each in enumerate(sizes) if number != at
        ):
            raise Mixes("it resizes by the number of rows")
    elif any(node.value(each).is_size for each in range(1, len(node.inputs)) if node.has(each)):
        raise Mixes("it resizes by the number of rows")
    new = [
        size if at == value.axis or at not in axes else node.new_size()
        for at, size in enumerate(shape)
    ]
    if scales is not None and scales.size == len(axes):
        for at, scale in zip(axes, scales.reshape(-1), strict=True):
            number = shape[at].number
            if number is not None and float(scale).is_integer():
                new[at] = Size.of(number * int(scale))
    return _outputs(node, Value(tuple(new), value.axis))


def _one_hot(node: Node) -> list[Value]:
    """It adds an axis to each element."""
    value = node.value(0)
    rank = len(value.known_shape) + 1
    at = _at(node.number("axis", -1), rank)
    shape = list(value.known_shape)
    shape.insert(at, _constant_size(node, 1))
    axis = None if value.axis is None else value.axis + (at <= value.axis)
    return _outputs(node, Value(tuple(shape), axis))


# Taking elements by number.


def _gather(node: Node) -> list[Value]:
    """Rows take from a constant, or all rows are taken from at the same places."""
    data, indices = node.value(0), node.value(1)
    shape, taken = data.known_shape, indices.known_shape
    axis = _at(node.number("axis", 0), len(shape))
    if data.is_rows and indices.is_rows:
        raise Mixes("rows take from all rows")
    if data.axis == axis:
        raise Mixes("it takes rows by number")
    batch = None
    if data.axis is not None:
        batch = data.axis if data.axis < axis else data.axis + len(taken) - 1
    if indices.axis is not None:
        batch = axis + indices.axis
    return _outputs(node, Value((*shape[:axis], *taken, *shape[axis + 1 :]), batch))


def _elements(node: Node) -> list[Value]:
    """Each row takes from its own elements, or changes them, along another axis."""
    data, indices, *_ = values = [each for each in node.inputs if each]
    if data.axis == _at(node.number("axis", 0), len(data.known_shape)):
        raise Mixes("it takes from other rows")
    _require_alike(*values)
    shape = indices.known_shape if node.op == "GatherElements" else data.known_shape
    return _outputs(node, Value(shape, data.axis))


def _require_alike(*values: Value) -> None:
    """Raise Mixes unless all hold the same rows along the same axis."""
    first = values[0]
    for other in values:
        if other.axis != first.axis or len(other.known_shape) != len(first.known_shape):
            raise Mixes("rows meet others than their own")
        at = first.axis
        if at is not None and other.known_shape[at] != first.known_shape[at]:
            raise Mixes("rows meet parts of rows")


def _gather_many(node: Node) -> list[Value]:
    """Rows take from a constant, or each row from its own elements."""
    data, indices = node.value(0), node.value(1)
    shape, taken = data.known_shape, indices.known_shape
    shared = node.number("batch_dims", 0)
    depth = taken[-1].number
    if depth is None:
        raise Mixes("its depth is unknown")
    if data.is_rows:
        if not shared or data.axis is None or data.axis >= shared or indices.axis != data.axis:
            raise Mixes("it takes rows by number")
        if shape[data.axis] != taken[data.axis]:
            raise Mixes("rows meet parts of rows")
    elif indices.axis is not None and (shared or indices.axis == len(taken) - 1):
        raise Mixes("its rows have no rule")
    return _outputs(node, Value((*taken[:-1], *shape[shared + depth :]), indices.axis))


def _reversed_sequence(node: Node) -> list[Value]:
    """Each row is reversed in time, by its own length."""
    value, lengths = node.value(0), node.value(1)
    batch, time = node.number("batch_axis", 1), node.number("time_axis", 0)
    if value.axis != batch or time == batch or lengths.axis != 0:
        raise Mixes("its axes are not those of rows")
    if lengths.known_shape != (value.known_shape[batch],):
        raise Mixes("rows meet parts of rows")
    return _kept(node)


def _fourier(node: Node) -> list[Value]:
    """It transforms along another axis than that of rows."""
    value = node.value(0)
    rank = len(value.known_shape)
    axis = node.number("axis", 1) if node.version < 20 else -2
    if node.has(2):
        numbers = node.value(2).numbers
        if numbers is None:
            raise Mixes("its axis is unknown")
        axis = numbers[0]
    if value.axis in (_at(axis, rank), rank - 1):
        raise Mixes("it transforms over rows")
    shape = [
        node.new_size() if at == _at(axis, rank) else size
        for at, size in enumerate(value.known_shape)
    ]
    return _outputs(node, Value((*shape[:-1], Size.of(2)), value.axis))


def _short_fourier(node: Node) -> list[Value]:
    """Each signal of the first axis is transformed by itself."""
    value = node.value(0)
    _require_axis(value, 0)
    rows = value.known_shape[0]
    return _outputs(node, Value((rows, node.new_size(), node.new_size(), Size.of(2)), value.axis))


# Classical models (ai.onnx.ml): tables of rows.


def _table(value: Value) -> Shape:
    shape = value.known_shape
    if len(shape) != 2 or value.axis not in (None, 0):
        raise Mixes("it is no table of rows")  # of one axis, all is one row
    return shape


def _columns(node: Node) -> list[Value]:
    """Each row of a table is scaled or filled by constants."""
    value = node.value(0)
    return _outputs(node, Value(_table(value), value.axis))


def _classified(node: Node) -> list[Value]:
    """Each row of a table gets a label, and scores."""
    value = node.value(0)
    if node.text("post_transform") == "PROBIT":
        raise Mixes("with PROBIT, ONNX Runtime leaves scores as the memory was")
    rows = _table(value)[0]
    scores = Value((rows, node.new_size()), value.axis)
    return _outputs(node, Value((rows,), value.axis), scores)


def _scored(node: Node) -> list[Value]:
    """Each row of a table gets its numbers."""
    value = node.value(0)
    number = node.number("n_targets", 0) or node.number("targets", 0)
    columns = Size.of(number) if number else node.new_size()
    return _outputs(node, Value((_table(value)[0], columns), value.axis))


def _features(node: Node) -> list[Value]:
    """Tables are joined column by column."""
    values = [each for each in node.inputs if each]
    shapes = [_table(each) for each in values]
    _require_alike(*values)
    return _outputs(node, Value((shapes[0][0], node.new_size()), values[0].axis))


def _encoded(node: Node) -> list[Value]:
    """It adds an axis to each element."""
    value = node.value(0)
    return _outputs(node, Value((*value.known_shape, node.new_size()), value.axis))


def _extracted(node: Node) -> list[Value]:
    """It takes columns by number, or each row takes an element of a constant."""
    value, indices = node.value(0), node.value(1)
    shape = value.known_shape
    if indices.is_rows:
        if value.is_rows or indices.axis != 0 or len(shape) > 1:
            raise Mixes("rows take from all rows")
        return _outputs(node, Value((ONE, product(indices.known_shape)), 1))
    if len(shape) < 2 or value.axis == len(shape) - 1:
        raise Mixes("it takes rows by number")
    return _outputs(node, Value((*shape[:-1], node.new_size()), value.axis))


def _texts(node: Node) -> list[Value]:
    """Without words to leave out it changes each text by itself."""
    value = node.value(0)
    if "stopwords" in node.attributes or len(value.known_shape) != 1:
        raise Mixes("it leaves words out")
    return _kept(node)


def _attention(node: Node) -> list[Value]:
    """Each sequence of the first axis attends to itself, with constant weights."""
    value = node.value(0)
    shape = value.known_shape
    if value.axis != 0 or len(shape) != 3 or any(node.is_used[1:]):
        raise Mixes("it has no rule for these inputs")
    for index, other in enumerate(node.inputs[1:], 1):
        if other is not None and other.is_rows and (
            other.axis != 0 or other.known_shape[0] != shape[0]
        ):  # fmt: skip
            raise Mixes("rows meet others than their own")
        if index > 2 and other and not other.is_rows and other.known_shape[:1] != (ONE,):
            raise Mixes("its mask has no rule")
    return _outputs(node, Value((shape[0], shape[1], node.new_size()), 0))


RULES: dict[str, _Row] = {}
"""The rule of each operator."""


def _add(operators: str, rule: Rule, rows: Sequence[int] = (0,), sizes: Sequence[int] = ()) -> None:
    RULES.update(dict.fromkeys(operators.split(), _Row(rule, rows, sizes)))


_add(
    "Abs Acos Acosh Asin Asinh Atan Atanh BitwiseNot Cast Ceil Celu Cos Cosh Elu Erf Exp Floor Gelu"
    " HardSigmoid HardSwish Identity IsInf IsNaN LeakyRelu Log Mish Neg Not Reciprocal Relu Round"
    " Selu Shrink Sigmoid Sign Sin Sinh Softplus Softsign Sqrt Swish Tan Tanh ThresholdedRelu"
    " Binarizer CategoryMapper LabelEncoder RegexFullMatch Clip"
    " com.microsoft.Gelu com.microsoft.QuickGelu",
    _elementwise,
)
_add(
    "Add And BitShift BitwiseAnd BitwiseOr BitwiseXor Div Equal Greater GreaterOrEqual Less"
    " LessOrEqual Max Mean Min Mod Mul Or PRelu Pow StringConcat Sub Sum Where Xor"
    " com.microsoft.BiasGelu com.microsoft.FastGelu",
    _elementwise, _ALL,
)  # fmt: skip
_add("CastLike", _cast_like, (0, 1), (1,))
_add("DynamicQuantizeLinear com.microsoft.DynamicQuantizeMatMul", _scaled_by_all)
_add("Dropout", _dropout)
_add("BatchNormalization", _batch_normalization)
_add("QuantizeLinear DequantizeLinear", _quantized)
_add("Softmax LogSoftmax Hardmax", _along(_softmax_axes))
_add("LpNormalization", _along(lambda node, rank: [node.number("axis", -1)]))
_add("CumSum", _along(_summed_axes))
_add("MeanVarianceNormalization", _along(lambda node, rank: node.numbers("axes") or (0, 2, 3)))
_add("GroupNormalization InstanceNormalization LRN", _along(lambda node, rank: range(1, rank)))
_add("Trilu", _along(lambda node, rank: (-2, -1)))
_add("Det", _determinants)
_add("TopK", _top, sizes=(1,))
_add(
    "ArgMax ArgMin ReduceL1 ReduceL2 ReduceLogSum ReduceLogSumExp ReduceMax ReduceMean ReduceMin"
    " ReduceProd ReduceSum ReduceSumSquare",
    _reduced,
)
_add("LayerNormalization RMSNormalization SimplifiedLayerNormalization", _layer_normalization)
_add("com.microsoft.SkipLayerNormalization", _skip_normalization, (0, 1))
_add("MatMul", _matrix_product, (0, 1))
_add("MatMulInteger", _quantized_product, (0, 1))
_add("QLinearMatMul", _quantized_product, (0, 3))
_add("Gemm", _gemm, (0, 1, 2))
_add("Einsum", _einsum, _ALL)
_add("Conv ConvInteger ConvTranspose QLinearConv", _convolution)
_add("AveragePool LpPool MaxPool", _pool)
_add("GlobalAveragePool GlobalLpPool GlobalMaxPool", _global_pool)
_add("DepthToSpace SpaceToDepth", _first_axis)
_add("GridSample", _sampled, (0, 1))
_add("GRU LSTM RNN", _recurrent, (0, 4, 5, 6))
_add("Reshape", _reshape, sizes=(1,))
_add("Flatten", _flatten)
_add("Transpose", _transpose)
_add("Squeeze", _squeeze)
_add("Unsqueeze", _unsqueeze)
_add("Expand", _expand, sizes=(1,))
_add("ConstantOfShape", _filled, (), (0,))
_add("Range", _range, (), (0, 1, 2))
_add("Tile", _tile, sizes=(1,))
_add("Concat", _concat, _ALL)
_add("Split", _split, sizes=(1,))
_add("Slice", _slice, sizes=(1, 2))
_add("Pad", _pad, sizes=(1,))
_add("Resize Upsample", _resize, sizes=(1, 2, 3))
_add("OneHot", _one_hot)
_add("Gather", _gather, (0, 1))
_add("GatherElements ScatterElements", _elements, (0, 1, 2))
_add("GatherND", _gather_many, (0, 1))
_add("ReverseSequence", _reversed_sequence, (0, 1))
_add("DFT", _fourier)
_add("STFT", _short_fourier)
_add("Imputer Normalizer Scaler", _columns)
_add("LinearClassifier SVMClassifier TreeEnsembleClassifier", _classified)
_add("LinearRegressor SVMRegressor TreeEnsemble TreeEnsembleRegressor TfIdfVectorizer", _scored)
_add("FeatureVectorizer", _features, _ALL)
_add("OneHotEncoder", _encoded)
_add("ArrayFeatureExtractor", _extracted, (0, 1))
_add("StringNormalizer", _texts)
_add("com.microsoft.Attention", _attention, (0, 3))
