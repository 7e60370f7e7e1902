"""What graphs compute of sizes: the elements of small integer tensors, where sizes decide them.

Shape, Gather, Concat and the like are followed, so that Reshape's target is known to be the number
of rows and a number. An element that is not followed is an unknown, or the tensor has none.
"""

import operator
from collections.abc import Callable
from functools import reduce
from math import prod

import numpy as np

from serving.proof.arrays import Array
from serving.proof.sizes import Size, product
from serving.proof.values import MAX_ITEMS, Mixes, Node, Value, computed, sizes_of

_INT32, _INT64 = 6, 7
"""TensorProto's numbers of types."""
ENDLESS = 1_000_000_000
"""More rows than any batch has: a slice up to there takes all."""
_EXACT = 1 << 53
"""Where products of int64 round: ONNX Runtime computes them in double precision."""
_FOLDED: dict[str, Callable[[int, int], int]] = {
    "Div": operator.floordiv,
    "Mod": operator.mod,
    "Min": min,
    "Max": max,
}

_BROADCAST = {"Add", "Sub", "Mul", "Where", "Equal", *_FOLDED}
"""Operators whose inputs are repeated for each other."""


def follow(node: Node) -> list[Value] | None:
    """Return outputs whose elements shapes and constants decide; None if they don't."""
    compute = _ELEMENTS.get(node.op)
    if compute is None or not node.given or any(each.items is None for each in node.given):
        return None
    try:
        if node.op in _BROADCAST and _num_broadcast(node) > MAX_ITEMS:
            return None
        found = compute(node)
    except (Mixes, ArithmeticError, LookupError, TypeError, ValueError):
        return None
    arrays = found if isinstance(found, list) else [found]
    is_narrow = any(each.is_narrow for each in node.given)
    if node.op == "Cast":
        is_narrow = node.number("to", 0) == _INT32
    outputs = []
    for array in arrays:
        items = np.asarray(array, object)
        if items.size > MAX_ITEMS:
            return None
        if is_narrow:
            items = sizes_of(map(node.unknowns.narrow, items.reshape(-1))).reshape(items.shape)
        outputs.append(computed(items, is_narrow=is_narrow))
    return node.outputs(*outputs)


def _num_broadcast(node: Node) -> int:
    """Return how many elements inputs have beside each other: of many vectors they are too many."""
    shapes = [each.items.shape for each in node.given if each.items is not None]
    return prod(np.broadcast_shapes(*shapes))


def items_of(node: Node, index: int = 0) -> Array:
    """Return the elements of an input."""
    items = node.value(index).items
    if items is None:
        raise Mixes("its sizes are computed from values")
    return items


def _known(node: Node, index: int) -> tuple[int, ...]:
    numbers = node.value(index).numbers
    if numbers is None:
        raise Mixes("its input is computed")
    return numbers


def _binary(node: Node) -> Array:
    pair = np.frompyfunc(lambda a, b: _pair(node, a, b), 2, 1)
    return np.asarray(reduce(pair, (items_of(node, index) for index in range(len(node.inputs)))))


def _pair(node: Node, a: Size, b: Size) -> Size:
    if node.op == "Equal":
        return _equal(node, a, b)
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


def _equal(node: Node, a: Size, b: Size) -> Size:
    """Return 1 or 0 where that is certain, as for a size of at least 1 beside -1."""
    difference = (a - b).number
    if difference is None and a.is_positive and b.number is not None and b.number <= 0:
        difference = 1
    if difference is None and b.is_positive and a.number is not None and a.number <= 0:
        difference = -1
    if difference is None:
        return node.unknowns.of(node.op, a, b)
    return Size.of(int(difference == 0))


def _chosen(node: Node) -> Array:
    def choose(condition: Size, yes: Size, no: Size) -> Size:
        if condition.number is None:
            return node.unknowns.of("Where", condition, yes, no)
        return yes if condition.number else no

    three = np.frompyfunc(choose, 3, 1)
    return np.asarray(three(*(items_of(node, index) for index in range(3))), object)


def _cast(node: Node) -> Array:
    """Keep numbers: a cast to a type that shapes don't have overflows or rounds."""
    if node.number("to", 0) not in (_INT32, _INT64):
        raise Mixes("it casts to another type than shapes have")
    return items_of(node)


