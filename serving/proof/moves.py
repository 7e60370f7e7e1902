"""Rules of operators that move axes or take parts: where the batch axis goes."""

import math
from collections.abc import Sequence

import numpy as np

from serving.proof.elements import ENDLESS, require_backwards
from serving.proof.onnx_file import small_array
from serving.proof.shapes import (
    Shape,
    axis_at,
    met,
    replaced,
    require_alike,
    size_in,
    targets,
    with_axes_in,
    without_axes,
)
from serving.proof.sizes import MOST_SIZE, ONE, ROWS, Size, product
from serving.proof.values import MAX_ITEMS, Mixes, Node, Value, computed, constant, sizes_of

_Bounds = tuple[Shape | None, Shape | None, Sequence[int], Sequence[int] | None]


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
    value, target = node.value(0), list(targets(node, 1))
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
    # Of rows: if it is left open, the rest has them, and their number cancels out.
    return node.unknowns.new() if node.value(0).is_rows else node.new_size()


def _inferred(node: Node, total: Size, sizes: Sequence[Size], at: int) -> Size:
    """Return the size that is left open: that of a part of rows, or of all of them."""
    rest = product(size for other, size in enumerate(sizes) if other != at)
    if rest.varies or not total.varies:
        is_of_rows = total.per_row is not None and rest.per_row is not None
        return total.divided(rest) or (node.unknowns.new() if is_of_rows else node.new_size())
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
        with_axes_in(value, tuple(reversed(range(value.rank))) if order is None else order)
    )


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
    dropped = {axis_at(each, value.rank) for each in axes}
    if value.axis in dropped:
        raise Mixes("it drops the batch axis")
    return node.outputs(without_axes(value, dropped))


def unsqueezed(node: Node) -> list[Value]:
    """It adds axes of size 1."""
    value = node.value(0)
    axes = node.numbers("axes", 1) or ()
    rank = value.rank + len(axes)
    added = {axis_at(each, rank) for each in axes}
    if len(added) < len(axes):
        raise Mixes("its axes are malformed")
    sizes = iter(value.shape)
    shape = tuple(ONE if at in added else next(sizes) for at in range(rank))
    kept = [at for at in range(rank) if at not in added]
    return node.outputs(Value(shape, None if value.axis is None else kept[value.axis]))


def expanded(node: Node) -> list[Value]:
    """Rows are repeated along other axes; a constant repeated for each row counts as rows."""
    value, target = node.value(0), targets(node, 1)
    rank = max(value.rank, len(target))
    mine = (*[ONE] * (rank - value.rank), *value.shape)
    others = (*[ONE] * (rank - len(target)), *target)
    axis = None if value.axis is None else value.axis + rank - value.rank
    sizes = []
    for at, (size, other) in enumerate(zip(mine, others, strict=True)):
        if at == axis:
            if other not in (ONE, size):
                raise Mixes("rows are repeated along the batch axis")
        elif other.varies and other == size and value.axis is None:
            pass  # as long as there are rows already
        elif other.varies:
            if axis is not None or size != ONE:
                raise Mixes("a row is repeated as often as there are rows")
            size, axis = other, at
        elif other.is_positive:
            size = met(node, [size, other])
        else:  # ONNX Runtime may leave an Expand to 0 out
            size = node.new_size()
        sizes.append(size)
    return node.outputs(Value(tuple(sizes), axis))


def filled(node: Node) -> list[Value]:
    """A tensor of one constant, repeated for each row, counts as rows."""
    target = targets(node, 0)
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
    """It repeats along other axes; a constant repeated for each row counts as rows."""
    value, repeats = node.value(0), targets(node, 1)
    if len(repeats) != value.rank:
        raise Mixes("its repeats are unknown")
    axis = value.axis
    for at, times in enumerate(repeats):
        if at == value.axis and times != ONE:
            raise Mixes("it repeats the batch")
        if times.varies:
            if axis is not None or times != ROWS or value.shape[at] != ONE:
                raise Mixes("its repeats depend on the number of rows")
            axis = at
    sizes = (size * times for size, times in zip(value.shape, repeats, strict=True))
    return node.outputs(Value(tuple(sizes), axis))


def joined(node: Node) -> list[Value]:
    """It joins along another axis than that of rows; or all rows stand one after another there."""
    first = node.value(0)
    axis = axis_at(node.number("axis", 1), first.rank)
    require_alike(*node.given)
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
            shape.append(_equal_size(sizes))
    outer = None if first.axis != axis else (first.outer or ONE) * Size.of(len(node.given))
    return node.outputs(Value(tuple(shape), first.axis, outer))


def _equal_size(sizes: Sequence[Size]) -> Size:
    """Return the best known of sizes that must be equal, or ONNX Runtime answers nothing."""
    numbers = {each.number for each in sizes if each.number is not None}
    if len(numbers) > 1:
        raise Mixes("its sizes don't fit")
    return min(sizes, key=lambda each: (each.number is None, not each.fits(MOST_SIZE + 1)))


def split(node: Node) -> list[Value]:
    """It cuts along another axis than that of rows."""
    value, number = node.value(0), len(node.is_used)
    axis = axis_at(node.number("axis", 0), value.rank)
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
    return [Value(replaced(value.shape, axis, part), value.axis) for part in parts]


def sliced(node: Node) -> list[Value]:
    """It cuts along other axes; along that of rows it must take all."""
    value, (starts, ends, axes, steps) = node.value(0), _bounds(node)
    shape = list(value.shape)
    for number, axis in enumerate(axes):
        at = axis_at(axis, len(shape))
        start = starts[number] if starts is not None else None
        end = ends[number] if ends is not None else None
        step = steps[number] if steps else 1
        if at == value.axis:
            first, last = start.number if start else None, end.number if end else None
            is_all = end == shape[at] or (last is not None and last >= ENDLESS)
            if first != 0 or step != 1 or not is_all:
                raise Mixes("it takes some of the rows")
            continue
        if value.is_rows and any(each and each.varies for each in (start, end)):
            raise Mixes("it cuts by the number of rows")
        shape[at] = _cut(node, shape[at], start, end, step)
    return node.outputs(Value(tuple(shape), value.axis))


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
    if step < 1:
        require_backwards(first, last, step)
        return size
    if length is not None and first is not None and last is not None:
        return Size.of(len(range(length)[slice(first, last, step)]))
    if first == 0 and step == 1 and last is not None and last >= ENDLESS:
        return size
    if first == 0 and step == 1 and end is not None and end == size:
        return size
    if length is not None and length > 1 and (first, step) == (0, 1) and end and end.is_positive:
        return node.unknowns.at_most(length, end)
    return node.new_size()


def padded(node: Node) -> list[Value]:
    """It adds a border along other axes than that of rows."""
    value = node.value(0)
    shape = list(value.shape)
    if node.version < 11:
        pads: Shape = tuple(map(Size.of, node.numbers("pads") or ()))
    else:
        pads = targets(node, 1)
    given = node.numbers("axes", 3)
    axes = [axis_at(each, value.rank) for each in (range(value.rank) if given is None else given)]
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
    axes = [axis_at(each, value.rank) for each in given]
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
    if scales[number].is_integer() and new.fits(1 << 24):
        return new
    is_positive = scales[number] >= 1 and size.is_positive
    return node.unknowns.of(("resized", scales[number]), size, mark="*" if is_positive else "?")


def _scales(node: Node) -> list[float] | None:
    """Return the factors of all axes; None if they are computed, or sizes are given."""
    attribute = node.attributes.get("scales")
    if attribute is not None:
        return [float(each) for each in attribute.floats]
    index = 1 if node.version < 11 else 2
    data = node.value(index).data if node.has(index) else None
    return [float(each) for each in data.reshape(-1)] if data is not None and data.size else None


def one_hot(node: Node) -> list[Value]:
    """It adds an axis to each element."""
    value = node.value(0)
    at = axis_at(node.number("axis", -1), value.rank + 1)
    if node.value(1).is_size:
        raise Mixes("a size depends on the number of rows")
    shape = list(value.shape)
    shape.insert(at, size_in(node, 1))
    axis = None if value.axis is None else value.axis + (at <= value.axis)
    return node.outputs(Value(tuple(shape), axis))


# Taking elements by number.


def gathered(node: Node) -> list[Value]:
    """Rows take from a constant, or all rows are taken from at the same places."""
    data, indices = node.value(0), node.value(1)
    axis = axis_at(node.number("axis", 0), data.rank)
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
    if data.axis == axis_at(node.number("axis", 0), data.rank):
        raise Mixes("it takes from other rows")
    require_alike(*node.given)
    return node.outputs(
        Value(indices.shape if node.op == "GatherElements" else data.shape, data.axis)
    )


def gathered_many(node: Node) -> list[Value]:
    """Rows take from a constant."""
    data, indices = node.value(0), node.value(1)
    depth = indices.shape[-1].number if indices.rank else None
    if data.is_rows:
        raise Mixes("it takes rows by number")
    if depth is None or not 0 < depth <= data.rank:
        raise Mixes("its depth is unknown")
    return node.outputs(Value((*indices.shape[:-1], *data.shape[depth:]), indices.axis))