def _reshaped(node: Node) -> Array:
    target = _known(node, 1)
    if 0 in target:
        raise Mixes("its shape is computed")
    return items_of(node).reshape(target)


def _gathered(node: Node) -> Array:
    shape = items_of(node, 1).shape
    indices = np.array(_known(node, 1), int).reshape(shape)
    return items_of(node).take(indices, node.number("axis", 0))


def _sliced(node: Node) -> Array:
    items = items_of(node)
    starts, ends = node.numbers("starts", 1) or (), node.numbers("ends", 2) or ()
    axes = node.numbers("axes", 3)
    steps = node.numbers("steps", 4) or (1,) * len(starts)
    cut: list[slice] = [slice(None)] * items.ndim
    for axis, start, end, step in zip(
        range(len(starts)) if axes is None else axes, starts, ends, steps, strict=True
    ):
        cut[axis] = slice(start, end, step)
        if step < 1:
            require_backwards(start, end, step)
            cut[axis] = slice(None, None, -1)
    return items[tuple(cut)]


def require_backwards(start: int | None, end: int | None, step: int) -> None:
    """Raise Mixes unless a slice with a step below 0 is a whole axis backwards.

    Before the front numpy takes nothing, and ONNX the first.
    """
    if (start, step) != (-1, -1) or end is None or end > -ENDLESS:
        raise Mixes("backwards, only a whole axis has a rule")


def _multiplied(node: Node) -> Array:
    items = items_of(node)
    axes, is_kept = node.numbers("axes", 1), bool(node.number("keepdims", 1))
    is_all = not axes and not node.number("noop_with_empty_axes", 0)
    if items.ndim != 1 or not (is_all or axes in ((0,), (-1,))):
        raise Mixes("its axes are not followed")
    total = product(items)
    if not total.fits(_EXACT):
        raise Mixes("its product may be rounded")
    return sizes_of([total]).reshape((1,) if is_kept else ())


def _squeezed(node: Node) -> Array:
    # ONNX Runtime drops all axes of size 1 also for an empty list.
    return np.squeeze(items_of(node), node.numbers("axes", 1) or None)


def _expanded(node: Node) -> Array:
    items, target = items_of(node), _known(node, 1)
    if min(target, default=1) < 1:
        raise Mixes("its shape is not followed")  # ONNX Runtime may leave an Expand to 0 out
    return np.broadcast_to(items, np.broadcast_shapes(items.shape, target))


def _joined(node: Node) -> Array:
    parts = [items_of(node, index) for index in range(len(node.inputs))]
    return np.concatenate(parts, node.number("axis", 0))


def _split(node: Node) -> list[Array]:
    items, axis, number = items_of(node), node.number("axis", 0), len(node.is_used)
    parts = node.numbers("split", 1)
    if parts is None:
        size = items.shape[axis]
        if size % number:
            raise Mixes("its parts are of different sizes")
        parts = (size // number,) * number
    if sum(parts) != items.shape[axis] or min(parts) < 0:
        raise Mixes("its parts don't fit")
    return np.split(items, np.cumsum(parts)[:-1], axis)


_ELEMENTS: dict[str, Callable[[Node], Array | list[Array]]] = {
    "Add": lambda node: items_of(node, 0) + items_of(node, 1),
    "Sub": lambda node: items_of(node, 0) - items_of(node, 1),
    "Mul": lambda node: items_of(node, 0) * items_of(node, 1),
    **dict.fromkeys([*_FOLDED, "Equal"], _binary),
    "Where": _chosen,
    "Cast": _cast,
    "Identity": items_of,
    "Neg": lambda node: np.frompyfunc(lambda each: Size.of(0) - each, 1, 1)(items_of(node)),
    "Split": _split,
    "Reshape": _reshaped,
    "Gather": _gathered,
    "Slice": _sliced,
    "ReduceProd": _multiplied,
    "Concat": _joined,
    "Unsqueeze": lambda node: np.expand_dims(items_of(node), node.numbers("axes", 1) or ()),
    "Squeeze": _squeezed,
    "Transpose": lambda node: items_of(node).transpose(node.numbers("perm")),
    "Expand": _expanded,
}
"""How the elements of outputs follow from those of inputs."""
